"""Discs that were drawn as one landmark and got the name of another disc: a doubt about all names."""

from collections.abc import Collection, Sequence
from typing import Final

from lib.anatomy import NAME_OF
from lib.numbering.evidence import landmark_shares
from lib.numbering.findings import Finding, found_at
from lib.numbering.weights import MOSTLY, ORDER
from lib.transforms.labeling import UNNAMED
from lib.transforms.pieces import Pieces

NEAR: Final = 6
"""Three levels, in places of the column: a landmark that is drawn farther off tells of no shift."""
SPREAD: Final = 0.25
"""A disc of which this share was drawn as the landmark it is named shows that the network saw it there too."""


def moved_landmarks(
    names: Sequence[int], pieces: Pieces, *, pinned: Collection[int], missed: Collection[int]
) -> tuple[Finding, ...]:
    """Landmarks of the network that the names contradict.

    A landmark that is spread over its own disc and the next is no doubt, nor one that is drawn far from its place: that
    the network errs there is plain. Nor is one to which a reader's level was counted without a gap: networks take the
    fifth disc from the sacrum for T12-L1 in a column with six lumbar vertebrae, too.

    Args:
        names: Code of each disc of ``pieces``.
        pieces: The pieces. Not modified.
        pinned: Codes of the levels a reader has fixed.
        missed: Codes of structures in view that have no piece.
    """
    shares = [landmark_shares(piece) for piece in pieces.discs]
    own = {name for name, drawn in zip(names, shares, strict=True) if drawn.get(name, 0.0) >= SPREAD}
    return tuple(
        _moved(k, name, landmark, pieces)
        for k, (name, drawn) in enumerate(zip(names, shares, strict=True))
        for landmark, share in drawn.items()
        if share > MOSTLY
        and name not in (UNNAMED, landmark)
        and landmark not in own
        and abs(ORDER[name] - ORDER[landmark]) <= NEAR
        and not any(_is_counted(name, pin, missed) for pin in pinned)
    )


def _is_counted(name: int, pin: int, missed: Collection[int]) -> bool:
    """Whether nothing was missed between two levels."""
    low, high = sorted((ORDER[name], ORDER[pin]))
    return not any(low < ORDER[code] < high for code in missed)


def _moved(k: int, name: int, landmark: int, pieces: Pieces) -> Finding:
    text = f"The network drew this disc as {NAME_OF[landmark]}, but by everything else in view it is {NAME_OF[name]}."
    return found_at(pieces.discs[k], "landmark_differs", name, text)
