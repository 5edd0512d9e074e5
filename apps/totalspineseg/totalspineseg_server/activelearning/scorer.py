"""Score images by their stored predictions, or by a new prediction if there is none."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from totalspineseg_server.activelearning.scores import WHOLE_MODEL, Refused, Score, Scores
from totalspineseg_server.corrections.predictions import PredictionMaps
from totalspineseg_server.errors import ImageError, NoSpineError, StorageError, UnknownImageError, WeightsError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.infers.disagreement import scale_difference
from totalspineseg_server.infers.services import Services, pair_in_use
from totalspineseg_server.io.volumes import read_image

logger = logging.getLogger(__name__)


class Scorer:
    """Returns the stored scores of the studies' images, and computes missing ones.

    Args:
        scores: Stored scores.
        services: Networks, and records of predictions.
        infer: Runs a model as a request does; this calls ``predicted`` or ``refused``.
    """

    def __init__(
        self,
        scores: Scores,
        services: Services,
        infer: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._scores = scores
        self._services = services
        self._infer = infer

    def known(self, images: Iterable[str]) -> dict[str, Score]:
        """Return image -> its score with any weights, for the images that have one."""
        found = {image: self._scores.of(image, self._services.studies.fingerprint(image)) for image in images}
        return {image: score for image, score in found.items() if score is not None}

    def current(self, image_id: str) -> Score | None:
        """Return the score of an image with the weights in use, or None.

        Raises:
            WeightsError: No weights can be used.
        """
        score = self._scores.of(image_id, self._services.studies.fingerprint(image_id))
        return score if score is not None and dict(score.versions) == self.versions() else None

    def versions(self) -> dict[str, str]:
        """Return the weights in use, by step.

        Raises:
            WeightsError: There are no weights.
        """
        return {f"step{step}": self._services.networks.version(step) for step in (1, 2)}

    def progress(self, images: Iterable[str]) -> dict[str, int]:
        """Return how many images there are, how many have a score by the weights in use, and how many failed.

        Without weights no image counts as scored.
        """
        return _progress(self._known(images))

    def round(self, images: Iterable[str], begun: str) -> dict[str, Any]:
        """Return the progress of a round that takes the images in this order.

        Args:
            images: Their ids, in the order in which they are predicted.
            begun: When the round began, UTC, ISO 8601.

        Returns:
            As ``progress``, with ``current`` (the image that is predicted now, empty at the end) and ``new`` (number of
            images that this round has scored).
        """
        scores = self._known(images)
        new = sum(score is not None and score.created >= begun for score in scores.values())
        current = next((image for image, score in scores.items() if score is None), "")
        return {**_progress(scores), "current": current, "new": new}

    def _known(self, images: Iterable[str]) -> dict[str, Score | None]:
        try:
            return {image: self.current(image) for image in images}
        except WeightsError:
            return dict.fromkeys(images)

    def predicted(self, image_id: str, fingerprint: str, report: Mapping[str, Any]) -> None:
        """Store the score of an image that was just predicted, unless it has one with these weights.

        If the score cannot be stored, this is only logged, because the prediction does not need it.

        Args:
            image_id: The image.
            fingerprint: The image's fingerprint before it was read.
            report: The prediction's report. Not modified.
        """
        sha256, versions = str(report["image_sha256"]), dict(report["models"])
        if not fingerprint:
            return
        try:
            before = self._scores.of(image_id, fingerprint)
            if before is None or dict(before.versions) != versions:
                self._derive(image_id, fingerprint, sha256, versions)
        except StorageError as error:
            logger.warning("The score of image %s was not stored: %s", image_id, error)

    def refused(self, image_id: str, fingerprint: str, file: Path, error: Exception) -> None:
        """Store a score that says that an image has no usable result.

        Args:
            image_id: The image.
            fingerprint: The image's fingerprint before it was read.
            file: The image's file.
            error: The reason. Nothing is stored if it does not lie in the image itself.
        """
        if not fingerprint or not isinstance(error, NoSpineError | ImageError):
            return
        reason: Refused = "no spine" if isinstance(error, NoSpineError) else "image"
        try:
            score = Score(image_id, fingerprint, sha256_of(file), self.versions(), refused=reason, message=str(error))
            self._scores.keep(score)
        except (StorageError, WeightsError, OSError) as fault:
            logger.warning("The failure for image %s could not be stored: %s", image_id, fault)

    def fill(self, image_id: str) -> dict[str, Any]:
        """Score an image, unless it has a score with the weights in use.

        Returns:
            ``{"skipped": True}`` if it has one, else ``{"doubt": ..}``.

        Raises:
            UnknownImageError: There is no such image.
            StorageError: The prediction could not be recorded.
            HTTPException: The image cannot be predicted.
        """
        if self.current(image_id) is not None:
            return {"skipped": True}
        fingerprint = self._services.studies.fingerprint(image_id)
        score = self._derive(image_id, fingerprint, sha256_of(self._file(image_id)), self.versions())
        if score is None:
            self._predict(image_id)
            score = self._scores.of(image_id, fingerprint)
        if score is None:
            raise StorageError(
                f"The prediction for {image_id!r} could not be recorded; the server's log says why. Free disk space "
                "and start the scoring again."
            )
        return {"doubt": score.doubt}

    def fill_scale(self, image_id: str) -> dict[str, Any]:
        """Score an image, and measure how much its result changes if the image is scaled like that of a smaller person.

        Returns:
            ``{"skipped": True}`` if that is known, else ``{"doubt": ..}``.

        Raises:
            UnknownImageError: There is no such image.
            StorageError: The score could not be stored.
            WeightsError: The weights in use changed during the scoring.
            HTTPException: The image cannot be predicted.
        """
        self.fill(image_id)
        score = self.current(image_id)
        if score is None or score.refused or score.parts.scale is not None:
            return {"skipped": True}
        maps, image = self._maps(score), read_image(self._file(image_id))
        with self._services.lock:
            step1, step2 = pair_in_use(self._services.networks)
            if maps is None or {"step1": step1.version, "step2": step2.version} != dict(score.versions):
                raise WeightsError("The weights in use changed during the scoring. Start it again.")
            scale = scale_difference(image, maps.labels, maps.iso, step1, step2)
        score = replace(score, parts=replace(score.parts, scale=scale))
        self._scores.keep(score)
        return {"doubt": score.doubt}

    def _maps(self, score: Score) -> PredictionMaps | None:
        """Return the maps of the scored prediction; if they were deleted, the image is predicted again."""
        maps = self._services.maps
        found = maps.of_prediction(score.image_sha256, score.prediction)
        if found is None:
            self._predict(score.image)
            found = maps.latest(score.image_sha256, 2, score.versions)
        return found

    def _derive(self, image_id: str, fingerprint: str, image_sha256: str, versions: Mapping[str, str]) -> Score | None:
        score = self._scores.derive(image_id, fingerprint, image_sha256, versions)
        if score is not None:
            self._scores.keep(score)
        return score

    def _predict(self, image_id: str) -> None:
        result = self._infer({"model": WHOLE_MODEL, "image": image_id})
        Path(str(result["file"])).unlink(missing_ok=True)

    def _file(self, image_id: str) -> Path:
        file = self._services.studies.image_file(image_id)
        if file is None:
            raise UnknownImageError(image_id)
        return file


def _progress(scores: Mapping[str, Score | None]) -> dict[str, int]:
    found = [score for score in scores.values() if score is not None]
    return {"total": len(scores), "scored": len(found), "failed": sum(bool(score.refused) for score in found)}
