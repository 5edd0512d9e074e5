"""Find what contradicts the names: pieces without a name, and landmarks that are named as another disc."""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, C1, DISC_L5_S, NAME_OF, SACRUM, Kind, column
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.evidence import Evidence, landmark_shares
from totalspineseg_server.numbering.evidence_weights import MOSTLY, ORDER, THIN_DISC, s1_shape
from totalspineseg_server.numbering.findings import Finding, found_at
from totalspineseg_server.numbering.solver import FALSE, Path
from totalspineseg_server.transforms.labeling import UNNAMED, Naming
from totalspineseg_server.transforms.pieces import Pieces

UNEXPLAINED_SHARE: Final = 0.5
"""Smallest share of the usual volume of its kind with which a piece has the size of a structure."""
SWOLLEN: Final = 1.35
"""A vertebra that is larger than its neighbors by this factor contains more than itself (neighbors differ by 5-10
%)."""
NEIGHBORS: Final = 6
"""Number of vertebrae around a missed one that are compared."""
NEAR: Final = 6
"""Largest distance over which a misplaced landmark indicates a shift, in places of the column (three levels)."""
OWN_SHARE: Final = 0.25
"""If this share of a disc has the class of the landmark that is its name, the network also saw the landmark there.
"""
_BESIDE: Final = {
    frozenset(pair)
    for one in (column(thoracic, lumbar) for thoracic in (11, 12, 13) for lumbar in (4, 5, 6))
    for k, disc in enumerate(one.discs)
    for pair in ((one.vertebrae[k], disc), *((disc, bone) for bone in one.vertebrae[k + 1 : k + 2]))
    if disc is not None
}
"""A disc and a vertebra beside it, in people with any number of vertebrae."""


def left_out(path: Path, evidence: Evidence, naming: Naming) -> tuple[int, ...]:
    """Return the items without a name.

    Args:
        path: Code of each item by the chain.
        evidence: From ``gather``.
        naming: Final names of the pieces.

    Returns:
        Their indices in ``evidence.items``.
    """
    out = []
    for k, (item, code) in enumerate(zip(evidence.items, path, strict=True)):
        names = naming.discs if item.kind is Kind.DISC else naming.vertebrae
        if code == FALSE and item.index >= 0 and names[item.index] == UNNAMED:
            out.append(k)
    return tuple(out)


def contradicts(out: Sequence[int], path: Path, evidence: Evidence, missed: Sequence[int]) -> bool:
    """Return whether a piece of the size of a structure was left out where there should be one.

    A vertebra or a sacrum of usual size should always have a name. A disc may be false, but not next to a level whose
    disc is missing, and not below L5-S if it looks like another L5-S. A piece far beside the column (skin, bowel,
    bladder) contradicts nothing, and neither does the skull base above C1, or a second sacrum that is smaller than the
    named one.

    Args:
        out: From ``left_out``.
        path: Code of each item by the chain.
        evidence: From ``gather``.
        missed: Codes of structures in view without a piece.
    """
    for k in out:
        item = evidence.items[k]
        bone = item.kind is not Kind.DISC
        usual = [i.volume_mm3 for i in evidence.items if (i.kind is not Kind.DISC) == bone and not i.cut]
        if item.cut or item.is_far or item.volume_mm3 < UNEXPLAINED_SHARE * float(np.median(usual)):
            continue
        named = [i.volume_mm3 for i, code in zip(evidence.items, path, strict=True) if code == SACRUM]
        if item.kind is Kind.SACRUM and named and max(named) > item.volume_mm3:
            continue
        above = max((ORDER[code] for code in path[:k] if code != FALSE), default=-1)
        below = min((ORDER[code] for code in path[k + 1 :] if code != FALSE), default=len(ORDER))
        if bone and above < 0 and below == ORDER[C1]:
            continue
        if bone or any(above < ORDER[code] < below for code in missed if BY_CODE[code].kind is Kind.DISC):
            return True
    if below_l5_s(out, path, evidence) is not None:
        return True
    return any(_swollen(code, path, evidence) for code in missed if BY_CODE[code].kind is Kind.VERTEBRA)


def is_bridged(missed: Collection[int]) -> bool:
    """Return whether a whole level, a vertebra and a disc beside it, is missing between named levels: then the distance
    alone tells how many there are.

    Args:
        missed: Codes of structures in view without a piece.
    """
    codes = set(missed)
    return any(pair <= codes for pair in _BESIDE)


def below_l5_s(out: Sequence[int], path: Path, evidence: Evidence) -> int | None:
    """Return the largest disc below the one named L5-S if it may be L5-S itself: if it is not thin, as that between S1
    and S2 is in most people, or if the bone between them has the shape of a lumbar vertebra, or is drawn as a vertebra
    and too small to have a shape. None if there is none.

    Args:
        out: From ``left_out``.
        path: Code of each item by the chain.
        evidence: From ``gather``.
    """
    if DISC_L5_S not in path:
        return None
    last = len(path) - 1 - path[::-1].index(DISC_L5_S)
    items = evidence.items
    below = [k for k in out if k > last and items[k].kind is Kind.DISC and not items[k].is_far]
    if not below:
        return None
    largest = max(below, key=lambda k: items[k].volume_mm3)
    named = [i.volume_mm3 for i, code in zip(items, path, strict=True) if i.kind is Kind.DISC and code != FALSE]
    is_thin = items[largest].volume_mm3 < THIN_DISC * float(np.median(named))
    bones = [k for k in range(last + 1, largest) if path[k] == SACRUM]
    is_separate = any(items[k].kind is Kind.VERTEBRA and items[k].taper is None for k in bones)
    is_lumbar = any(s1_shape(items[k]) < 1 for k in bones)
    return largest if is_separate or is_lumbar or not is_thin else None


def _swollen(missed: int, path: Path, evidence: Evidence) -> bool:
    """Return whether a neighbor of a missed vertebra is so large that it seems to contain part of it."""
    bones = [
        (abs(ORDER[code] - ORDER[missed]), item.volume_mm3)
        for item, code in zip(evidence.items, path, strict=True)
        if code != FALSE and item.kind is Kind.VERTEBRA and not item.cut
    ]
    near = sorted(bones)[:NEIGHBORS]
    usual = float(np.median([volume for _, volume in near])) if len(near) == NEIGHBORS else np.inf
    return any(volume > SWOLLEN * usual for _, volume in near[:2])


def moved_landmarks(
    names: Sequence[int], pieces: Pieces, *, pinned: Collection[int], missed: Collection[int]
) -> tuple[Finding, ...]:
    """Return the network's landmarks that the names contradict.

    Three kinds do not count: a landmark that covers its own disc and the next one; a landmark far from its place, which
    is clearly an error; and a landmark that can be counted from a pin without a gap, because networks label the fifth
    disc from the sacrum as T12-L1 even in a column with six lumbar vertebrae.

    Args:
        names: Code of each disc of ``pieces``.
        pieces: The pieces. Not modified.
        pinned: Codes of the levels that a reader fixed.
        missed: Codes of structures in view that have no piece.
    """
    shares = [landmark_shares(piece) for piece in pieces.discs]
    own = {name for name, by_landmark in zip(names, shares, strict=True) if by_landmark.get(name, 0.0) >= OWN_SHARE}
    return tuple(
        _moved(k, name, landmark, pieces)
        for k, (name, by_landmark) in enumerate(zip(names, shares, strict=True))
        for landmark, share in by_landmark.items()
        if share > MOSTLY
        and name not in (UNNAMED, landmark)
        and landmark not in own
        and abs(ORDER[name] - ORDER[landmark]) <= NEAR
        and not any(_is_counted(name, pin, missed) for pin in pinned)
    )


def _is_counted(name: int, pin: int, missed: Collection[int]) -> bool:
    """Return whether nothing was missed between two levels."""
    low, high = sorted((ORDER[name], ORDER[pin]))
    return not any(low < ORDER[code] < high for code in missed)


def _moved(k: int, name: int, landmark: int, pieces: Pieces) -> Finding:
    text = numbering_messages.LANDMARK_DIFFERS.format(landmark=NAME_OF[landmark], name=NAME_OF[name])
    return found_at(pieces.discs[k], "landmark_differs", name, text)
