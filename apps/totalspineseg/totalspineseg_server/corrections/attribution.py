"""Find the image to which a submission belongs, and the prediction that it corrects, if the client does not say.

3D Slicer keeps the name that a volume had when it was opened, and names no prediction.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.comparison import Corrected, compare
from totalspineseg_server.corrections.correction_store import Received
from totalspineseg_server.corrections.predictions import DrawnMaps, KeptMaps, PredictionRecord, PredictionStore
from totalspineseg_server.corrections.receipts import Claims
from totalspineseg_server.errors import LabelError, UnknownImageError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.segments import Submission

AT_ONCE_SECONDS: Final = 60.0
"""Longest time between the upload of a volume and its label in *Submit Label*: writing and sending a large label takes
this long."""


@dataclass
class _Volumes:
    """Uploads and offers of all clients with the same name.

    Attributes:
        last: The image uploaded last; empty after a label was sent or another image was offered.
        since: Time of that upload, monotonic, s.
        opened: Images that these clients uploaded or were offered.
        refused: Name -> hashes of the volumes that were refused under it.
        renamed: Name -> ids of the images that such volumes became later.
    """

    last: str = ""
    since: float = -math.inf
    opened: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    renamed: dict[str, set[str]] = field(default_factory=dict)


class Uploads:
    """The volumes that clients uploaded or tried to upload, and the images that they were offered.

    If a reader renames a volume in 3D Slicer and presses *Submit Label*, the volume is uploaded under the new name, but
    the label is sent for the old name, which may belong to another patient's image. Without sign-in most clients have
    the same name, so the uploads of a client do not prove whose label is sent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, _Volumes] = {}

    def record_upload(self, client: str, image_id: str, sha256: str) -> None:
        """Record that a client uploaded a volume.

        Args:
            client: Its name.
            image_id: The image that the volume became.
            sha256: Hash of the file.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            known.last, known.since = image_id, time.monotonic()
            known.opened.add(image_id)
            for name, refused in known.refused.items():
                if sha256 in refused and name != image_id:
                    known.renamed.setdefault(name, set()).add(image_id)

    def record_refusal(self, client: str, image_id: str, sha256: str) -> None:
        """Record that a client tried to upload a volume under the name of another image."""
        with self._lock:
            self._of.setdefault(client, _Volumes()).refused.setdefault(image_id, set()).add(sha256)

    def record_offer(self, client: str, image_id: str) -> None:
        """Record that a client was offered an image ("" for none), which clears its scene."""
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            known.last = ""
            known.opened.add(image_id)

    def claims(self, client: str, image_id: str) -> Claims:
        """Return the other images to which a label from a client may belong.

        Args:
            client: Its name.
            image_id: The image for which it is sent.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            recent = time.monotonic() - known.since < AT_ONCE_SECONDS
            uploaded = known.last if recent and image_id not in known.opened else ""
            known.last = ""
            return Claims(tuple(sorted(known.renamed.get(image_id, ()))), uploaded)


def resolve_image(image_id: str, claims: Claims, exists: Callable[[str], bool], fits: Callable[[str], bool]) -> str:
    """Return the image to which a label belongs.

    A label is filed under another image than the one it was sent for only if this client's upload was refused under
    that name, and if the label is on the grid of the volume that the client uploaded instead.

    Args:
        image_id: The image it was sent for.
        claims: Other images that it may belong to.
        exists: Whether an image exists.
        fits: Whether the label is on the grid of an image, which need not exist.

    Raises:
        UnknownImageError: It belongs to no existing image.
        LabelError: It may belong to several images.
    """
    others = {*claims.renamed, claims.uploaded} - {"", image_id}
    fitting = sorted(filter(fits, others))
    is_known = exists(image_id)
    if len(fitting) == 1 and fitting[0] in claims.renamed and (fitting[0] == claims.uploaded or not fits(image_id)):
        return fitting[0]
    if not is_known:
        raise UnknownImageError(image_id)
    if fitting:
        raise LabelError(answers.which_image(image_id, fitting))
    return image_id


class Attribution:
    """Finds the prediction that a submission corrects.

    A prediction made in a session belongs to no image of the studies, because the volume is uploaded only when the
    label is submitted; and files are renamed. Therefore a prediction counts for an image if it was made for the same
    content, whatever the name of the image was.

    Args:
        predictions: All records.
        maps: Recent output of the networks, by the content of the image.
    """

    def __init__(self, predictions: PredictionStore, maps: DrawnMaps) -> None:
        self._predictions = predictions
        self._maps = maps

    def require_of_image(self, received: Received) -> None:
        """Check that a label was sent for the image of the prediction that it corrects, if it names one.

        Series of a patient may have the same grid, so the grid does not prove it.

        Raises:
            LabelError: It corrects a prediction for an image with other content.
        """
        image_id, stated = received.image_id, _stated(received)
        other = None if not stated or self._predictions.find(image_id, stated) else self._predictions.anywhere(stated)
        if other is not None and other.image and other.image_sha256 != received.image_sha256:
            raise LabelError(answers.other_image(image_id, other.image))

    def likely(self, received: Received) -> PredictionRecord | None:
        """Return the prediction that was probably corrected, without looking at the label.

        Args:
            received: The submission.

        Returns:
            The prediction that the client named, or this client's newest one, or the newest one; None if there is none.
        """
        if (record := self._stated(received)) is not None:
            return record
        listed = self._predictions.latest(received.image_id, *received.sender.names)
        return self._looked_at(listed) if listed else next(self._of_content(received), None)

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
            return self._looked_at(record)
        other = self._predictions.anywhere(stated)
        return self._looked_at(other) if other is not None and other.image_sha256 == received.image_sha256 else None

    def _looked_at(self, record: PredictionRecord) -> PredictionRecord:
        """Return the prediction whose levels a reader saw: for a review, the one under review."""
        found = self._predictions.find(record.image, record.reviewed, record.image_sha256) if record.reviewed else None
        return found or record

    def _of_content(self, received: Received) -> Iterator[PredictionRecord]:
        """Yield the recent predictions for the content of the image, newest first."""
        for maps in self._maps.newest_first(received.image_sha256):
            if record := self._record_of(maps, received):
                yield record

    def _record_of(self, maps: KeptMaps, received: Received) -> PredictionRecord | None:
        """Return the record of a prediction, under the present or former name of the image, or outside the studies."""
        names = dict.fromkeys((received.image_id, maps.image, ""))
        found = (self._predictions.find(name, maps.prediction, received.image_sha256) for name in names)
        return next((record for record in found if record), None)


def _stated(received: Received) -> str:
    """Return the id of the prediction that the client names; "" for none."""
    stated = received.receipt.params.get("prediction")
    return stated if isinstance(stated, str) else ""
