"""Every correction anyone ever sent, append-only: the file as it came, its codes, and a record.

``<history>/corrections/<image>/<UTC time>-<random>/`` holds ``raw<ending>``, ``received.json`` (see
``lib.corrections.receipts``), ``codes.nii.gz`` (accepted ones) and ``record.json``. An entry appears whole or not at
all, and none is ever changed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lib.corrections import history
from lib.corrections.names import Mapped
from lib.corrections.predictions import PredictionRecord
from lib.corrections.receipts import Receipt, Sender
from lib.corrections.withdrawals import Withdrawals
from lib.errors import StorageError, TotalSpineSegError
from lib.fields import from_fields
from lib.geometry import Grid, LabelArray
from lib.volume_io import read_labels, write_volume

logger = logging.getLogger(__name__)

RECORD_FILE = "record.json"
CODES_FILE = "codes.nii.gz"

Status = Literal["accepted", "parked"]


@dataclass(frozen=True)
class Correction:
    """The record of one submission.

    Attributes:
        id: Sorts by time.
        image: Image id.
        status: "accepted", or "parked": kept, but never shown as finished nor trained on.
        reason: Why it is parked; empty when accepted.
        step: 1 for a corrected step-1 map, 2 for a finished label; None when parked.
        tag: Tag under which it was submitted.
        user: See ``Sender``.
        client: See ``Sender``.
        file_name: See ``Sender``.
        raw: Name of the file as it came, inside the entry.
        raw_sha256: Its hash.
        image_sha256: Hash of the image it belongs to.
        received: UTC, ISO 8601.
        prediction: Id, model and weights of the prediction it corrects; None when there was none.
        label_info: Segment names as they were sent.
        present: Codes that have voxels.
        unreviewed: Codes whose voxels the annotator did not check.
        overlap_voxels: Voxels more than one segment claimed.
        findings: What is odd about the label (see ``lib.numbering.lint``); empty when parked.
        renumbered: What followed the one level its author renamed (see ``lib.corrections.renames``), or None.
        untouched: Codes left as the prediction has them (see ``lib.corrections.untouched``); empty in older records.
        renamed: Codes whose outline was left as predicted under another name.
        offered: How its author had been offered the image: ``strategy``, time (``ts``) and ``score``, as noted with the
            image then; None where it was opened otherwise.
        unchanged: Whether its author looked at the prediction and finished it as it was. Such a label never judges, and
            trains with a small share of its own.
    """

    id: str
    image: str
    status: Status
    reason: str
    step: int | None
    tag: str
    user: str
    client: str
    file_name: str
    raw: str
    raw_sha256: str
    image_sha256: str
    received: str
    prediction: Mapping[str, Any] | None
    label_info: Any
    present: tuple[int, ...] = ()
    overlap_voxels: int = 0
    findings: tuple[Mapping[str, Any], ...] = ()
    unreviewed: tuple[int, ...] = ()
    renumbered: Mapping[str, Any] | None = None
    untouched: tuple[int, ...] = ()
    renamed: tuple[int, ...] = ()
    offered: Mapping[str, Any] | None = None
    unchanged: bool = False


@dataclass(frozen=True)
class Received:
    """A submission while it is judged.

    Attributes:
        receipt: What came.
        folder: Where it lies.
        image_id: Image it belongs to.
        image_sha256: Hash of that image as it is now.
        prediction: What it corrects.
        offered: See ``Correction``.
    """

    receipt: Receipt
    folder: Path
    image_id: str
    image_sha256: str
    prediction: PredictionRecord | None = None
    offered: Mapping[str, Any] | None = None

    @property
    def file(self) -> Path:
        """The submitted file."""
        return self.folder / self.receipt.raw

    @property
    def sender(self) -> Sender:
        """Who sent it."""
        return self.receipt.sender


class CorrectionStore:
    """Corrections below a history folder; append-only, safe under simultaneous writers.

    Attributes:
        withdrawals: Which of them were taken back.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "corrections"
        self.withdrawals = Withdrawals(root)

    def accept(
        self,
        received: Received,
        mapped: Mapped,
        grid: Grid,
        findings: tuple[Mapping[str, Any], ...] = (),
        renumbered: Mapping[str, Any] | None = None,
    ) -> Correction:
        """File a submission that could be read by name.

        Args:
            received: The submission.
            mapped: Its codes.
            grid: Grid of the image.
            findings: What is odd about the label.
            renumbered: What followed a renamed level.

        Raises:
            StorageError: It could not be written; it waits where it was.
        """
        record = self._record(received, "accepted", "", step=mapped.step, findings=findings)
        record |= {"present": mapped.present, "overlap_voxels": mapped.overlap_voxels, "renumbered": renumbered}
        record |= {"unreviewed": mapped.unreviewed, "untouched": mapped.untouched, "renamed": mapped.renamed}
        record |= {"unchanged": mapped.unchanged}
        write_volume(received.folder / CODES_FILE, mapped.codes, grid)
        return self._file(Correction(**record), received)

    def park(self, received: Received, error: TotalSpineSegError) -> Correction:
        """File a submission that could not be understood, with the reason.

        Raises:
            StorageError: It could not be written; it waits where it was.
        """
        return self._file(Correction(**self._record(received, "parked", str(error))), received)

    def ids(self, image_id: str) -> tuple[str, ...]:
        """Return the ids of all corrections of an image, oldest first."""
        return history.names(self._folder(image_id))

    def of_image(self, image_id: str) -> tuple[Correction, ...]:
        """Return all corrections of an image, oldest first, parked ones too; those that cannot be read are logged."""
        return tuple(_readable(self._folder(image_id), _log))

    def any_of(self, image_id: str) -> bool:
        """Whether an image has a correction, even a parked or damaged one."""
        return bool(history.entries(self._folder(image_id)))

    def all(self) -> Iterator[Correction]:
        """Yield all corrections of all images; those that cannot be read are logged."""
        return self.readable(_log)

    def readable(self, on_damaged: Callable[[str, StorageError], None]) -> Iterator[Correction]:
        """Like ``all``, but a damaged record is reported (image folder and reason) and passed over."""
        for folder in history.entries(self._root):
            yield from _readable(folder, on_damaged)

    def standing(self, image_id: str) -> tuple[Correction, ...]:
        """The accepted corrections of an image that nobody took back, oldest first; damaged ones are passed over."""
        withdrawn = self.withdrawals.of_image(image_id)
        return tuple(c for c in self.of_image(image_id) if c.status == "accepted" and c.id not in withdrawn)

    def latest_accepted(self, image_id: str, step: int = 2) -> Correction | None:
        """The newest accepted correction of an image for a step that nobody took back; None when there is none."""
        return next((c for c in reversed(self.standing(image_id)) if c.step == step), None)

    def codes(self, correction: Correction) -> LabelArray:
        """Codes of an accepted correction, on the grid of its image.

        Raises:
            ValueError: The correction is parked.
        """
        if correction.status != "accepted":
            raise ValueError(f"an accepted correction is required, got {correction.status!r} ({correction.reason})")
        labels: LabelArray = read_labels(self.path(correction) / CODES_FILE).data
        return labels

    def path(self, correction: Correction) -> Path:
        """The folder of a correction."""
        return self._folder(correction.image) / correction.id

    def _folder(self, image_id: str) -> Path:
        return self._root / history.folder_name(image_id)

    def _record(
        self,
        received: Received,
        status: Status,
        reason: str,
        *,
        step: int | None = None,
        findings: tuple[Mapping[str, Any], ...] = (),
    ) -> dict[str, Any]:
        prediction, receipt = received.prediction, received.receipt
        return {
            "id": receipt.id,
            "image": received.image_id,
            "status": status,
            "reason": reason,
            "step": step,
            "tag": receipt.tag,
            **asdict(receipt.sender),
            "raw": receipt.raw,
            "raw_sha256": receipt.raw_sha256,
            "image_sha256": received.image_sha256,
            "received": receipt.received,
            "prediction": None
            if prediction is None
            else {"id": prediction.id, "model": prediction.model, "versions": dict(prediction.versions)},
            "label_info": receipt.params.get("label_info"),
            "findings": findings,
            "offered": received.offered,
        }

    def _file(self, correction: Correction, received: Received) -> Correction:
        # The entry appears whole: everything is written before its folder moves.
        with history.storage_errors(received.folder):
            history.write_json(received.folder / RECORD_FILE, asdict(correction))
        history.move_entry(received.folder, self._folder(correction.image))
        return correction


def _readable(folder: Path, on_damaged: Callable[[str, StorageError], None]) -> Iterator[Correction]:
    """The corrections of an image's folder; a damaged record is reported and passed over."""
    for entry in history.entries(folder):
        try:
            correction = _read(entry)
        except StorageError as error:
            on_damaged(folder.name, error)
        else:
            yield correction


def _read(entry: Path) -> Correction:
    record = history.read_json(entry / RECORD_FILE)
    return from_fields(Correction, record, f"of correction {entry.name} in {entry.parent}")


def _log(image: str, error: StorageError) -> None:
    logger.warning("a correction of %s is passed over: %s", image, error)
