"""How far a network's landmark classes and odd/even classes can be trusted: measured for each set of weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from totalspineseg_server.anatomy import DISC_L4_L5, DISC_L5_S, LANDMARK_DISCS, NAME_OF
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.places import COMMAND

FORMAT: Final = 1
PRIOR_SCANS: Final = 12.0
"""Number of scans that the prior counts as: weights measured on fewer scans stay near the careful values."""
PRIOR_LEVELS: Final = 100.0
"""The same for odd and even, in vertebrae."""
CAREFUL_PARITY: Final = 0.04
MAX_CORD_LOGIT: Final = 2.0
TILTED: Final = (DISC_L4_L5, DISC_L5_S)
"""Discs that can be recognized by their angle: the last one is 15 to 25 degrees steeper than the one above it."""
MIN_TILTS: Final = 8
MIN_SCANS: Final = 5
PRIOR_TILTS: Final = 6.0
CAREFUL_TILT_DEG: Final = 12.0
"""Spread of a disc's angle that counts as ``PRIOR_TILTS`` discs: people and their positions differ."""


@dataclass(frozen=True)
class Seen:
    """How often one landmark's class was found on which disc, in scans that show the landmark's disc and its neighbors.

    Attributes:
        scans: Scans that show the disc.
        own: Number of these in which the disc carries its class.
        above: Scans in which the disc above it carries the class (of ``scans_above`` that show this one).
        below: The same for the disc below it.
        scans_above: Scans that show the disc above.
        scans_below: Scans that show the disc below.
    """

    scans: float = 0.0
    own: float = 0.0
    above: float = 0.0
    below: float = 0.0
    scans_above: float = 0.0
    scans_below: float = 0.0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.scans + other.scans,
            self.own + other.own,
            self.above + other.above,
            self.below + other.below,
            self.scans_above + other.scans_above,
            self.scans_below + other.scans_below,
        )


@dataclass(frozen=True)
class Tilts:
    """Angles of one disc in labeled scans: how far its front lies lower than its back, seen from the side.

    Attributes:
        discs: Number of measured discs.
        total_deg: Sum of the angles.
        squares_deg2: Sum of their squares.
    """

    discs: float = 0.0
    total_deg: float = 0.0
    squares_deg2: float = 0.0

    def __add__(self, other: "Tilts") -> "Tilts":
        return Tilts(self.discs + other.discs, self.total_deg + other.total_deg, self.squares_deg2 + other.squares_deg2)

    @property
    def mean_deg(self) -> float | None:
        """The usual angle; None where too few were measured."""
        return self.total_deg / self.discs if self.discs >= MIN_TILTS else None

    @property
    def spread_deg(self) -> float:
        """The standard deviation, pulled toward ``CAREFUL_TILT_DEG``."""
        about = self.squares_deg2 - self.total_deg**2 / self.discs if self.discs else 0.0
        return math.sqrt((about + PRIOR_TILTS * CAREFUL_TILT_DEG**2) / (self.discs + PRIOR_TILTS))


@dataclass(frozen=True)
class Trust:
    """Measured errors of one network.

    Attributes:
        landmarks: Counts for each of ``LANDMARK_DISCS``, in their order.
        tilts: Angles of the discs of ``TILTED``, in their order.
        parity_levels: Vertebrae whose odd/even class was compared.
        parity_wrong: Number of these with the other class.
        cord_logit: Value added to the logit of the cord before it is compared with 0; a cord drawn too thin needs more.
        mirror: Whether the results of the image and its left-right mirror image are averaged.
        scans: Number of labeled scans in the measurement.
    """

    landmarks: tuple[Seen, ...] = field(default=(Seen(),) * len(LANDMARK_DISCS))
    tilts: tuple[Tilts, ...] = field(default=(Tilts(),) * len(TILTED))
    parity_levels: float = 0.0
    parity_wrong: float = 0.0
    cord_logit: float = 0.0
    mirror: bool = False
    scans: int = 0

    @property
    def measured(self) -> bool:
        """Whether enough scans were measured to know how the network treats the sacrum of real people."""
        return self.scans >= MIN_SCANS

    @property
    def parity(self) -> float:
        """The chance that a vertebra has the other odd/even class."""
        return (self.parity_wrong + PRIOR_LEVELS * CAREFUL_PARITY) / (self.parity_levels + PRIOR_LEVELS)

    def chances(self, landmark: int, *, careful: "Chances") -> "Chances":
        """Return the chances for one landmark: the counts, pulled toward the careful values.

        Args:
            landmark: Position in ``LANDMARK_DISCS``.
            careful: Values assumed of every network.
        """
        seen, prior = self.landmarks[landmark], PRIOR_SCANS
        return Chances(
            (seen.own + prior * careful.own) / (seen.scans + prior),
            (seen.above + prior * careful.above) / (seen.scans_above + prior),
            (seen.below + prior * careful.below) / (seen.scans_below + prior),
        )

    def __add__(self, other: "Trust") -> "Trust":
        """Return the sum of both counts; values that are not counts are this one's."""
        return replace(
            self,
            landmarks=tuple(a + b for a, b in zip(self.landmarks, other.landmarks, strict=True)),
            tilts=tuple(a + b for a, b in zip(self.tilts, other.tilts, strict=True)),
            parity_levels=self.parity_levels + other.parity_levels,
            parity_wrong=self.parity_wrong + other.parity_wrong,
            scans=self.scans + other.scans,
        )

    def as_json(self) -> dict[str, Any]:
        """Return JSON native values; ``trust_from_json`` reads them back."""
        return {
            "format": FORMAT,
            "scans": self.scans,
            "mirror": self.mirror,
            "cord_logit": self.cord_logit,
            "parity": {"levels": self.parity_levels, "wrong": self.parity_wrong},
            "landmarks": {
                NAME_OF[code]: dict(vars(seen)) for code, seen in zip(LANDMARK_DISCS, self.landmarks, strict=True)
            },
            "tilts": {NAME_OF[code]: dict(vars(tilt)) for code, tilt in zip(TILTED, self.tilts, strict=True)},
        }


@dataclass(frozen=True)
class Chances:
    """Chance that a landmark's own disc, the disc above it, and the disc below it carry its class."""

    own: float
    above: float
    below: float


UNMEASURED: Final = Trust()
"""Trust in weights that nobody has measured: the careful values, without mirroring."""


def trust_from_json(content: Mapping[str, Any], *, source: str) -> Trust:
    """Read the values of ``Trust.as_json``.

    Args:
        content: The JSON.
        source: Name of the file for an error.

    Raises:
        WeightsError: The file is not ours, or its numbers are impossible.
    """
    try:
        landmarks = tuple(
            Seen(**{key: float(n) for key, n in content["landmarks"][NAME_OF[code]].items()}) for code in LANDMARK_DISCS
        )
        tilts = tuple(Tilts(**{key: float(n) for key, n in content["tilts"][NAME_OF[code]].items()}) for code in TILTED)
        trust = Trust(
            landmarks,
            tilts,
            float(content["parity"]["levels"]),
            float(content["parity"]["wrong"]),
            float(content["cord_logit"]),
            bool(content["mirror"]),
            int(content["scans"]),
        )
        _require_possible(trust)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{source!r} is not a file of '{COMMAND} calibrate' ({error!r}). Calibrate again, or delete the file."
        ) from error
    return trust


def _require_possible(trust: Trust) -> None:
    """Check that no more cases than scans were counted, and that the cord's threshold is possible.

    Raises:
        ValueError: A value is impossible.
    """
    pairs = [(trust.parity_wrong, trust.parity_levels)]
    for seen in trust.landmarks:
        pairs += [(seen.own, seen.scans), (seen.above, seen.scans_above), (seen.below, seen.scans_below)]
    if not all(0 <= part <= whole < float("inf") for part, whole in pairs):
        raise ValueError("more cases than scans")
    if not abs(trust.cord_logit) <= MAX_CORD_LOGIT:
        raise ValueError(f"cord_logit {trust.cord_logit!r}")
