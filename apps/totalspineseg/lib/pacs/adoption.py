"""Segmentations that came to the PACS without passing this server: found, and counted as submissions."""

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
from lib.pacs.datastore import PacsDatastore
from lib.pacs.listing import FRESH_SECONDS
from lib.pacs.submissions import Corrections, Submit, send_waiting, submit_segmentation
from lib.turns import Turns

logger = logging.getLogger(__name__)

ADOPTED_BY: Final = "pacs"
"""Client id of segmentations that came to the PACS another way."""
REST: Final = 10
"""After a look through a whole PACS this many times as long passes until the next one."""


class Adoption:
    """Takes the newest segmentation of a series that is new here and newer than the label that is shown.

    A large PACS takes minutes to list its segmentations. So the study of an image that is about to be offered is asked
    for each time, which is one small question, and all others beside the requests.

    Args:
        datastore: The PACS.
        corrections: Earlier submissions.
        submit: Takes a label.
        waiting: Returns the submissions that could not be read yet.
        told: Told what became of each.
    """

    def __init__(
        self,
        datastore: PacsDatastore,
        corrections: Corrections,
        submit: Submit,
        waiting: Callable[[], Iterable[Waiting]],
        told: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._datastore = datastore
        self._corrections = corrections
        self._submit = submit
        self._waiting = waiting
        self._told = told
        self._taking = Turns()
        self._looking = threading.Lock()
        self._passed_over: set[str] = set()
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
        """Begin to send labels that wait for the PACS, and to look through all of it unless that was done lately.

        Nobody waits for it, and it runs once at a time.
        """
        if self._looking.acquire(blocking=False):
            threading.Thread(target=self._look_through, name="pacs-look", daemon=True).start()

    def _look_through(self) -> None:
        try:
            send_waiting(self._datastore)
            begun = time.monotonic()
            if begun >= self._due:
                # One that fails is not the last for long.
                self._due = begun + FRESH_SECONDS
                self.of_all()
                self._due = time.monotonic() + REST * (time.monotonic() - begun)
        except requests.RequestException as error:
            logger.warning("the PACS could not be looked through: %s", type(error).__name__)
        except Exception:
            logger.exception("the PACS could not be looked through")
        finally:
            self._looking.release()

    def _take_all(self, found: dict[str, SegReference]) -> None:
        for series, reference in found.items():
            with self._taking.at(series):
                outcome = self._take(series, reference)
            if outcome is not None:
                self._told(outcome)

    def _take(self, series: str, reference: SegReference) -> Outcome | None:
        """What became of a segmentation; None for one that is known, older than what is shown, or not to be had now."""
        info = self._datastore.get_label_info(series, FINAL_TAG)
        name = f"{reference.instance}{SEG_SUFFIX}"
        shown = str(info.get("created", "")) or self._taken_back(series)
        older = bool(shown) and reference.created <= shown
        if older and reference.instance in (info.get("instance"), *self._passed_over):
            return None
        known = self._corrections.of_image(series)
        if older:
            # Whatever is shown from now on is newer.
            self._passed_over.add(reference.instance)
        # What waits is not read again by itself: it may end the server.
        if name in (*(correction.file_name for correction in known), *(w.receipt.file_name for w in self._waiting())):
            return None
        if older:
            logger.warning(
                "a segmentation of series %s is passed over: it was made at %s, and the last label at %s (UTC)",
                *(series, reference.created or "no time it tells", shown),
            )
            return None
        with tempfile.TemporaryDirectory(prefix="totalspineseg-seg-") as folder:
            file = Path(folder) / f"label{SEG_SUFFIX}"
            try:
                self._datastore.fetch_instance(reference, file)
            except (requests.RequestException, InvalidDicomError) as error:
                logger.warning("a segmentation of series %s could not be fetched: %s", series, type(error).__name__)
                return None
            sender = Sender("", ADOPTED_BY, name)
            return submit_segmentation(self._datastore, self._submit, self._corrections, file, reference, sender)

    def _taken_back(self, series: str) -> str:
        """When the last label of a series came that was taken back: what is older was replaced by it for a reason."""
        standing = {correction.id for correction in self._corrections.standing(series)}
        every = self._corrections.of_image(series)
        came = [c.received for c in every if c.status == "accepted" and c.id not in standing]
        return max((utc_text(datetime.fromisoformat(time)) for time in came), default="")
