"""Carry out what a reader decides about a scan: pin a level, accept the result, reject it, undo that."""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, CODE_OF, NAME_OF, WIRE_LABELS, Kind
from totalspineseg_server.corrections.comparison import ACCEPTED_NAMES, ALL
from totalspineseg_server.corrections.correction_store import (
    FINAL_TAG,
    Correction,
    CorrectionStore,
    Rejection,
    Rejections,
)
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.interpretation import UNCHANGED_PARAMETER
from totalspineseg_server.corrections.receipts import Sender, receipt_of
from totalspineseg_server.errors import ConflictError, LabelError
from totalspineseg_server.geometry import labels_from_iso
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.renumber import renumber
from totalspineseg_server.numbering.report import report, sentence
from totalspineseg_server.segments import code_of_name, to_wire, with_mark
from totalspineseg_server.transforms.components import labels_present
from totalspineseg_server.trust import certainty_of, is_doubtful
from totalspineseg_server.worklist import worklist_messages
from totalspineseg_server.worklist.rows import Row
from totalspineseg_server.worklist.scans import PREDICTION, View, doubtful_of

VIEWS: Final = frozenset({"sagittal", "axial"})
"""Planes that a reader must have seen before accepting a result: the sagittal one shows a wrong level, only the axial
one a canal half as wide as the sac."""


@dataclass(frozen=True)
class Pinned:
    """The names of all levels that follow from the pinned ones.

    Attributes:
        names: Name in the prediction -> new name, for every level that changes.
        numbering: Report of the numbering that gave them.
        message: One sentence for the reader.
    """

    names: Mapping[str, str]
    numbering: Mapping[str, Any]
    message: str


class Acts:
    """Carries out what readers decide on the page; each act is stored in the history with the reader's name.

    Args:
        inbox: Accepts a label as if a client had sent it, and takes back the newest one.
        corrections: All submitted labels.
        rejections: All rejections.
    """

    def __init__(self, inbox: Inbox, corrections: CorrectionStore, rejections: Rejections) -> None:
        self._inbox = inbox
        self._corrections, self._rejections = corrections, rejections

    def pin(self, view: View, prediction: str, names: Mapping[str, str]) -> Pinned:
        """Rename all levels to match those that a reader named; no network runs, and nothing is stored.

        Args:
            view: The scan. Not modified.
            prediction: Id of the result that the reader sees.
            names: Name in it -> right name.

        Raises:
            ConflictError: Another result is shown now, or the maps of this one are gone.
            LabelError: There is no level of such a name in this result, or the names contradict each other.
        """
        _require_displayed(view, prediction)
        maps = view.label.maps
        output = None if maps is None else maps.output()
        if maps is None or output is None:
            raise ConflictError(worklist_messages.NO_MAPS_TO_PIN)
        present = set(np.flatnonzero(labels_present(maps.codes.data)).tolist())
        renamed = {_code(old, present): _code(new, None) for old, new in names.items()}
        if not renamed or any(
            (BY_CODE[a].kind is Kind.DISC) != (BY_CODE[b].kind is Kind.DISC) for a, b in renamed.items()
        ):
            raise LabelError(worklist_messages.OTHER_KIND)
        found = renumber(output, renamed)
        if found is None:
            listed = ", ".join(f"{NAME_OF[old]} as {NAME_OF[new]}" for old, new in renamed.items())
            raise LabelError(worklist_messages.CANNOT_FOLLOW.format(pins=listed))
        codes, numbering = found
        changed = {NAME_OF[old]: NAME_OF[new] for old, new in codes.items() if old != new}
        known = report(numbering, (), affine=maps.iso.affine)
        return Pinned(changed, known, _pin_message(changed, numbering))

    def submit_pinned(
        self, row: Row, view: View, names: Mapping[str, str], pinned: Pinned, sender: Sender
    ) -> Correction:
        """Submit a result with the names that a reader pinned; see ``pin``.

        Levels that the pins left doubtful keep the mark of doubt, so that nobody takes their names for confirmed.
        """
        # When the label is read, the other names follow the new one, and the record says so.
        sent = dict(names) if len(names) == 1 else dict(pinned.names)
        doubtful = {NAME_OF[code] for code in doubtful_of(pinned.numbering)}
        marked = {name for name in CODE_OF if pinned.names.get(name, name) in doubtful and name not in names}
        sent |= {name: with_mark(sent.get(name, name)) for name in marked}
        return self._send(row, view, sent, {}, sender)

    def accept(self, row: Row, view: View, prediction: str, views: Collection[str], sender: Sender) -> Correction:
        """Finish a scan with its result as it is.

        Args:
            row: Its row.
            view: The scan. Not modified.
            prediction: Id of the result that the reader saw.
            views: Planes that were on the screen.
            sender: The reader.

        Raises:
            ConflictError: The scan is finished, another result is shown now, its names are doubtful, or a plane was not
                looked at.
        """
        if row.status == "finished":
            raise ConflictError(worklist_messages.FINISHED_BEFORE_ACCEPTING)
        _require_displayed(view, prediction)
        record = view.label.record
        numbering = (record.numbering if record else None) or {}
        if certainty_of(numbering) is None or is_doubtful(numbering):
            raise ConflictError(worklist_messages.DOUBTFUL)
        if missing := sorted(VIEWS - set(views)):
            raise ConflictError(worklist_messages.NOT_LOOKED_AT.format(views=" and the ".join(missing)))
        return self._send(row, view, {}, {UNCHANGED_PARAMETER: True, ACCEPTED_NAMES: ALL}, sender)

    def reject(self, row: Row, reason: str, sender: Sender) -> None:
        """Say why a result cannot be used; the scan then has to be drawn.

        Raises:
            ConflictError: The scan is finished, or there is no reason.
        """
        if row.status == "finished":
            raise ConflictError(worklist_messages.FINISHED_BEFORE_REJECTING)
        if not reason.strip():
            raise ConflictError(worklist_messages.NO_REASON)
        self._rejections.add(row.id, reason.strip(), sender, row.prediction)

    def undo(self, row: Row, sender: Sender, *, is_admin: bool) -> str:
        """Take back the last accept, pin or rejection of a scan.

        Returns:
            A sentence for the reader.

        Raises:
            ConflictError: There is nothing to take back, or another reader did it.
        """
        rejection = self._rejections.latest(row.id)
        label = self._corrections.latest_accepted(row.id)
        if rejection is None and (label is None or label.tag != FINAL_TAG):
            raise ConflictError(worklist_messages.NOTHING_TO_UNDO)
        if rejection is not None and (label is None or rejection.id > label.id):
            _require_own(rejection, sender, is_admin=is_admin)
            self._rejections.add(row.id, "", sender, rejection.prediction)
            return worklist_messages.REJECTION_UNDONE
        assert label is not None
        _require_own(label, sender, is_admin=is_admin)
        again = self._inbox.undo(row.id, label.id, user=sender.user)
        return worklist_messages.EARLIER_LABEL_RETURNS if again else worklist_messages.LABEL_UNDONE

    def _send(
        self, row: Row, view: View, names: Mapping[str, str], more: Mapping[str, Any], sender: Sender
    ) -> Correction:
        maps = view.label.maps
        if maps is None:
            raise ConflictError(worklist_messages.NO_MAPS)
        codes = labels_from_iso(maps.labels, maps.iso, view.grid)
        # The k-th name belongs to value k.
        label_info = [{"name": names.get(name, name), "idx": value} for name, value in WIRE_LABELS.items()]
        params = {"label_info": label_info, "prediction": maps.prediction, "client_id": sender.client, **more}
        with tempfile.TemporaryDirectory(prefix="totalspineseg-label-") as folder:
            file = Path(folder) / sender.file_name
            write_volume(file, to_wire(codes), view.grid)
            return self._inbox.submit(receipt_of(row.id, file, tag=FINAL_TAG, sender=sender, params=params), file)


def reader(user: str, client: str) -> Sender:
    """Return a reader of the page as the sender of a label."""
    return Sender(user=user, client=client, file_name="lab-page.nii.gz")


def submitted_text(correction: Correction) -> str:
    """Return the sentences for the reader of an accepted label."""
    return worklist_messages.ACCEPTED if correction.unchanged else correction.message


def _require_displayed(view: View, prediction: str) -> None:
    label = view.label
    if label.of != PREDICTION or label.record is None or label.record.id != prediction:
        raise ConflictError(worklist_messages.OTHER_RESULT)


def _require_own(act: Correction | Rejection, sender: Sender, *, is_admin: bool) -> None:
    if not is_admin and act.user != sender.user:
        raise ConflictError(worklist_messages.OTHER_READER.format(reader=act.reader))


def _code(name: str, present: Collection[int] | None) -> int:
    code = code_of_name(name)
    if code is None or BY_CODE[code].kind in (Kind.CORD, Kind.CANAL) or (present is not None and code not in present):
        message = worklist_messages.NO_LEVEL if present is None else worklist_messages.NO_LEVEL_HERE
        raise LabelError(message.format(name=name[:80]))
    return code


def _pin_message(changed: Mapping[str, str], numbering: Numbering) -> str:
    text = sentence(report(numbering, (), affine=np.eye(4)))
    if not changed:
        return worklist_messages.NOTHING_CHANGES.format(certainty=text)
    if len(changed) == 1:
        return worklist_messages.ONE_LEVEL_CHANGES.format(certainty=text)
    return worklist_messages.LEVELS_CHANGE.format(count=len(changed), certainty=text)
