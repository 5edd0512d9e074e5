"""Find segmentations that reached the PACS without passing this server, and count them as submissions."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

import requests
from pydicom.errors import InvalidDicomError

from lib.corrections.inbox import FINAL_TAG
from lib.corrections.outcomes import Outcome
from lib.corrections.receipts import SEG_SUFFIX, Sender, Waiting
from lib.dicom.moments import utc_text
from lib.dicom.seg_object import SegReference
from lib.locks import NamedLocks
from lib.pacs.datastore import PacsDatastore
from lib.pacs.listing import FRESH_SECONDS
from lib.pacs.submissions import Corrections, Submit, send_waiting, submit_segmentation

logger = logging.getLogger(__name__)

ADOPTED_BY: Final = "pacs"
"""Client id of segmentations that reached the PACS another way."""
REST: Final = 10
"""Pause after a search of the whole PACS, as a multiple of its duration."""


class Adoption:
    """Takes the newest segmentation of a series if it is new here and newer than the label in use.

    A large PACS takes minutes to list its segmentations. Therefore each time an image is about to be offered only its
    own
    study is searched, which is one small question; all other studies are searched in the background.

    Args:
        datastore: The PACS.
        corrections: Earlier submissions.
        submit: Takes a label.
        waiting: Returns the submissions that could not be read yet.
        report: Called with the outcome of each segmentation.
    """

    def __init__(
        self,
        datastore: PacsDatastore,
        corrections: Corrections,
        submit: Submit,
        waiting: Callable[[], Iterable[Waiting]],
        report: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._datastore = datastore
        self._corrections = corrections
        self._submit = submit
        self._waiting = waiting
        self._report = report
        self._taking = NamedLocks()
        self._looking = threading.Lock()
        self._skipped: set[str] = set()
        self._due = 0.0

    def of_image(self, image_id: str) -> None:
        """Take what the PACS holds for one image at this moment, in the image's own study.

        Raises:
            requests.RequestException: The PACS does not answer.
        """
        if found := self._datastore.series().get(image_id):
            self._take_all(self._datastore.segmentations.newest([image_id], found.study))

    def of_all(self) -> None:
        """Take what the PACS holds for any image.

        Raises:
            requests.RequestException: The PACS does not answer.
        """
        self._take_all(self._datastore.segmentations.newest(self._datastore.series()))

    def look_through(self) -> None:
        """Start to send labels that wait for the PACS, and to search all of it unless that was done lately.

        It runs in the background, once at a time.
        """
        if self._looking.acquire(blocking=False):
            threading.Thread(target=self._look_through, name="pacs-look", daemon=True).start()

    def _look_through(self) -> None:
        try:
            send_waiting(self._datastore)
            started = time.monotonic()
            if started >= self._due:
                # Try again soon after a search that fails.
                self._due = started + FRESH_SECONDS
                self.of_all()
                self._due = time.monotonic() + REST * (time.monotonic() - started)
        except requests.RequestException as error:
            logger.warning("The PACS could not be searched: %s", type(error).__name__)
        except Exception:
            logger.exception("The PACS could not be searched")
        finally:
            self._looking.release()

    def _take_all(self, found: dict[str, SegReference]) -> None:
        for series, reference in found.items():
            with self._taking.of(series):
                outcome = self._take(series, reference)
            if outcome is not None:
                self._report(outcome)

    def _take(self, series: str, reference: SegReference) -> Outcome | None:
        """Take a segmentation and return the outcome; None if it is known, older than the label in use, or not
        available now.
        """
        info = self._datastore.get_label_info(series, FINAL_TAG)
        name = f"{reference.instance}{SEG_SUFFIX}"
        current = str(info.get("created", "")) or self._last_withdrawn(series)
        older = bool(current) and reference.created <= current
        if older and reference.instance in (info.get("instance"), *self._skipped):
            return None
        known = self._corrections.of_image(series)
        if older:
            # Any label in use from now on is newer.
            self._skipped.add(reference.instance)
        # A waiting submission is not read again automatically: it may crash the server.
        if name in (*(correction.file_name for correction in known), *(w.receipt.file_name for w in self._waiting())):
            return None
        if older:
            logger.warning(
                "A segmentation of series %s is skipped: it was made at %s, but the last label at %s (UTC)",
                *(series, reference.created or "an unknown time", current),
            )
            return None
        with tempfile.TemporaryDirectory(prefix="totalspineseg-seg-") as folder:
            file = Path(folder) / f"label{SEG_SUFFIX}"
            try:
                self._datastore.fetch_instance(reference, file)
            except (requests.RequestException, InvalidDicomError) as error:
                logger.warning("A segmentation of series %s could not be fetched: %s", series, type(error).__name__)
                return None
            sender = Sender("", ADOPTED_BY, name)
            return submit_segmentation(self._datastore, self._submit, self._corrections, file, reference, sender)

    def _last_withdrawn(self, series: str) -> str:
        """Return when the last withdrawn label of a series was received: older segmentations were replaced for a
        reason.
        """
        accepted = {correction.id for correction in self._corrections.in_force(series)}
        every = self._corrections.of_image(series)
        received = [c.received for c in every if c.status == "accepted" and c.id not in accepted]
        return max((utc_text(datetime.fromisoformat(time)) for time in received), default="")
