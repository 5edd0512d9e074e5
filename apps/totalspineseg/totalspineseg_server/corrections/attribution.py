"""Find the prediction that a submission corrects, by what was sent where the client does not name it."""

from collections.abc import Iterator
from dataclasses import dataclass

from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.correction_store import Received
from totalspineseg_server.corrections.drawn_maps import DrawnMaps, KeptMaps
from totalspineseg_server.corrections.predictions import PredictionRecord, PredictionStore
from totalspineseg_server.corrections.renames import Compared, compare
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.segments import Submission


@dataclass(frozen=True)
class Corrected:
    """The prediction that a submission corrects.

    Attributes:
        prediction: Its record.
        compared: The submission beside it; None if its maps were deleted or cannot be compared.
    """

    prediction: PredictionRecord
    compared: Compared | None


class Attribution:
    """Finds the prediction that a submission corrects.

    A prediction made in a session belongs to no image of the studies, because the volume is uploaded only when the
    label is submitted; and files are renamed. Therefore a prediction counts for an image if it was made for the same
    content, whatever the image was called.

    Args:
        predictions: All records.
        maps: Recent output of the networks, by the content of the image.
    """

    def __init__(self, predictions: PredictionStore, maps: DrawnMaps) -> None:
        self._predictions = predictions
        self._maps = maps

    def require_of_image(self, received: Received) -> None:
        """Check that a label that names the prediction it corrects was sent for that prediction's image.

        Series of a patient share grids, so the grid alone does not tell.

        Raises:
            LabelError: It corrects a prediction for an image with other content.
        """
        image_id, stated = received.image_id, _stated(received)
        other = None if not stated or self._predictions.find(image_id, stated) else self._predictions.anywhere(stated)
        if other is not None and other.image and other.image_sha256 != received.image_sha256:
            raise LabelError(answers.other_image(image_id, other.image))

    def likely(self, received: Received) -> PredictionRecord | None:
        """Return the prediction that was probably corrected, judged without the label.

        Args:
            received: The submission.

        Returns:
            The one that the client named, else this client's newest one, else the newest one; None if there is none.
        """
        if (record := self._stated(received)) is not None:
            return record
        listed = self._predictions.latest(received.image_id, *received.sender.names)
        return listed or next(self._of_content(received), None)

    def corrected(self, received: Received, submission: Submission, grid: Grid) -> Corrected | None:
        """Return the prediction whose segments a submission contains.

        Readers cannot be told apart for certain, since most clients use the name that their program was installed with.
        This client's newest prediction may be somebody else's.

        Args:
            received: The submission.
            submission: The label as read. Not modified.
            grid: Grid of the image.

        Returns:
            The one that the client named; else the recent one for this content with the most segments that kept their
            names (if equal, this client's, then the newest); None if nothing can be compared.
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
        """Return the prediction that a client names, if it was made for this image or for the same content."""
        if not (stated := _stated(received)):
            return None
        if (record := self._predictions.find(received.image_id, stated)) is not None:
            return record
        other = self._predictions.anywhere(stated)
        return other if other is not None and other.image_sha256 == received.image_sha256 else None

    def _of_content(self, received: Received) -> Iterator[PredictionRecord]:
        """Yield the recent predictions for the content of the image, newest first."""
        for maps in self._maps.newest_first(received.image_sha256):
            if record := self._record_of(maps, received):
                yield record

    def _record_of(self, maps: KeptMaps, received: Received) -> PredictionRecord | None:
        """Return the record of a prediction, found under the image's present or former name or outside the studies."""
        names = dict.fromkeys((received.image_id, maps.image, ""))
        found = (self._predictions.find(name, maps.prediction, received.image_sha256) for name in names)
        return next((record for record in found if record), None)


def _stated(received: Received) -> str:
    """Return the id of the prediction that the client names; "" for none."""
    stated = received.receipt.params.get("prediction")
    return stated if isinstance(stated, str) else ""
