"""Score or predict all images of the studies in the background, one after the other; a failure does not stop it."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod

from totalspineseg_server.errors import SettingError, TotalSpineSegError
from totalspineseg_server.infers.settings import read_settings

logger = logging.getLogger(__name__)

Outcome = dict[str, Any]
SCORING, BATCH = "scoring", "batch inference"
"""Names of the tasks in the log."""


def unfinished_first(images: object, datastore: Datastore) -> list[str]:
    """Return the images that are in the studies: those without a finished label first, then by name.

    Args:
        images: Ids from a client or from MONAI Label.
        datastore: The studies.

    Raises:
        SettingError: The images are not a list of texts.
    """
    if not isinstance(images, list | tuple) or not all(isinstance(image, str) for image in images):
        raise SettingError(f"expected images 'all', 'labeled', 'unlabeled' or a list of image ids, got {images!r}")
    known, unfinished = set(datastore.list_images()), set(datastore.get_unlabeled_images())
    return sorted(known.intersection(images), key=lambda image: (image not in unfinished, image))


def round_over(images: Iterable[str], work: Callable[[str], Outcome], *, name: str) -> dict[str, Outcome]:
    """Work on images one after the other, and log the progress, which clients see in the details of the task.

    Args:
        images: Their ids.
        work: Does the work on one image and returns its result.
        name: Name of the task in the log.

    Returns:
        The result for each image; ``{"error": sentence}`` if it failed.
    """
    results: dict[str, Outcome] = {}
    ids, failed = list(images), 0
    logger.info("%s: 0 of %d images done", name, len(ids))
    for image in ids:
        results[image] = _one(image, work, name)
        failed += "error" in results[image]
        logger.info("%s: %d of %d images done, %d of them failed", name, len(results), len(ids), failed)
    return results


def _one(image: str, work: Callable[[str], Outcome], name: str) -> Outcome:
    try:
        return work(image)
    except (HTTPException, TotalSpineSegError) as error:
        sentence = str(getattr(error, "detail", error))
        logger.warning("%s: image %s failed: %s", name, image, sentence)
        return {"error": sentence}
    except Exception as error:
        # A PACS may have stopped answering, or an image may have been removed. The other images still get their turn.
        logger.exception("%s: image %s failed", name, image)
        return {"error": f"Unexpected {type(error).__name__}. Details are in the server's log."}


class ImageScoring(ScoringMethod):  # type: ignore[misc]
    """A scoring method of MONAI Label that scores the images without a score.

    Args:
        description: The basis of the score, for clients.
        fill: ``fill(image_id)`` scores one image; an image that has a score keeps it.
    """

    def __init__(self, description: str, fill: Callable[[str], dict[str, Any]]) -> None:
        super().__init__(description)
        self._fill = fill

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, dict[str, Any]]:
        """Score the images of a request.

        Args:
            request: ``images`` ("all", "labeled", "unlabeled", or a list of ids), as in batch inference.
            datastore: The studies.

        Returns:
            ``doubt`` for each image id; ``{"skipped": True}`` if it had a score, ``{"error": sentence}`` if it failed.
        """
        images = unfinished_first(BatchInferTask().get_images(request, datastore), datastore)
        return round_over(images, self._fill, name=SCORING)


class SpineBatch(BatchInferTask):  # type: ignore[misc]
    """Batch inference that also runs without a GPU, continues where it ended, and survives a bad image.

    Args:
        done: ``done(request)`` returns the result of an earlier, identical request for the same image with the same
            weights, or None.
    """

    def __init__(self, done: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> None:
        self._done = done

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Predict the images of a request and store the results under its tag; images that are done already are
        skipped.

        Args:
            request: ``model``, ``images`` ("all", "labeled", "unlabeled"), ``label_tag``, ``max_batch_size``.
            datastore: The studies.
            infer: The app's inference.

        Returns:
            The reply for each image id: ``{"skipped": True}`` if it was done before, ``{"error": sentence}`` if it
            failed.
        """
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        limit = int(request.get("max_batch_size") or 0)
        images = unfinished_first(self.get_images(request, datastore), datastore)

        def work(image: str) -> dict[str, Any]:
            one = {**request, "image": image, "save_label": True, "label_tag": tag}
            before = self._done(one)
            if before is not None:
                return before
            result = infer(one)
            file = result.pop("file", None)
            if file:
                Path(file).unlink(missing_ok=True)
            return result

        return round_over(images[:limit] if limit > 0 else images, work, name=BATCH)


def is_result_of(info: Mapping[str, Any], request: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
    """Return whether a stored label is what a request would produce.

    Args:
        info: Information about the label. Not modified.
        request: ``model`` and the settings. Not modified.
        versions: Weights in use, by step. Not modified.
    """
    params = info.get("params")
    if not isinstance(params, Mapping) or info.get("model") != request.get("model"):
        return False
    models = params.get("models")
    in_use = isinstance(models, Mapping) and all(versions.get(step) == models[step] for step in models)
    return in_use and params.get("settings") == read_settings(request).as_json()
