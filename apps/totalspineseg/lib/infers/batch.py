"""Run batch inference over the studies, one image after the other, on any device."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from lib.errors import TotalSpineSegError

logger = logging.getLogger(__name__)


class SpineBatch(BatchInferTask):  # type: ignore[misc]
    """Batch task that works without a GPU and goes on after a bad image; the host's own task does neither."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Predict the images the request names and save the results under its tag.

        Args:
            request: ``model``, ``images`` ("all", "labeled", "unlabeled"), ``label_tag``, ``max_batch_size``.
            datastore: The studies.
            infer: The app's inference.

        Returns:
            The reply by image id; ``{"error": sentence}`` where it failed.
        """
        known = set(datastore.list_images())
        images = sorted(image for image in self.get_images(request, datastore) if image in known)
        limit = int(request.get("max_batch_size") or 0)
        images = images[:limit] if limit > 0 else images
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        results: dict[str, dict[str, Any]] = {}
        for count, image in enumerate(images, start=1):
            results[image] = self._one({**request, "image": image, "save_label": True, "label_tag": tag}, infer)
            logger.info("Batch inference: %d of %d done", count, len(images))
        return results

    def _one(self, request: dict[str, Any], infer: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        try:
            result = infer(request)
        except (HTTPException, TotalSpineSegError) as error:
            sentence = str(getattr(error, "detail", error))
            logger.warning("Batch inference: image %s failed: %s", request["image"], sentence)
            return {"error": sentence}
        except Exception as error:
            # Go on with the others when a PACS stops answering or an image was removed in the meantime.
            logger.exception("Batch inference: image %s failed", request["image"])
            return {"error": f"Unexpected error ({type(error).__name__}). Details are in the server's log."}
        file = result.pop("file", None)
        if file:
            Path(file).unlink(missing_ok=True)
        return result
