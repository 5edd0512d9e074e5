"""Store what readers decided about images, append-only: corrections, their withdrawals, and rejections of results.

``<history>/corrections/<image>/<UTC time>-<random>/`` holds ``raw<ending>``, ``received.json`` (see
``corrections.receipts``), ``codes.nii.gz`` (if accepted) and ``record.json``. An entry appears complete or not at all,
and is never changed.

``<history>/rejections/<image>/<id>/record.json`` rejects a result with a reason, so that the scan must be drawn,
or takes the previous rejection back.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from totalspineseg_server.corrections import answers, ids
from totalspineseg_server.corrections.image_records import Remembered
from totalspineseg_server.corrections.receipts import Sender
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import move_folder, staged_folder, write_json
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.io.volumes import read_labels, write_volume

logger = logging.getLogger(__name__)

CODES_FILE = "codes.nii.gz"
FINAL_TAG: Final = "final"
"""Datastore tag of a finished label, whose names are certain. Clients that state no tag get this one."""
STEP1_TAG: Final = "step1"
"""Datastore tag of corrected step-1 maps: input of step 2, never a finished label."""
READER_TAGS: Final = (STEP1_TAG, FINAL_TAG)
"""Datastore tags that only submissions of readers may have; others are for predictions and work in progress."""
SAFE_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Status = Literal["accepted", "parked"]


def is_safe_tag(tag: str) -> bool:
    """Return whether a label tag is a plain word."""
    return SAFE_TAG.fullmatch(tag) is not None


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
        record = {"image": image_id, "correction": correction_id, "user": user, "received": ids.now_text()}
        with staged_folder(self.folder(image_id) / correction_id) as entry:
            write_json(entry / ids.RECORD_FILE, record)

    def of_image(self, image_id: str) -> frozenset[str]:
        """Return the ids of the corrections of an image that were withdrawn."""
        return frozenset(ids.names(self.folder(image_id)))

    def folder(self, image_id: str) -> Path:
        """Return the folder that changes with the withdrawals of an image; it may not exist."""
        return self._root / ids.folder_name(image_id)


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
        prediction: Id, model and weights of the prediction it corrects; None if there was none. The id is empty if the
            prediction was made at another site.
        label_info: Segment names as they were sent.
        present: Codes that have voxels.
        unreviewed: Codes whose voxels the annotator did not check.
        overlap_voxels: Number of voxels that more than one segment claimed.
        findings: Findings on the label (see ``numbering.linter``); empty if parked.
        renumbered: How the other levels followed the one that was renamed (see ``corrections.comparison``), or None.
        untouched: Codes left as predicted (see ``corrections.comparison``); empty in older records.
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
    def unchecked(self) -> frozenset[int]:
        """Codes whose structure nobody checked, or whose name nobody confirmed; without its name a structure has no
        class."""
        return frozenset((*self.unreviewed, *self.unconfirmed))

    @property
    def reader(self) -> str:
        """The author of the label, under the name that other readers see."""
        return self.client or self.user

    @property
    def displayed_tag(self) -> str:
        """The datastore's tag under which it is shown; a step-1 map never replaces a finished label."""
        if self.step != 1:
            return self.tag
        return STEP1_TAG if self.tag in READER_TAGS else f"{self.tag}-{STEP1_TAG}"

    @property
    def message(self) -> str:
        """The answer to the author of an accepted label: first the effect of a rename, findings last."""
        return answers.submitted(
            self.step,
            len(self.present),
            renumbered=str(self.renumbered.get("message", "")) if self.renumbered else "",
            findings=[str(finding.get("message", "")) for finding in self.findings],
            is_finished=self.tag in READER_TAGS,
        )


class CorrectionStore:
    """The corrections below a history folder; append-only, and safe with several writers at once.

    Attributes:
        root: Their folder, with a folder for each image; it may not exist.
        withdrawals: The corrections that were withdrawn.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "corrections"
        self.withdrawals = Withdrawals(root)
        self._remembered: Remembered[tuple[Correction, ...]] = Remembered()

    def file(self, folder: Path, correction: Correction, codes: Volume | None = None) -> Correction:
        """Move a submission to the corrections of its image.

        Args:
            folder: Folder of the submission, with the file as it was sent.
            correction: Its record.
            codes: Its codes on the grid of the image; None if it is parked. Not modified.

        Returns:
            The record.

        Raises:
            StorageError: It could not be written; it still waits.
        """
        # The entry appears complete, because everything is written before its folder moves.
        if codes is not None:
            write_volume(folder / CODES_FILE, codes.data, codes.grid)
        write_json(folder / ids.RECORD_FILE, asdict(correction))
        move_folder(folder, self._folder(correction.image) / correction.id)
        return correction

    def ids(self, image_id: str) -> tuple[str, ...]:
        """Return the ids of all corrections of an image, oldest first."""
        return ids.names(self._folder(image_id))

    def of_image(self, image_id: str) -> tuple[Correction, ...]:
        """Return all corrections of an image, parked ones too, oldest first; those that cannot be read are logged."""
        return tuple(ids.records(Correction, ids.entries(self._folder(image_id)), "correction"))

    def read(self, image_id: str, correction_id: str) -> Correction:
        """Return the record of a correction.

        Raises:
            StorageError: It cannot be read.
        """
        return ids.read_record(Correction, self._folder(image_id) / correction_id, "correction")

    def any_of(self, image_id: str) -> bool:
        """Return whether an image has a correction, even a parked or damaged one."""
        return bool(ids.entries(self._folder(image_id)))

    def all(self) -> Iterator[Correction]:
        """Yield all corrections of all images; those that cannot be read are logged."""
        return ids.records(Correction, self._entries(), "correction")

    def readable(self, on_damaged: Callable[[str, StorageError], None]) -> Iterator[Correction]:
        """Yield all corrections; a damaged record is reported (image folder and reason) and skipped."""

        def report(entry: Path, error: StorageError) -> None:
            on_damaged(entry.parent.name, error)

        return ids.records(Correction, self._entries(), "correction", report)

    def corrected(self, images: Iterable[str]) -> frozenset[str]:
        """Return those of these images that have a correction, even a parked or damaged one."""
        folders = frozenset(ids.names(self.root))
        return frozenset(image_id for image_id in images if ids.folder_name(image_id) in folders)

    def in_force(self, image_id: str) -> tuple[Correction, ...]:
        """Return the accepted corrections of an image that were not withdrawn, oldest first, without damaged ones; they
        are read again only if one was added or withdrawn, or is damaged."""
        folders = self._folder(image_id), self.withdrawals.folder(image_id)
        damaged: list[Path] = []
        found = self._remembered.value(image_id, folders, lambda: self._read_in_force(image_id, damaged))
        if damaged:
            # The disk may answer again, or the record may be restored: the folder does not change then.
            self._remembered.forget(image_id)
        return found

    def under(self, image_id: str, tag: str) -> tuple[Correction, ...]:
        """Return the corrections of an image that count and belong under a tag of the datastore, oldest first."""
        return tuple(c for c in self.in_force(image_id) if c.displayed_tag == tag)

    def displayed(self, image_id: str) -> dict[str, Correction]:
        """Return tag of the datastore -> the correction of an image that clients see: the newest one that counts."""
        return {c.displayed_tag: c for c in self.in_force(image_id)}

    def finished(self, image_id: str) -> tuple[Correction, ...]:
        """Return the finished labels of an image that count, oldest first."""
        return tuple(c for c in self.in_force(image_id) if c.tag == FINAL_TAG and c.step == 2)

    def latest_accepted(self, image_id: str) -> Correction | None:
        """Return the newest accepted label of an image, finished or not, that was not withdrawn; no map of step 1."""
        return next((c for c in reversed(self.in_force(image_id)) if c.step == 2), None)

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

    def _entries(self) -> Iterator[Path]:
        """Yield the folders of all corrections of all images."""
        return (entry for folder in ids.entries(self.root) for entry in ids.entries(folder))

    def _read_in_force(self, image_id: str, damaged: list[Path]) -> tuple[Correction, ...]:
        """Return the corrections of an image that count; the entries that cannot be read are added to a list."""

        def report(entry: Path, error: StorageError) -> None:
            logger.warning("A correction cannot be read and does not count now: %s", error)
            damaged.append(entry)

        withdrawn = self.withdrawals.of_image(image_id)
        known = ids.records(Correction, ids.entries(self._folder(image_id)), "correction", report)
        return tuple(c for c in known if c.status == "accepted" and c.id not in withdrawn)

    def _folder(self, image_id: str) -> Path:
        return self.root / ids.folder_name(image_id)


MAX_REASON: Final = 500
"""Largest number of characters in a reason: a sentence or two."""


@dataclass(frozen=True)
class Rejection:
    """A reader's decision that a result cannot be used, with the reason.

    Attributes:
        id: Sorts by time, among corrections too.
        image: Image id.
        reason: The reason in the reader's words; empty if this takes the previous rejection back.
        user: See ``Sender``.
        client: See ``Sender``.
        prediction: Id of the rejected prediction; empty if there was none.
        received: UTC, ISO 8601.
    """

    id: str
    image: str
    reason: str
    user: str
    client: str
    prediction: str
    received: str

    @property
    def reader(self) -> str:
        """Who rejected it, under the name that other readers see."""
        return self.client or self.user


class Rejections:
    """The rejections below a history folder; append-only."""

    def __init__(self, root: Path) -> None:
        self._root = root / "rejections"

    def add(self, image_id: str, reason: str, sender: Sender, prediction: str = "") -> Rejection:
        """Record a rejection; without a reason, take the previous one back.

        Raises:
            StorageError: It could not be written.
        """
        folder = self._root / ids.folder_name(image_id)
        entry_id = ids.new_id(ids.names(folder))
        record = Rejection(
            entry_id, image_id, reason[:MAX_REASON], sender.user, sender.client, prediction, ids.now_text()
        )
        with staged_folder(folder / entry_id) as entry:
            write_json(entry / ids.RECORD_FILE, asdict(record))
        return record

    def latest(self, image_id: str) -> Rejection | None:
        """Return the latest rejection; None if there is none, or if it was taken back."""
        newest_first = reversed(ids.entries(self._root / ids.folder_name(image_id)))
        found = next(ids.records(Rejection, newest_first, "rejection"), None)
        return found if found is not None and found.reason else None
