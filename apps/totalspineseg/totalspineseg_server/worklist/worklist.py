"""Keep a row for each scan, and make it again only when something about the scan has changed."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from totalspineseg_server.activelearning.scores import Scores
from totalspineseg_server.activelearning.strategies import RESERVED_SECONDS
from totalspineseg_server.corrections.correction_store import CorrectionStore, Rejections
from totalspineseg_server.corrections.ids import folder_name
from totalspineseg_server.corrections.image_records import last_noted
from totalspineseg_server.corrections.predictions import PredictionRecord
from totalspineseg_server.errors import StorageError
from totalspineseg_server.worklist import worklist_messages
from totalspineseg_server.worklist.rows import Row, about_series, row_of

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 1.0
"""Time during which the rows count as fresh: a page asks several times within a second."""
REST: Final = 5
"""Length of the pause between two updates, as a multiple of the time that an update takes: with many scans, too,
processors stay free for readers."""
WAIT_SECONDS: Final = 1.0
"""Longest time that a request waits for newer rows: a PACS that does not answer must not delay the page."""
FIRST_WAIT_SECONDS: Final = 10.0
"""The same while there are no rows yet."""
FOLDERS: Final = ("scores", "corrections", "withdrawals", "rejections")
"""Folders of the history; if an entry changes, the row of its scan may change."""

Change = tuple[object, ...]


class Studies(Protocol):
    """The part of the datastore that the worklist needs."""

    def list_images(self) -> list[str]:
        """Return the ids of all images."""

    def get_labeled_images(self) -> list[str]:
        """Return the ids of images with a finished label that counts."""

    def get_image_info(self, image_id: str) -> Mapping[str, Any]:
        """Return the information about an image, including when it was offered."""

    def study_of(self, image_id: str) -> str:
        """Return the UID of an image's study in the PACS; "" for a folder."""


@dataclass(frozen=True)
class Records:
    """Records about the scans.

    Attributes:
        root: The history folder.
        scores: How doubtful each result is.
        corrections: The submitted labels.
        rejections: The rejections.
        fingerprint: ``fingerprint(image_id)``, see ``SpineDatastore.fingerprint``.
    """

    root: Path
    scores: Scores
    corrections: CorrectionStore
    rejections: Rejections
    fingerprint: Callable[[str], str]


@dataclass(frozen=True)
class _Lines:
    """All rows as they were last made."""

    changes: Mapping[str, Change] = field(default_factory=dict)
    rows: Mapping[str, Row] = field(default_factory=dict)
    sorted: tuple[Row, ...] = ()
    made: float = -float("inf")
    seconds: float = 0.0


class Worklist:
    """The rows of all scans, kept in memory.

    A row is made from the scan's records, and made again when one of their files has changed; nothing else is read. A
    thread of its own looks for changes: if that takes long, a request is answered with the earlier rows.

    Args:
        studies: The datastore.
        records: Records about the scans.
        clock: Seconds; never runs backward.

    Attributes:
        failure: Why the rows could not be made again, one sentence; empty if they could.
    """

    def __init__(self, studies: Studies, records: Records, clock: Callable[[], float] = time.monotonic) -> None:
        self._studies, self._records, self._clock = studies, records, clock
        self._lines = _Lines()
        self.failure = ""
        self._guard = threading.Lock()
        self._work: threading.Thread | None = None

    def rows(self) -> tuple[Row, ...]:
        """Return all rows sorted by id, as they were a moment ago."""
        with self._guard:
            is_old = self._clock() - self._lines.made > max(FRESH_SECONDS, REST * self._lines.seconds)
            if is_old and (self._work is None or not self._work.is_alive()):
                self._work = threading.Thread(target=self._renew, name="worklist", daemon=True)
                self._work.start()
            work = self._work if is_old else None
        if work is not None:
            work.join(WAIT_SECONDS if self.is_complete else FIRST_WAIT_SECONDS)
        return self._lines.sorted

    def row(self, image_id: str) -> Row | None:
        """Return the current row of a scan; None if there is no such scan."""
        if image_id not in self._studies.list_images():
            return None
        return self._row(image_id, is_finished=image_id in self._studies.get_labeled_images())

    def record(self, row: Row) -> PredictionRecord | None:
        """Return the record of the result that a row describes; None if there is none, or it is gone."""
        score = self._records.scores.of(row.id, self._records.fingerprint(row.id))
        is_same = score is not None and score.prediction == row.prediction
        return self._records.scores.record_of(score) if is_same and score is not None else None

    def update(self, image_id: str) -> None:
        """Make the row of a scan again, after somebody worked on it."""
        row, before = self.row(image_id), self._lines
        if row is not None and before.rows:
            rows = {**before.rows, image_id: row}
            self._lines = replace(before, rows=rows, sorted=_by_id(rows))

    @property
    def is_complete(self) -> bool:
        """Whether every scan has a row; False while the studies are read for the first time."""
        return self._lines.made > -float("inf")

    def _renew(self) -> None:
        begun = self._clock()
        try:
            finished = frozenset(self._studies.get_labeled_images())
            changes = self._changes(finished)
            before, rows = self._lines, dict[str, Row]()
            for image_id, change in changes.items():
                known = before.rows.get(image_id)
                if known is None or before.changes.get(image_id) != change:
                    known = self._row(image_id, is_finished=image_id in finished)
                rows[image_id] = known
        except (OSError, StorageError) as error:
            self.failure = worklist_messages.NO_LIST
            logger.warning("The worklist could not be updated: %s", type(error).__name__)
            return
        except Exception:
            # The next request tries again; until then the earlier rows are shown.
            logger.exception("The worklist could not be updated")
            return
        # The first update reads every record, so its time says nothing about the next.
        seconds = self._clock() - begun if before.rows else 0.0
        self.failure = ""
        self._lines = _Lines(changes, rows, _by_id(rows), begun, seconds)

    def _changes(self, finished: frozenset[str]) -> dict[str, Change]:
        """Return a value that changes whenever a scan's row may have changed: the times of its files, without reading
        any.
        """
        times = [_times(self._records.root / name) for name in FOLDERS]
        now = time.time()
        changes: dict[str, Change] = {}
        for image_id in self._studies.list_images():
            name = folder_name(image_id)
            times_of = tuple(known.get(name, known.get(f"image-{name}.json", 0)) for known in times)
            offer = last_noted(self._studies.get_image_info(image_id))
            # An offer ends after some time.
            offered = (offer.time, offer.client, 0 <= now - offer.time < RESERVED_SECONDS)
            changes[image_id] = (self._records.fingerprint(image_id), image_id in finished, *times_of, offered)
        return changes

    def _row(self, image_id: str, *, is_finished: bool) -> Row:
        records = self._records
        score = records.scores.of(image_id, records.fingerprint(image_id))
        record = None if score is None else records.scores.record_of(score)
        info = self._studies.get_image_info(image_id)
        corrections: Sequence[Any] = records.corrections.of_image(image_id)
        return row_of(
            image_id,
            is_finished=is_finished,
            score=score,
            numbering=None if record is None else record.numbering,
            corrections=corrections,
            withdrawn=records.corrections.withdrawals.of_image(image_id) if corrections else frozenset(),
            rejection=records.rejections.latest(image_id),
            offer=last_noted(info),
            now=time.time(),
            study=self._studies.study_of(image_id),
            about=about_series(info),
        )


def _by_id(rows: Mapping[str, Row]) -> tuple[Row, ...]:
    return tuple(rows[image_id] for image_id in sorted(rows))


def _times(folder: Path) -> dict[str, int]:
    """Return when each entry of a folder changed; empty if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_mtime_ns for entry in entries}
    except OSError:
        return {}
