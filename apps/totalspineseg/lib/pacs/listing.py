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
MIN_SLICES: Final = 3
"""Fewer instances are a localizer or a screenshot, unless the one instance holds many frames."""


class Listing:
    """The series of a PACS that match, read anew when the list is no longer fresh.

    Args:
        client: The PACS.
        filters: Which series are images, such as ``{"Modality": "MR"}``.
    """

    def __init__(self, client: DICOMwebClient, filters: Mapping[str, Any]) -> None:
        self._client = client
        self._filters = dict(filters)
        self._listed: tuple[float, dict[str, Series] | requests.RequestException] | None = None
        self._lock = threading.Lock()
        self._unusable: dict[str, tuple[int, str]] = {}

    def all(self) -> Mapping[str, Series]:
        """Every series that matches, by UID.

        Raises:
            requests.RequestException: The PACS did not answer.
        """
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed[0] > FRESH_SECONDS:
                self._listed = self._asked()
            found = self._listed[1]
        if isinstance(found, requests.RequestException):
            raise found.with_traceback(None)
        return found

    def _asked(self) -> tuple[float, dict[str, Series] | requests.RequestException]:
        """When the PACS answered and what, or why it did not: whoever waited meanwhile need not find out, too."""
        found: dict[str, Series] | requests.RequestException
        try:
            found = {series.uid: series for series in find_series(self._client, self._filters)}
        except requests.RequestException as error:
            found = error
        return time.monotonic(), found

    def offered(self) -> Mapping[str, Series]:
        """The series that are offered as images: all but localizers and what could not be read."""
        return {uid: found for uid, found in self.all().items() if _is_volume(found) and not self.refusal(found)}

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
