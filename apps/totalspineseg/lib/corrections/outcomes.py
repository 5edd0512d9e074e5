"""What became of segmentations that viewers stored in the PACS, so that they can tell their user."""

import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from lib.corrections.inbox import READER_TAGS
from lib.corrections.store import Correction

MAX_KEPT: Final = 1000
"""A viewer asks at once; what is older lies in the history of corrections."""
FINDINGS_SHOWN: Final = 3
"""A notice of the viewer holds a few lines."""


@dataclass(frozen=True)
class Outcome:
    """What became of one stored segmentation.

    Attributes:
        instance: Its SOP instance UID.
        status: "accepted"; "parked": kept, but not understood; "refused": not counted; "prediction": a model's own.
        message: One or more sentences for the user.
        image: Series it belongs to; empty when unknown.
        correction: Id of the record in the history; empty when there is none.
        findings: What is odd about an accepted label.
    """

    instance: str
    status: Literal["accepted", "parked", "refused", "prediction"]
    message: str
    image: str = ""
    correction: str = ""
    findings: tuple[Any, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the viewer."""
        return asdict(self)


def message_of(correction: Correction) -> str:
    """Return what the author of an accepted label reads: first what a rename did, last what the checks found."""
    found = [str(finding.get("message", "")) for finding in correction.findings]
    more = f" And {len(found) - FINDINGS_SHOWN} more." if len(found) > FINDINGS_SHOWN else ""
    checks = f" Please check: {' '.join(found[:FINDINGS_SHOWN])}{more}" if found else ""
    kind = "corrected step-1 label" if correction.step == 1 else "finished label"
    if correction.tag not in READER_TAGS:
        kind = f"label that does not count as finished (tag {correction.tag!r})"
    renumbered = f"{correction.renumbered.get('message', '')} " if correction.renumbered else ""
    return f"{renumbered}Submitted as {kind} with {len(correction.present)} structures.{checks}"


def accepted(instance: str, correction: Correction) -> Outcome:
    """Return the outcome of a label that was understood."""
    message, findings = message_of(correction), tuple(correction.findings)
    return Outcome(instance, "accepted", message, correction.image, correction.id, findings)


class Outcomes:
    """The latest outcomes, by SOP instance UID."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Outcome] = OrderedDict()

    def keep(self, outcome: Outcome) -> None:
        """Remember an outcome; the oldest is forgotten when there are too many."""
        with self._lock:
            self._kept[outcome.instance] = outcome
            self._kept.move_to_end(outcome.instance)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def of(self, instance: str) -> Outcome | None:
        """The outcome of a stored segmentation; None when none is known."""
        with self._lock:
            return self._kept.get(instance)
