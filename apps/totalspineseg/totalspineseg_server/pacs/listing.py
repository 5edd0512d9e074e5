"""List the series of the PACS that are offered as images; the list is at most some minutes old."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import requests
from dicomweb_client import DICOMwebClient

from totalspineseg_server.io.dicom.headers import may_be_volume
from totalspineseg_server.pacs.found_series import Series, find_series

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 10.0
"""A list younger than this is not read again, because a client asks for it several times in a row."""
REST: Final = 20
"""A list is read again when it is older than this multiple of the time that reading it took, which is seconds for a
large PACS."""
MAX_FRESH_SECONDS: Final = 300.0
"""Largest age of a list."""


class Listing:
    """The series of a PACS that match a filter. The list is read again when it is too old, which depends on the reading
    time.

    Args:
        client: The PACS.
        filters: Filter for series that are images, such as ``{"Modality": "MR"}``.
    """

    def __init__(self, client: DICOMwebClient, filters: Mapping[str, Any]) -> None:
        self._client = client
        self._filters = dict(filters)
        self._listed: tuple[float, dict[str, Series] | requests.RequestException] | None = None
        self._fresh_seconds = FRESH_SECONDS
        self._lock = threading.Lock()
        self._unusable: dict[str, tuple[int, str]] = {}
        self._asked_alone: dict[str, float] = {}

    def all(self) -> Mapping[str, Series]:
        """Return every series that matches, by UID.

        Raises:
            requests.RequestException: The PACS did not answer.
        """
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed[0] > self._fresh_seconds:
                self._listed = self._asked()
                self._asked_alone.clear()
            found = self._listed[1]
        if isinstance(found, requests.RequestException):
            raise found.with_traceback(None)
        return found

    def _asked(self) -> tuple[float, dict[str, Series] | requests.RequestException]:
        """Return the answer of the PACS, or its failure, with the time, so that waiting requests need not ask again."""
        found: dict[str, Series] | requests.RequestException
        started, self._fresh_seconds = time.monotonic(), FRESH_SECONDS
        try:
            found = {series.uid: series for series in find_series(self._client, self._filters)}
            self._fresh_seconds = max(FRESH_SECONDS, min(MAX_FRESH_SECONDS, REST * (time.monotonic() - started)))
        except requests.RequestException as error:
            found = error
        return time.monotonic(), found

    def find(self, uid: str) -> Series | None:
        """Return a series that matches; if it is not listed, the PACS is asked for it, and it is added to the list.

        Returns:
            None if there is none.

        Raises:
            requests.RequestException: The PACS did not answer.
        """
        return self.all().get(uid) or self._ask_alone(uid)

    def now(self, uid: str) -> Series | None:
        """Return a listed series as it is now: it may still be growing, and a large list is not read again soon.

        Returns:
            None if it is not on the list.

        Raises:
            requests.RequestException: The PACS did not answer.
        """
        known = self.all().get(uid)
        with self._lock:
            listed = self._listed[0] if self._listed else 0.0
            old = time.monotonic() - max(listed, self._asked_alone.get(uid, 0.0)) > FRESH_SECONDS
            if known is None or not old:
                return known
            # Other requests need not find out themselves that the PACS does not answer.
            self._asked_alone[uid] = time.monotonic()
        return self._ask_alone(uid) or known

    def _ask_alone(self, uid: str) -> Series | None:
        asked = find_series(self._client, {**self._filters, "SeriesInstanceUID": uid})
        found = next((series for series in asked if series.uid == uid), None)
        with self._lock:
            if found is not None and self._listed is not None and isinstance(self._listed[1], dict):
                # Make a new list, because another thread may be reading the old one.
                self._listed = self._listed[0], {**self._listed[1], uid: found}
        return found

    def offered(self) -> Mapping[str, Series]:
        """Return the series that are offered as images: all but localizers and unreadable series."""
        return {uid: found for uid, found in self.all().items() if self.is_offered(found)}

    def is_offered(self, series: Series) -> bool:
        """Return whether a series, as far as is known, is readable and not a localizer."""
        return _is_volume(series) and not self.refusal(series)

    def changed(self) -> None:
        """Make the next request read the list again, because something was stored in the PACS."""
        self._listed = None

    def refuse(self, series: Series, reason: str) -> None:
        """Stop offering a series, because it could not be read."""
        logger.warning("Series %s is not offered: %s", series.uid, reason)
        self._unusable[series.uid] = series.instances, reason

    def refusal(self, series: Series) -> str:
        """Return why a series could not be read; empty once it has more instances, because it may have been
        incomplete."""
        instances, reason = self._unusable.get(series.uid, (-1, ""))
        return reason if instances == series.instances else ""


def _is_volume(series: Series) -> bool:
    """Return whether a series may be a volume; a single instance may hold many frames."""
    return not series.localizer and may_be_volume(series.instances)
