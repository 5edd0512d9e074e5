"""Fills in the scores of images: from records where there are any, else by a prediction."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.activelearning.scores import WHOLE_MODEL, Refused, Score, Scores
from lib.corrections.drawn_maps import KeptMaps
from lib.corrections.history import sha256_of
from lib.errors import ImageError, NoSpineError, StorageError, UnknownImageError, WeightsError
from lib.infers.disagreement import scale_difference
from lib.infers.services import Services, pair_in_use
from lib.volume_io import read_image

logger = logging.getLogger(__name__)


class Scorer:
    """Scores of the images of the studies.

    Args:
        scores: Where they are kept.
        services: What predictions are made with, and their records.
        infer: Runs a model, as the app does; it calls ``predicted`` or ``refused`` itself.
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
        """Return the scores of images as they are now, whatever weights they are of, where there are any."""
        found = {image: self._scores.of(image, self._services.studies.fingerprint(image)) for image in images}
        return {image: score for image, score in found.items() if score is not None}

    def current(self, image_id: str) -> Score | None:
        """Return the score of an image by the weights in use; None where it has none.

        Raises:
            WeightsError: No weights can be used.
        """
        score = self._scores.of(image_id, self._services.studies.fingerprint(image_id))
        return score if score is not None and dict(score.versions) == self.versions() else None

    def versions(self) -> dict[str, str]:
        """Return the weights in use, by step.

        Raises:
            WeightsError: There are none.
        """
        return {f"step{step}": self._services.networks.version(step) for step in (1, 2)}

    def progress(self, images: Iterable[str]) -> dict[str, int]:
        """Return how many images there are, how many have a score by the weights in use, and of how many of these
        nothing could be predicted; without weights none has."""
        ids = list(images)
        try:
            scores = [score for image in ids if (score := self.current(image)) is not None]
        except WeightsError:
            scores = []
        return {"total": len(ids), "scored": len(scores), "failed": sum(bool(score.refused) for score in scores)}

    def predicted(self, image_id: str, fingerprint: str, report: Mapping[str, Any]) -> None:
        """Keep the score of an image that was just predicted, unless it has one by these weights.

        A prediction is good without: what cannot be kept is logged.

        Args:
            image_id: The image.
            fingerprint: Its fingerprint before it was read.
            report: Of the prediction. Not modified.
        """
        sha256, versions = str(report["image_sha256"]), dict(report["models"])
        if not fingerprint:
            return
        try:
            before = self._scores.of(image_id, fingerprint)
            if before is None or dict(before.versions) != versions:
                self._derive(image_id, fingerprint, sha256, versions)
        except StorageError as error:
            logger.warning("a score is not kept: %s", error)

    def refused(self, image_id: str, fingerprint: str, file: Path, error: Exception) -> None:
        """Keep that an image gives no result, as the score of one whose result is of no use.

        Args:
            image_id: The image.
            fingerprint: Its fingerprint before it was read.
            file: Its file.
            error: Why. Nothing is kept unless that is a property of the image.
        """
        if not fingerprint or not isinstance(error, NoSpineError | ImageError):
            return
        reason: Refused = "no spine" if isinstance(error, NoSpineError) else "image"
        try:
            score = Score(image_id, fingerprint, sha256_of(file), self.versions(), refused=reason, message=str(error))
            self._scores.keep(score)
        except (StorageError, WeightsError, OSError) as fault:
            logger.warning("it is not kept that image %s gives no result: %s", image_id, fault)

    def fill(self, image_id: str) -> dict[str, Any]:
        """Score an image that has no score by the weights in use.

        Returns:
            ``{"skipped": True}`` where it has one, else its ``doubt``.

        Raises:
            UnknownImageError: There is no such image.
            StorageError: The prediction could not be recorded.
            HTTPException: It cannot be predicted.
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
        """Score an image, and look how much its result changes when it is taken for one of a smaller person.

        Returns:
            ``{"skipped": True}`` where that is known, else its ``doubt``.

        Raises:
            UnknownImageError: There is no such image.
            StorageError: It could not be kept.
            WeightsError: Other weights came into use meanwhile.
            HTTPException: It cannot be predicted.
        """
        self.fill(image_id)
        score = self.current(image_id)
        if score is None or score.refused or score.parts.scale is not None:
            return {"skipped": True}
        kept, image = self._maps(score), read_image(self._file(image_id))
        with self._services.lock:
            step1, step2 = pair_in_use(self._services.networks)
            if kept is None or {"step1": step1.version, "step2": step2.version} != dict(score.versions):
                raise WeightsError("Other weights came into use during the scoring. Start it again.")
            scale = scale_difference(image, kept.labels, kept.iso, step1, step2)
        score = replace(score, parts=replace(score.parts, scale=scale))
        self._scores.keep(score)
        return {"doubt": score.doubt}

    def _maps(self, score: Score) -> KeptMaps | None:
        """The maps of what was scored; it is predicted again where they are not kept any more."""
        maps = self._services.maps
        kept = maps.of_prediction(score.image_sha256, score.prediction)
        if kept is None:
            self._predict(score.image)
            kept = maps.latest(score.image_sha256, 2, score.versions)
        return kept

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
