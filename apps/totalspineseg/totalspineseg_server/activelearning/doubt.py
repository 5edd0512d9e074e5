"""Estimate how doubtful a result is, as one number, without the help of a reader."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from totalspineseg_server.certainty import is_doubtful
from totalspineseg_server.infers.disagreement import MIRROR, STEPS
from totalspineseg_server.numbering.findings import IMAGE

DOUBTFUL: Final = 0.5
"""Chance that doubtful names are wrong for a reason that their probability does not cover."""
FINDING: Final = 0.2
"""Chance that a reader has to correct something because of one finding."""
OTHER_ANSWER: Final = 0.5
"""Chance that a level on which two predictions differ is wrong: either of them may be right."""
NOTHING_NAMED: Final = 1.0
"""Doubt about a scan in which no spine was found."""


@dataclass(frozen=True)
class Parts:
    """The parts of the doubt about a result, each from 0 (none) to 1; None if not measured.

    Attributes:
        names: Chance that not all names are right.
        findings: Chance that a finding of the checks needs a correction.
        steps: Share of the discs that step 1 and step 2 label differently.
        mirror: Share of the structures that differ between an image and its left-right mirror.
        scale: Share of the levels that differ between the image and the image at another size.
    """

    names: float | None = None
    findings: float | None = None
    steps: float | None = None
    mirror: float | None = None
    scale: float | None = None

    @property
    def doubt(self) -> float | None:
        """The chance that something is wrong, if the parts are independent; None if nothing was measured."""
        return _any_of(self.names, self.findings, self.disagreement)

    @property
    def disagreement(self) -> float | None:
        """The chance that something is wrong, by the differences between predictions alone; None if not measured."""
        levels = (None if part is None else OTHER_ANSWER * part for part in (self.steps, self.scale))
        return _any_of(self.mirror, *levels)

    def as_json(self) -> dict[str, float | None]:
        """Return the parts for records and replies, rounded."""
        return {name: None if value is None else round(value, 4) for name, value in asdict(self).items()}


def parts_of(numbering: Mapping[str, Any] | None, disagreement: Mapping[str, float]) -> Parts:
    """Return the parts of the doubt from the record of a prediction.

    Args:
        numbering: The prediction's report, see ``numbering.report``; None if there is none. Not modified.
        disagreement: The prediction's differences, see ``PredictionRecord``. Not modified.
    """
    findings = [f for f in (numbering or {}).get("findings", ()) if f.get("kind") != IMAGE]
    return Parts(
        names=_names(numbering or {}),
        findings=None if numbering is None else 1 - (1 - FINDING) ** len(findings),
        steps=disagreement.get(STEPS),
        mirror=disagreement.get(MIRROR),
    )


def _names(numbering: Mapping[str, Any]) -> float | None:
    probability = numbering.get("probability")
    if probability is None:
        return None
    return 1 - float(probability) * (1 - DOUBTFUL if is_doubtful(numbering) else 1)


def _any_of(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    sound = 1.0
    for part in known:
        sound *= 1 - part
    return 1 - sound
