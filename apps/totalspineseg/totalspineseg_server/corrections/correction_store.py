"""Store all corrections, append-only: each with the file as it was sent, its codes, and a record.

``<history>/corrections/<image>/<UTC time>-<random>/`` holds ``raw<ending>``, ``received.json`` (see
``corrections.receipts``), ``codes.nii.gz`` (if accepted) and ``record.json``. An entry appears complete or not at all,
and is never changed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from totalspineseg_server.corrections import history
from totalspineseg_server.corrections.predictions import PredictionRecord
from totalspineseg_server.corrections.receipts import Receipt, Sender
from totalspineseg_server.corrections.submission import Mapped
from totalspineseg_server.errors import StorageError, TotalSpineSegError
from totalspineseg_server.files import from_fields, move_folder, read_json, staged_folder, write_json
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.io.volumes import read_labels, write_volume

logger = logging.getLogger(__name__)

RECORD_FILE = "record.json"
CODES_FILE = "codes.nii.gz"
CHOSEN_PARAMETER = "chosen"
"""Parameter of a submission: see ``Correction.chosen``."""

Status = Literal["accepted", "parked"]


class Withdrawals:
    """The withdrawals below a history folder; append-only."""

    def __init__(self, root: Path) -> None:
        self._root = root / "withdrawals"

    def add(self, image_id: str, correction_id: str, user: str) -> None:
        """Withdraw a correction.

        Args:
            image_id: Image it belongs to.
            correction_id: A correction that was not withdrawn before.
            user: Who withdraws it; "admin" if the server runs without sign-in.

        Raises:
            StorageError: It could not be written; the correction still counts.
        """
        record = {"image": image_id, "correction": correction_id, "user": user, "received": history.now_text()}
        with staged_folder(self.folder(image_id) / correction_id) as entry:
            write_json(entry / RECORD_FILE, record)

    def of_image(self, image_id: str) -> frozenset[str]:
        """Return the ids of the corrections of an image that were withdrawn."""
        return frozenset(history.names(self.folder(image_id)))

    def folder(self, image_id: str) -> Path:
        """Return the folder that changes with the withdrawals of an image; it may not exist."""
        return self._root / history.folder_name(image_id)


@dataclass(frozen=True)
class Correction:
    """The record of one submission.

    Attributes:
        id: Sorts by time.
        image: Image id.
        status: "accepted", or "parked": kept, but never shown as finished or used for training.
        reason: Why it is parked; empty if accepted.
        step: 1 for a corrected step-1 map, 2 for a finished label; None if parked.
        tag: Tag under which it was submitted.
        user: See ``Sender``.
        client: See ``Sender``.
        file_name: See ``Sender``.
        raw: Name of the submitted file inside the entry.
        raw_sha256: Its hash.
        image_sha256: Hash of the image it belongs to.
        received: UTC, ISO 8601.
        prediction: Id, model and weights of the prediction it corrects; None if there was none.
        label_info: Segment names as they were sent.
        present: Codes that have voxels.
        unreviewed: Codes whose voxels the annotator did not check.
        overlap_voxels: Number of voxels that more than one segment claimed.
        findings: Findings on the label (see ``numbering.linter``); empty if parked.
        renumbered: How the other levels followed the one that was renamed (see ``corrections.renames``), or None.
        untouched: Codes left as predicted (see ``corrections.unreviewed``); empty in older records.
        renamed: Codes whose name was changed or confirmed while their outline was left as predicted.
        offered: How the image was offered to its author: ``strategy``, time (``ts``) and ``score``; None if it was
            opened otherwise.
        unchanged: Whether its author looked at the prediction and finished it as it was. Such a label is never used to
            compare models, and has a small share of its own in a training.
        dice: Name of each structure of the label or of its prediction -> Dice between the two under that name; empty if
            the prediction was not available, and in older records.
        chosen: Ids of the finished labels from which an administrator chose or merged it; empty if its sender made it.
        unconfirmed: Codes whose name its author left marked as doubtful; empty in older records. They are used neither
            for training nor for comparing models.
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
    dice: Mapping[str, float] = field(default_factory=dict)
    chosen: tuple[str, ...] = ()
    unconfirmed: tuple[int, ...] = ()

    @property
    def reader(self) -> str:
        """The author of the label, under the name that other readers see."""
        return self.client or self.user


@dataclass(frozen=True)
class Received:
    """A submission while it is read.

    Attributes:
        receipt: The submission as it was sent.
        folder: Its folder.
        image_id: Image it belongs to.
        image_sha256: Present hash of that image.
        prediction: The prediction that it corrects.
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
    """The corrections below a history folder; append-only, and safe with several writers at once.

    Attributes:
        root: Their folder, with a folder for each image; it may not exist.
        withdrawals: The corrections that were withdrawn.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "corrections"
        self.withdrawals = Withdrawals(root)

    def accept(
        self,
        received: Received,
        mapped: Mapped,
        grid: Grid,
        findings: tuple[Mapping[str, Any], ...] = (),
        renumbered: Mapping[str, Any] | None = None,
    ) -> Correction:
        """File a submission whose segments all have known names.

        Args:
            received: The submission.
            mapped: Its codes.
            grid: Grid of the image.
            findings: Findings on the label.
            renumbered: How other levels followed a renamed one.

        Raises:
            StorageError: It could not be written; it still waits.
        """
        record = self._record(received, "accepted", "", step=mapped.step, findings=findings)
        record |= {"present": mapped.present, "overlap_voxels": mapped.overlap_voxels, "renumbered": renumbered}
        record |= {"unreviewed": mapped.unreviewed, "untouched": mapped.untouched, "renamed": mapped.renamed}
        record |= {"unchanged": mapped.unchanged, "dice": mapped.dice, "unconfirmed": mapped.unconfirmed}
        write_volume(received.folder / CODES_FILE, mapped.codes, grid)
        return self._file(Correction(**record), received)

    def park(self, received: Received, error: TotalSpineSegError) -> Correction:
        """File a submission that cannot be used, with the reason.

        Raises:
            StorageError: It could not be written; it still waits.
        """
        return self._file(Correction(**self._record(received, "parked", str(error))), received)

    def ids(self, image_id: str) -> tuple[str, ...]:
        """Return the ids of all corrections of an image, oldest first."""
        return history.names(self._folder(image_id))

    def of_image(self, image_id: str) -> tuple[Correction, ...]:
        """Return all corrections of an image, parked ones too, oldest first; those that cannot be read are logged."""
        return tuple(_readable(self._folder(image_id), _log))

    def read(self, image_id: str, correction_id: str) -> Correction:
        """Return the record of a correction.

        Raises:
            StorageError: It cannot be read.
        """
        return _read(self._folder(image_id) / correction_id)

    def any_of(self, image_id: str) -> bool:
        """Return whether an image has a correction, even a parked or damaged one."""
        return bool(history.entries(self._folder(image_id)))

    def all(self) -> Iterator[Correction]:
        """Yield all corrections of all images; those that cannot be read are logged."""
        return self.readable(_log)

    def readable(self, on_damaged: Callable[[str, StorageError], None]) -> Iterator[Correction]:
        """Yield all corrections; a damaged record is reported (image folder and reason) and skipped."""
        for folder in history.entries(self.root):
            yield from _readable(folder, on_damaged)

    def in_force(self, image_id: str) -> tuple[Correction, ...]:
        """Return the accepted corrections of an image that were not withdrawn, oldest first, without damaged ones."""
        withdrawn = self.withdrawals.of_image(image_id)
        return tuple(c for c in self.of_image(image_id) if c.status == "accepted" and c.id not in withdrawn)

    def latest_accepted(self, image_id: str, step: int = 2) -> Correction | None:
        """Return the newest accepted correction of an image for a step, unless it was withdrawn, or None."""
        return next((c for c in reversed(self.in_force(image_id)) if c.step == step), None)

    def folders(self, image_id: str) -> tuple[Path, Path]:
        """Return the folders that change with the corrections of an image and with their withdrawals."""
        return self._folder(image_id), self.withdrawals.folder(image_id)

    def codes(self, correction: Correction) -> LabelArray:
        """Return the codes of an accepted correction; see ``volume``."""
        codes: LabelArray = self.volume(correction).data
        return codes

    def volume(self, correction: Correction) -> Volume:
        """Return the codes of an accepted correction, on the grid of its image.

        Raises:
            ValueError: The correction is parked.
            ImageError: They cannot be read.
        """
        if correction.status != "accepted":
            raise ValueError(f"expected an accepted correction, got {correction.status!r} ({correction.reason})")
        return read_labels(self.path(correction) / CODES_FILE)

    def path(self, correction: Correction) -> Path:
        """Return the folder of a correction."""
        return self._folder(correction.image) / correction.id

    def _folder(self, image_id: str) -> Path:
        return self.root / history.folder_name(image_id)

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
            "chosen": _ids(receipt.params.get(CHOSEN_PARAMETER)),
        }

    def _file(self, correction: Correction, received: Received) -> Correction:
        # The entry appears complete, because everything is written before its folder moves.
        write_json(received.folder / RECORD_FILE, asdict(correction))
        move_folder(received.folder, self._folder(correction.image) / received.folder.name)
        return correction


def _readable(folder: Path, on_damaged: Callable[[str, StorageError], None]) -> Iterator[Correction]:
    """Yield the corrections in the folder of an image; a damaged record is reported and skipped."""
    for entry in history.entries(folder):
        try:
            correction = _read(entry)
        except StorageError as error:
            on_damaged(folder.name, error)
        else:
            yield correction


def _read(entry: Path) -> Correction:
    record = read_json(entry / RECORD_FILE)
    return from_fields(Correction, record, f"of correction {entry.name} in {entry.parent}")


def _ids(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def _log(image: str, error: StorageError) -> None:
    logger.warning("A correction of %s cannot be read and is skipped: %s", image, error)
