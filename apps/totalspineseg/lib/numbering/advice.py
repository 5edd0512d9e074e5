"""Doubts in words: how two numberings differ, and what would decide between them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from lib.anatomy import C7, DISC_C2_C3, DISC_L5_S, L1, L6, LUMBAR, NAME_OF, SACRUM, T11, T12, T13, column

_WORDS: Final = ("no", "one", "two", "three", "four", "five", "six")


def _ranks() -> Mapping[int, float]:
    """Height of a structure in levels, rising to inferior; an extra vertebra stands half a level on."""
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
    """How a competing numbering differs from the best one.

    Args:
        best: Codes of the levels, superior to inferior; 0 = not a structure.
        other: Codes of the same levels in the competing numbering.

    Returns:
        For example "L1 and all below one level higher": each would carry the name above. "the same names" where
        nothing differs.
    """
    pairs = [(a, b) for a, b in zip(best, other, strict=True) if a and b and a != b]
    if not pairs:
        return "the same names"
    moved = [_RANK[b] - _RANK[a] for a, b in pairs]
    first = moved[0] or 1.0
    levels = max(1, round(abs(first)))
    count = _WORDS[levels] if levels < len(_WORDS) else str(levels)
    start, end, lowest = pairs[0][0], pairs[-1][0], next(a for a in reversed(best) if a)
    which = "" if start == end else " and all below" if end == lowest else f" to {NAME_OF[end]}"
    way = "higher" if first < 0 else "lower"
    return f"{NAME_OF[start]}{which} {count} level{'s' if levels > 1 else ''} {way}"


def would_settle(codes: Sequence[int], alternatives: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """What would decide between competing numberings.

    Args:
        codes: The best numbering.
        alternatives: The competing ones.

    Returns:
        One sentence each, the most useful first; never empty.
    """
    present = set(codes).union(*alternatives)
    advice = []
    if DISC_C2_C3 not in codes and not (DISC_L5_S in codes or SACRUM in codes):
        advice.append("a localizer or a scan of the same patient that shows C2-C3 or the sacrum")
    elif DISC_C2_C3 not in codes and present & {T13, L6} | (present & set(LUMBAR)):
        advice.append("a localizer from C2 to the sacrum, to count all vertebrae")
    elif {C7, T11} <= set(codes) and not {T12, L1} & set(codes):
        advice.append("a localizer that reaches the sacrum")
    else:
        advice.append("another series of the same patient with a larger field of view")
    advice.append("the name of one level, fixed by a reader")
    return tuple(advice)
