"""Predict all images of the studies, one after the other, on any device."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from totalspineseg_server.activelearning.rounds import round_over, unfinished_first
from totalspineseg_server.infers.settings import read_settings

NAME = "batch inference"


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

        return round_over(images[:limit] if limit > 0 else images, work, name=NAME)


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
