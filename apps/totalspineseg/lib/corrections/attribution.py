"""Which prediction a submission corrects: clients that do not say so leave it to be found by what they sent."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from lib.corrections.drawn_maps import DrawnMaps, KeptMaps
from lib.corrections.predictions import PredictionRecord, PredictionStore
from lib.corrections.renames import Compared, compare, left_as_drawn
from lib.corrections.store import Received
from lib.errors import LabelError, StorageError
from lib.geometry import Grid
from lib.segments import Submission

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corrected:
    """What a submission corrects.

    Attributes:
        prediction: Its record.
        compared: The submission beside it; None where its maps are no longer kept or cannot be compared.
    """

    prediction: PredictionRecord
    compared: Compared | None


class Attribution:
    """Finds predictions by what is known of a submission.

    A prediction in a session belongs to no image of the studies: who submits its label has uploaded the volume in
    between; and files are renamed. So predictions count for an image if they were made for what it holds, whatever it
    was called.

    Args:
        predictions: All records.
        maps: What the networks drew lately, by the content of the image.
    """

    def __init__(self, predictions: PredictionStore, maps: DrawnMaps) -> None:
        self._predictions = predictions
        self._maps = maps

    def require_of_image(self, received: Received, stated: object) -> None:
        """Check that a label which says what it corrects was sent for that image; series of a patient share grids.

        Raises:
            LabelError: It corrects a prediction for another image, whose file is another one.
        """
        if not isinstance(stated, str) or not stated:
            return
        image_id = received.image_id
        try:
            other = None if self._predictions.find(image_id, stated) else self._predictions.anywhere(stated)
        except StorageError:
            return
        if other is not None and other.image and other.image_sha256 != received.image_sha256:
            raise LabelError(
                f"a label of image {image_id!r} is required, got one that corrects a prediction for {other.image!r}; "
                "send it for that image"
            )

    def likely(self, received: Received, stated: object) -> PredictionRecord | None:
        """The prediction that was corrected, as far as it can be told without the label.

        Args:
            received: The submission.
            stated: What came as ``prediction``.

        Returns:
            The one stated, else this client's newest one, else the newest; None where there is none or a record is
            damaged: what a reader did counts without it.
        """
        if (record := self._stated(received, stated)) is not None:
            return record
        try:
            listed = self._predictions.latest(received.image_id, *received.sender.names)
            return listed or next(self._of_content(received), None)
        except StorageError:
            logger.warning("which prediction was corrected is not known: the record of one is damaged")
            return None

    def corrected(self, received: Received, stated: object, submission: Submission, grid: Grid) -> Corrected | None:
        """The prediction whose segments a submission shows.

        Readers cannot be told apart for certain, since most clients go by the name their program was installed with. So
        this client's newest prediction may be somebody else's, whose names the label does not correct.

        Args:
            received: The submission.
            stated: What came as ``prediction``.
            submission: The label as read. Not modified.
            grid: Grid of the image.

        Returns:
            The one stated; else, of those made lately for what the image holds, the one with the most segments that
            have kept their names (of equal ones this client's, then the newest); None where nothing can be compared.
        """
        if (record := self._stated(received, stated)) is not None:
            maps = self._maps.of_prediction(received.image_sha256, record.id)
            return Corrected(record, None if maps is None else compare(submission, grid, maps))
        best, best_rank = None, (0, 0, False)
        for maps in self._maps.newest_first(received.image_sha256):
            record = self._record_of(maps, received.image_id)
            compared = None if record is None else compare(submission, grid, maps)
            if record is None or compared is None:
                continue
            rank = (*compared.likeness, record.client in received.sender.names)
            if best is None or rank > best_rank:
                best, best_rank = Corrected(record, compared), rank
        return best

    def left_as_drawn(self, image_sha256: str, submission: Submission, grid: Grid) -> tuple[int, int]:
        """How much of a prediction lately made for an image a submission shows unchanged; see ``renames``."""
        kept = self._maps.newest_first(image_sha256)
        return max((left_as_drawn(submission, grid, maps) for maps in kept), default=(0, 0))

    def _stated(self, received: Received, stated: object) -> PredictionRecord | None:
        """The prediction a client says it corrects, if it was made for this image or for what it holds."""
        if not isinstance(stated, str) or not stated:
            return None
        if (record := self._record(received.image_id, stated)) is not None:
            return record
        try:
            other = self._predictions.anywhere(stated)
        except StorageError as error:
            logger.warning("a prediction that was corrected is passed over: %s", error)
            return None
        return other if other is not None and other.image_sha256 == received.image_sha256 else None

    def _of_content(self, received: Received) -> Iterator[PredictionRecord]:
        """Predictions made lately for what the image holds; the newest first."""
        for maps in self._maps.newest_first(received.image_sha256):
            if record := self._record_of(maps, received.image_id):
                yield record

    def _record_of(self, maps: KeptMaps, image_id: str) -> PredictionRecord | None:
        """The record of what drew some maps, under the image's name now, its name then, or none."""
        names = dict.fromkeys((image_id, maps.image, ""))
        return next((record for name in names if (record := self._record(name, maps.prediction))), None)

    def _record(self, image_id: str, prediction_id: str) -> PredictionRecord | None:
        """A record; None where there is none, and for a damaged one."""
        try:
            return self._predictions.find(image_id, prediction_id)
        except StorageError as error:
            logger.warning("a prediction that may have been corrected is passed over: %s", error)
            return None
