"""Describe how far names can be trusted: those of a result, and a network's classes as measured for each set of
weights.

A result's report has one of three answers to "are these names right?".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from totalspineseg_server.anatomy import LANDMARK_DISCS, NAME_OF
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.places import COMMAND

FORMAT: Final = 1
NAMED: Final = ("uncontradicted", "contradicted")
PRIOR_SCANS: Final = 12.0
"""Number of scans that the prior counts as, so that weights measured on fewer scans stay near the cautious values."""
PRIOR_LEVELS: Final = 100.0
"""Number of vertebrae that the prior for odd and even counts as."""
CAREFUL_PARITY: Final = 0.04
MAX_CORD_LOGIT: Final = 2.0
MIN_SCANS: Final = 5


@dataclass(frozen=True)
class Seen:
    """How often one landmark's class was found on which disc, in scans that show the landmark's disc and its neighbors.

    Attributes:
        scans: Scans that show the disc.
        own: Number of these in which the disc has its own class.
        above: Scans in which the disc above it has the class (of ``scans_above`` that show the disc above).
        below: The same for the disc below it.
        scans_above: Scans that show the disc above.
        scans_below: Scans that show the disc below.
        above_alone: The part of ``above`` in which the landmark's own disc does not carry the class: it moved.
        below_alone: The same for ``below``.
    """

    scans: float = 0.0
    own: float = 0.0
    above: float = 0.0
    below: float = 0.0
    scans_above: float = 0.0
    scans_below: float = 0.0
    above_alone: float = 0.0
    below_alone: float = 0.0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.scans + other.scans,
            self.own + other.own,
            self.above + other.above,
            self.below + other.below,
            self.scans_above + other.scans_above,
            self.scans_below + other.scans_below,
            self.above_alone + other.above_alone,
            self.below_alone + other.below_alone,
        )


@dataclass(frozen=True)
class LowerEnd:
    """How the network draws the lower end of the column, in labeled scans that show L5-S and three discs above it.

    Attributes:
        scans: Number of such scans.
        thin: Those in which L5-S is drawn with less than a quarter of the usual volume of a disc, or not at all.
        below_thin: Those in which an equally thin disc is drawn below L5-S: the remnant between S1 and S2.
        below: Those in which a larger disc is drawn there.
        s1: Those in which S1, or a part of it, is drawn as a vertebra.
        s1_whole: Those in which that vertebra is large.
        shifted: Those in which the last lumbar vertebra is taken for the sacrum, with the landmarks one disc too high.
    """

    scans: float = 0.0
    thin: float = 0.0
    below_thin: float = 0.0
    below: float = 0.0
    s1: float = 0.0
    s1_whole: float = 0.0
    shifted: float = 0.0

    def __add__(self, other: "LowerEnd") -> "LowerEnd":
        return LowerEnd(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def pulled(self, careful: "LowerEnd") -> "LowerEnd":
        """Return the shares of all scans, pulled toward careful ones.

        Args:
            careful: Shares of one scan assumed of every network.
        """
        pairs = zip(vars(self).values(), vars(careful).values(), strict=True)
        return LowerEnd(*((count + PRIOR_SCANS * share) / (self.scans + PRIOR_SCANS) for count, share in pairs))


@dataclass(frozen=True)
class Failures:
    """Labeled scans that were named with the trust measured on the others, and how many came out wrong.

    The probabilities of a scan's names do not include how the network fails as a whole: these counts show what they
    leave out.

    Attributes:
        scans: Number of scans.
        wrong: Those in which a level has a wrong name.
        expected: Number of wrong ones that the probabilities predict.
    """

    scans: float = 0.0
    wrong: float = 0.0
    expected: float = 0.0

    def __add__(self, other: "Failures") -> "Failures":
        return Failures(self.scans + other.scans, self.wrong + other.wrong, self.expected + other.expected)

    def chance(self, careful: float) -> float:
        """Return the chance that names are wrong for reasons outside their probabilities, pulled toward ``careful``."""
        more = self.wrong - self.expected + PRIOR_SCANS * careful
        return max(0.0, more / (self.scans + PRIOR_SCANS))


@dataclass(frozen=True)
class Trust:
    """Measured errors of one network.

    Attributes:
        landmarks: Counts for each of ``LANDMARK_DISCS``, in their order.
        lower_end: How the lower end of the column is drawn.
        parity_levels: Vertebrae whose odd/even class was compared.
        parity_wrong: Number of these with the other class.
        cord_logit: Value that is added to the logit of the cord before it is compared with 0; a cord that is drawn too
            thin needs more.
        mirror: Whether the results of the image and its left-right mirror image are averaged.
        scans: Number of labeled scans in the measurement.
        uncontradicted: Names that nothing contradicts, and their failures.
        contradicted: The same where a piece or a landmark contradicts them.
    """

    landmarks: tuple[Seen, ...] = field(default=(Seen(),) * len(LANDMARK_DISCS))
    parity_levels: float = 0.0
    parity_wrong: float = 0.0
    cord_logit: float = 0.0
    mirror: bool = False
    scans: int = 0
    lower_end: LowerEnd = field(default_factory=LowerEnd)
    uncontradicted: Failures = field(default_factory=Failures)
    contradicted: Failures = field(default_factory=Failures)

    @property
    def measured(self) -> bool:
        """Whether enough scans were measured to know how the network treats the sacrum of real people."""
        return self.scans >= MIN_SCANS

    @property
    def parity(self) -> float:
        """The chance that a vertebra has the other odd/even class."""
        return (self.parity_wrong + PRIOR_LEVELS * CAREFUL_PARITY) / (self.parity_levels + PRIOR_LEVELS)

    def chances(self, landmark: int, *, careful: "Chances") -> "Chances":
        """Return the chances for one landmark: the counts, combined with cautious values.

        Args:
            landmark: Position in ``LANDMARK_DISCS``.
            careful: Cautious values that are assumed for every network.
        """
        seen, prior = self.landmarks[landmark], PRIOR_SCANS
        return Chances(
            (seen.own + prior * careful.own) / (seen.scans + prior),
            (seen.above + prior * careful.above) / (seen.scans_above + prior),
            (seen.below + prior * careful.below) / (seen.scans_below + prior),
            (seen.above_alone + prior * careful.above_alone) / (seen.scans_above + prior),
            (seen.below_alone + prior * careful.below_alone) / (seen.scans_below + prior),
        )

    def __add__(self, other: "Trust") -> "Trust":
        """Return the sum of both counts; values that are not counts are those of this object."""
        return replace(
            self,
            landmarks=tuple(a + b for a, b in zip(self.landmarks, other.landmarks, strict=True)),
            parity_levels=self.parity_levels + other.parity_levels,
            parity_wrong=self.parity_wrong + other.parity_wrong,
            scans=self.scans + other.scans,
            lower_end=self.lower_end + other.lower_end,
            uncontradicted=self.uncontradicted + other.uncontradicted,
            contradicted=self.contradicted + other.contradicted,
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
            "lower_end": dict(vars(self.lower_end)),
            "names": {key: dict(vars(getattr(self, key))) for key in NAMED},
        }


@dataclass(frozen=True)
class Chances:
    """Chance that a landmark's own disc, the disc above it, and the disc below it carry its class, and that only the
    disc above or below does."""

    own: float
    above: float
    below: float
    above_alone: float
    below_alone: float

    def beside(self, *, above: bool, own: float) -> float:
        """Return the chance that the disc beside a landmark carries the landmark's class, given its own disc.

        A class that moved is one event, not two: a disc that lost its class and a neighbor that got one.

        Args:
            above: Whether it is the disc above; else the one below.
            own: Share of the class on the landmark's own disc.
        """
        either, alone = (self.above, self.above_alone) if above else (self.below, self.below_alone)
        also, instead = max(0.0, either - alone) / self.own, alone / (1.0 - self.own)
        return own * min(1.0, also) + (1.0 - own) * min(1.0, instead)


UNMEASURED: Final = Trust()
"""The trust in weights that nobody has measured: the cautious values, without mirroring."""


def trust_from_json(content: Mapping[str, Any], *, source: str) -> Trust:
    """Read the values of ``Trust.as_json``.

    Args:
        content: The JSON.
        source: Name of the file for an error.

    Raises:
        WeightsError: It is not such a file, or its numbers are impossible.
    """
    try:
        landmarks = tuple(
            Seen(**{key: float(n) for key, n in content["landmarks"][NAME_OF[code]].items()}) for code in LANDMARK_DISCS
        )
        trust = Trust(
            landmarks,
            float(content["parity"]["levels"]),
            float(content["parity"]["wrong"]),
            float(content["cord_logit"]),
            bool(content["mirror"]),
            int(content["scans"]),
            # Files of earlier versions do not have these.
            LowerEnd(**{key: float(n) for key, n in content.get("lower_end", {}).items()}),
            *(Failures(**{k: float(n) for k, n in content.get("names", {}).get(key, {}).items()}) for key in NAMED),
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
        pairs += [(seen.above_alone, seen.above), (seen.below_alone, seen.below)]
    pairs += [(count, trust.lower_end.scans) for count in vars(trust.lower_end).values()]
    for failures in (trust.uncontradicted, trust.contradicted):
        pairs += [(failures.wrong, failures.scans), (failures.expected, failures.scans)]
    if not all(0 <= part <= whole < float("inf") for part, whole in pairs):
        raise ValueError("more cases than scans")
    if not abs(trust.cord_logit) <= MAX_CORD_LOGIT:
        raise ValueError(f"cord_logit {trust.cord_logit!r}")


Certainty = Literal["certain", "counted", "doubtful"]
"""Certain: what is in view identifies the names. Counted: they were counted up from the sacrum or down from C2, nothing
contradicts, and only an unusual number of vertebrae would change them. Doubtful: evidence contradicts, or is missing.
"""
CERTAINTIES: Final[tuple[Certainty, ...]] = get_args(Certainty)


def certainty_of(known: Mapping[str, Any] | None) -> Certainty | None:
    """Return the certainty in a numbering's report, or in a record that copied it.

    Args:
        known: The report or record; None or empty if there is none. One from before there were three answers has only
            ``confident``.

    Returns:
        None if nothing is known: for the iterative method, or for a reader's own label.
    """
    for certainty in CERTAINTIES:
        if known and known.get("certainty") == certainty:
            return certainty
    confident = known.get("confident") if known else None
    return None if confident is None else "certain" if confident else "doubtful"


def is_doubtful(known: Mapping[str, Any] | None) -> bool:
    """Return whether the names are doubtful and need a warning; False if nothing is known."""
    return certainty_of(known) == "doubtful"


def proves_nothing(known: Mapping[str, Any] | None) -> bool:
    """Return whether names are too uncertain to be used for other scans; False if nothing is known."""
    return certainty_of(known) in ("counted", "doubtful")
