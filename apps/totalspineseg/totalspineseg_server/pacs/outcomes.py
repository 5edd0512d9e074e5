"""Remember the outcome of each segmentation that a viewer stored in the PACS, so that the viewer can show it."""

import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

MAX_KEPT: Final = 1000
"""Largest number of outcomes in memory. A viewer asks at once; older outcomes are in the history of corrections."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a stored segmentation.

    Attributes:
        instance: Its SOP instance UID.
        status: "accepted"; "parked" (kept but not used), "refused" (not counted) or "prediction" (a model's own).
        message: One or more sentences for the user.
        image: Series to which it belongs; empty if unknown.
        correction: Id of the record in the history; empty if there is none.
        findings: Findings on an accepted label.
    """

    instance: str
    status: Literal["accepted", "parked", "refused", "prediction"]
    message: str
    image: str = ""
    correction: str = ""
    findings: tuple[Any, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the fields, for the viewer."""
        return asdict(self)


class Outcomes:
    """The latest outcomes by SOP instance UID."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: OrderedDict[str, Outcome] = OrderedDict()

    def keep(self, outcome: Outcome) -> None:
        """Remember an outcome; the oldest is forgotten if there are too many."""
        with self._lock:
            self._latest[outcome.instance] = outcome
            self._latest.move_to_end(outcome.instance)
            while len(self._latest) > MAX_KEPT:
                self._latest.popitem(last=False)

    def of(self, instance: str) -> Outcome | None:
        """Return the outcome of a stored segmentation; None if it is not known."""
        with self._lock:
            return self._latest.get(instance)
