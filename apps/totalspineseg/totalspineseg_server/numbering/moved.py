"""Find discs that were segmented as a landmark but named as another disc, which is a reason to doubt all names."""

from collections.abc import Collection, Sequence
from typing import Final

from totalspineseg_server.anatomy import NAME_OF
from totalspineseg_server.numbering import messages
from totalspineseg_server.numbering.evidence import landmark_shares
from totalspineseg_server.numbering.evidence_weights import MOSTLY, ORDER
from totalspineseg_server.numbering.findings import Finding, found_at
from totalspineseg_server.transforms.labeling import UNNAMED
from totalspineseg_server.transforms.pieces import Pieces

NEAR: Final = 6
"""Largest distance over which a misplaced landmark indicates a shift, in places of the column (three levels)."""
OWN_SHARE: Final = 0.25
"""If this share of a disc has the class of the landmark that is its name, the network also saw the landmark there.
"""


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
    text = messages.LANDMARK_DIFFERS.format(landmark=NAME_OF[landmark], name=NAME_OF[name])
    return found_at(pieces.discs[k], "landmark_differs", name, text)
