"""Answer the requests of the lab's page about scans."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from totalspineseg_server.activelearning.scores import Scores
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore, Rejections
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.predictions import MapStore
from totalspineseg_server.corrections.receipts import Sender
from totalspineseg_server.errors import UnknownImageError
from totalspineseg_server.worklist import worklist as lines
from totalspineseg_server.worklist.acts import Acts
from totalspineseg_server.worklist.choice import Choice, choose
from totalspineseg_server.worklist.readers import agreements, corrected
from totalspineseg_server.worklist.rows import Row
from totalspineseg_server.worklist.scans import Scans, View
from totalspineseg_server.worklist.thumbnails import Thumbnails
from totalspineseg_server.worklist.worklist import Records, Worklist


class Studies(lines.Studies, Protocol):
    """The images of a datastore."""

    def image_file(self, image_id: str) -> Path | None:
        """Return the file or folder of an image, or None."""

    def fingerprint(self, image_id: str) -> str:
        """Return a value that changes whenever an image may have changed."""


@dataclass(frozen=True)
class Lab:
    """Answers the requests of the lab's page about scans.

    Attributes:
        worklist: The rows of all scans.
        scans: The scans, each with its label.
        thumbnails: Small pictures.
        acts: Carries out what readers decide.
        corrections: The submitted labels.
        inbox: Accepts a label as if a client had sent it.
    """

    worklist: Worklist
    scans: Scans
    thumbnails: Thumbnails
    acts: Acts
    corrections: CorrectionStore
    inbox: Inbox

    def row(self, image_id: str) -> Row:
        """Return the current row of a scan.

        Raises:
            UnknownImageError: There is no such scan.
        """
        row = self.worklist.row(image_id)
        if row is None:
            raise UnknownImageError(image_id)
        return row

    def view(self, image_id: str) -> tuple[Row, View]:
        """Return the row of a scan, and the scan with its label.

        Raises:
            UnknownImageError: There is no such scan.
            ImageError: Its image cannot be read.
        """
        row = self.row(image_id)
        return row, self.scans.view(row)

    def choose(self, image_id: str, choice: Choice, sender: Sender) -> Correction:
        """Let one of the finished labels of a scan count, or a label merged from them; see ``choice.choose``."""
        _, view = self.view(image_id)
        return choose(self.corrections, self.inbox.submit, image_id, view.grid, choice, sender)

    def agreements(self, image_id: str) -> list[dict[str, Any]]:
        """Return how well finished labels of an image by different readers agree; see ``readers.agreements``."""
        return agreements(self.corrections, image_id)

    def corrected(self) -> dict[str, Any]:
        """Return how much readers corrected; see ``readers.corrected``."""
        return corrected(self.corrections)

    def history(self, image_id: str) -> list[dict[str, Any]]:
        """Return the submissions for an image, newest first, each with its time, its sender and its outcome."""
        withdrawn = self.corrections.withdrawals.of_image(image_id)
        sent = self.corrections.of_image(image_id)
        reader_of = {one.id: one.reader for one in sent}
        return [
            {
                "correction": one.id,
                "date": one.received,
                "user": one.reader,
                "status": "taken back" if one.id in withdrawn else one.status,
                "unchanged": one.unchanged,
                "chosen": [reader_of.get(id_, "") for id_ in one.chosen],
                "structures": len(one.present),
                "reason": one.reason,
                "findings": [str(finding.get("message", "")) for finding in one.findings],
            }
            for one in reversed(sent)
        ]


def open_lab(
    root: Path,
    studies: Studies,
    scores: Scores,
    maps: MapStore,
    corrections: CorrectionStore,
    inbox: Inbox,
) -> Lab:
    """Return the part of the server that answers the lab's page about scans; nothing is read yet.

    Args:
        root: The history folder.
        studies: The datastore.
        scores: How doubtful each result is.
        maps: Stored maps of the networks.
        corrections: The submitted labels.
        inbox: Accepts a label as if a client had sent it, and takes back the newest one.
    """
    rejections = Rejections(root)
    worklist = Worklist(studies, Records(root, scores, corrections, rejections, studies.fingerprint))
    scans = Scans(studies.image_file, studies.fingerprint, worklist.record, maps, corrections)
    acts = Acts(inbox, corrections, rejections)
    return Lab(worklist, scans, Thumbnails(root, scans.glance, studies.fingerprint), acts, corrections, inbox)
