"""Put doubts into words: how two numberings differ, and what would decide between them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from totalspineseg_server.anatomy import (
    C7,
    DISC_C2_C3,
    DISC_L5_S,
    L1,
    L6,
    LUMBAR,
    NAME_OF,
    SACRUM,
    T11,
    T12,
    T13,
    column,
)
from totalspineseg_server.numbering import numbering_messages

_WORDS: Final = ("no", "one", "two", "three", "four", "five", "six")


def _ranks() -> Mapping[int, float]:
    """Return the place of each structure in levels, increasing toward inferior; an extra vertebra is half a level
    further down."""
    normal = column()
    ranks: dict[int, float] = {}
    for level, (vertebra, disc) in enumerate(zip(normal.vertebrae, normal.discs, strict=True)):
        ranks[vertebra] = float(level)
        if disc is not None:
            ranks[disc] = float(level)
    for spine in (column(13, 5), column(12, 6)):
        for level, (vertebra, disc) in enumerate(zip(spine.vertebrae, spine.discs, strict=True)):
            ranks.setdefault(vertebra, level - 0.5)
            if disc is not None:
                ranks.setdefault(disc, level - 0.5)
    ranks[SACRUM] = float(len(normal.vertebrae))
    return MappingProxyType(ranks)


_RANK: Final = _ranks()


def shift_text(best: Sequence[int], other: Sequence[int]) -> str:
    """Describe how a competing numbering differs from the best one.

    Args:
        best: Codes of the levels, superior to inferior; 0 = not a structure. Not modified.
        other: Codes of the same levels in the competing numbering. Not modified.

    Returns:
        For example "L1 and all below one level higher": each would have the name of the level above. "the same names"
        if nothing differs.
    """
    pairs = [(a, b) for a, b in zip(best, other, strict=True) if a and b and a != b]
    if not pairs:
        return numbering_messages.SAME_NAMES
    moved = [_RANK[b] - _RANK[a] for a, b in pairs]
    first = moved[0] or 1.0
    levels = max(1, round(abs(first)))
    count = _WORDS[levels] if levels < len(_WORDS) else str(levels)
    start, end, lowest = pairs[0][0], pairs[-1][0], next(a for a in reversed(best) if a)
    named = "{start}" if start == end else numbering_messages.ALL_BELOW if end == lowest else numbering_messages.UP_TO
    return numbering_messages.SHIFT.format(
        levels=named.format(start=NAME_OF[start], end=NAME_OF[end]),
        count=count,
        unit="levels" if levels > 1 else "level",
        direction="higher" if first < 0 else "lower",
    )


def would_settle(codes: Sequence[int], alternatives: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Return the means that would decide between competing numberings.

    Args:
        codes: The best numbering. Not modified.
        alternatives: The competing ones. Not modified.

    Returns:
        A phrase for each, the most useful first; never empty.
    """
    present = set(codes).union(*alternatives)
    advice = []
    if DISC_C2_C3 not in codes and not (DISC_L5_S in codes or SACRUM in codes):
        advice.append(numbering_messages.BOTH_ENDS)
    elif DISC_C2_C3 not in codes and present & {T13, L6} | (present & set(LUMBAR)):
        advice.append(numbering_messages.WHOLE_COLUMN)
    elif {C7, T11} <= set(codes) and not {T12, L1} & set(codes):
        advice.append(numbering_messages.SACRUM_IN_VIEW)
    else:
        advice.append(numbering_messages.LARGER_VIEW)
    advice.append(numbering_messages.PIN)
    return tuple(advice)
