"""Which series of the PACS are offered as images, as of a moment ago."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import requests
from dicomweb_client import DICOMwebClient

from lib.pacs.series import Series, find_series

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 10.0
"""A client asks for the list several times in a row; what arrived in the PACS meanwhile shows this much later."""
REST: Final = 20
"""After a list was read this many times as long passes until the next one, for a large PACS takes seconds .."""
MAX_FRESH_SECONDS: Final = 300.0
""".. but no longer than this."""
MIN_SLICES: Final = 3
"""Fewer instances are a localizer or a screenshot, unless the one instance holds many frames."""


class Listing:
    """The series of a PACS that match, read anew when the list is no longer fresh; how long it is, depends on how long
    it took to read.

    Args:
        client: The PACS.
        filters: Which series are images, such as ``{"Modality": "MR"}``.
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
        """Every series that matches, by UID.

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
        """When the PACS answered and what, or why it did not: whoever waited meanwhile need not find out, too."""
        found: dict[str, Series] | requests.RequestException
        begun, self._fresh_seconds = time.monotonic(), FRESH_SECONDS
        try:
            found = {series.uid: series for series in find_series(self._client, self._filters)}
            self._fresh_seconds = max(FRESH_SECONDS, min(MAX_FRESH_SECONDS, REST * (time.monotonic() - begun)))
        except requests.RequestException as error:
            found = error
        return time.monotonic(), found

    def find(self, uid: str) -> Series | None:
        """A series that matches; one that is not on the list is asked for by itself, and is on it from then on.

        Returns:
            None when there is none.

        Raises:
            requests.RequestException: The PACS did not answer.
        """
        return self.all().get(uid) or self._ask_alone(uid)

    def now(self, uid: str) -> Series | None:
        """A series of the list as it is now, for it may still come in while a large list stays as it is.

        Returns:
            None when it is not on the list.

        Raises:
            requests.RequestException: The PACS did not answer.
        """
        known = self.all().get(uid)
        with self._lock:
            listed = self._listed[0] if self._listed else 0.0
            old = time.monotonic() - max(listed, self._asked_alone.get(uid, 0.0)) > FRESH_SECONDS
            if known is None or not old:
                return known
            # Whoever asks while the PACS does not answer need not find that out, too.
            self._asked_alone[uid] = time.monotonic()
        return self._ask_alone(uid) or known

    def _ask_alone(self, uid: str) -> Series | None:
        asked = find_series(self._client, {**self._filters, "SeriesInstanceUID": uid})
        found = next((series for series in asked if series.uid == uid), None)
        with self._lock:
            if found is not None and self._listed is not None and isinstance(self._listed[1], dict):
                # Who reads the list at this moment has another one.
                self._listed = self._listed[0], {**self._listed[1], uid: found}
        return found

    def offered(self) -> Mapping[str, Series]:
        """The series that are offered as images: all but localizers and what could not be read."""
        return {uid: found for uid, found in self.all().items() if self.is_offered(found)}

    def is_offered(self, series: Series) -> bool:
        """Whether a series is no localizer, and could be read as far as is known."""
        return _is_volume(series) and not self.refusal(series)

    def changed(self) -> None:
        """Something was stored in the PACS: the next list is read anew."""
        self._listed = None

    def refuse(self, series: Series, reason: str) -> None:
        """Offer a series no more, for it could not be read."""
        logger.warning("series %s is not offered: %s", series.uid, reason)
        self._unusable[series.uid] = series.instances, reason

    def refusal(self, series: Series) -> str:
        """Why a series could not be read; empty once it has more instances, for it was still coming in."""
        instances, reason = self._unusable.get(series.uid, (-1, ""))
        return reason if instances == series.instances else ""


def _is_volume(series: Series) -> bool:
    """Whether a series may be a volume; a single instance may hold many frames."""
    return not series.localizer and (series.instances <= 1 or series.instances >= MIN_SLICES)
