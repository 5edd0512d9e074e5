"""Which prediction a submission corrects: clients that do not say so leave it to be found by what they sent."""

from collections.abc import Iterator
from dataclasses import dataclass

from lib.corrections.drawn_maps import DrawnMaps, KeptMaps
from lib.corrections.predictions import PredictionRecord, PredictionStore
from lib.corrections.renames import Compared, compare
from lib.corrections.store import Received
from lib.errors import LabelError
from lib.geometry import Grid
from lib.segments import Submission


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

    def require_of_image(self, received: Received) -> None:
        """Check that a label which says what it corrects was sent for that image; series of a patient share grids.

        Raises:
            LabelError: It corrects a prediction for another image, whose file is another one.
        """
        image_id, stated = received.image_id, _stated(received)
        other = None if not stated or self._predictions.find(image_id, stated) else self._predictions.anywhere(stated)
        if other is not None and other.image and other.image_sha256 != received.image_sha256:
            raise LabelError(
                f"a label of image {image_id!r} is required, got one that corrects a prediction for {other.image!r}; "
                "send it for that image"
            )

    def likely(self, received: Received) -> PredictionRecord | None:
        """Return the prediction that was corrected, as far as that is known without the label.

        Args:
            received: The submission.

        Returns:
            The one stated, else this client's newest one, else the newest; None where there is none.
        """
        if (record := self._stated(received)) is not None:
            return record
        listed = self._predictions.latest(received.image_id, *received.sender.names)
        return listed or next(self._of_content(received), None)

    def corrected(self, received: Received, submission: Submission, grid: Grid) -> Corrected | None:
        """The prediction whose segments a submission shows.

        Readers cannot be told apart for certain, since most clients go by the name their program was installed with. So
        this client's newest prediction may be somebody else's, whose names the label does not correct.

        Args:
            received: The submission.
            submission: The label as read. Not modified.
            grid: Grid of the image.

        Returns:
            The one stated; else, of those made lately for what the image holds, the one with the most segments that
            have kept their names (of equal ones this client's, then the newest); None where nothing can be compared.
        """
        if (record := self._stated(received)) is not None:
            maps = self._maps.of_prediction(received.image_sha256, record.id)
            return Corrected(record, None if maps is None else compare(submission, grid, maps))
        best, best_rank = None, (0, 0, False)
        for maps in self._maps.newest_first(received.image_sha256):
            record = self._record_of(maps, received)
            compared = None if record is None else compare(submission, grid, maps)
            if record is None or compared is None:
                continue
            rank = (*compared.likeness, record.client in received.sender.names)
            if best is None or rank > best_rank:
                best, best_rank = Corrected(record, compared), rank
        return best

    def _stated(self, received: Received) -> PredictionRecord | None:
        """Return the prediction a client says it corrects, if it was made for this image or for what it holds."""
        if not (stated := _stated(received)):
            return None
        if (record := self._predictions.find(received.image_id, stated)) is not None:
            return record
        other = self._predictions.anywhere(stated)
        return other if other is not None and other.image_sha256 == received.image_sha256 else None

    def _of_content(self, received: Received) -> Iterator[PredictionRecord]:
        """Predictions made lately for what the image holds; the newest first."""
        for maps in self._maps.newest_first(received.image_sha256):
            if record := self._record_of(maps, received):
                yield record

    def _record_of(self, maps: KeptMaps, received: Received) -> PredictionRecord | None:
        """The record of what drew some maps, under the image's name now, its name then, or none."""
        names = dict.fromkeys((received.image_id, maps.image, ""))
        found = (self._predictions.find(name, maps.prediction, received.image_sha256) for name in names)
        return next((record for record in found if record), None)


def _stated(received: Received) -> str:
    """Return the id of the prediction that a client says it corrects; "" for none."""
    stated = received.receipt.params.get("prediction")
    return stated if isinstance(stated, str) else ""
