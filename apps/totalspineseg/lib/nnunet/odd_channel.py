"""Step 2's second channel while training: every other disc, as truth has it or as step 1 would give it."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lib.anatomy import DISCS
from lib.geometry import LabelArray
from lib.nnunet.targets import has_unreviewed, mark, present_codes
from lib.transforms.discs import column_showing

FloatArray = npt.NDArray[np.float32]

EXACT_CHANNEL_SHARE: Final = 0.25
"""Share of the second channels that come from truth; the others carry step 1's own errors or such as it makes them. A
network that mostly sees true outlines copies what it is given: thin discs came out as small as step 1 found them."""
FOUND_CHANNEL_SHARE: Final = 2 / 3
"""Of the others: share that a step-1 network found in this very scan, where there is one."""
OUTLINE_SHARE: Final = 0.7
"""Of the disturbed channels: share in which each disc is a little larger, smaller or shifted (the usual error)."""
LOST_SHARE: Final = 0.25
"""Share in which a marked disc is missing, as where step 1 found a disc but not its name."""
FALSE_SHARE: Final = 0.15
"""Share in which an unmarked disc is marked in part, as where two discs were joined."""
HOLE_SHARE: Final = 0.3
"""Share in which a disc has a bite taken out, as at degenerate discs."""
BITE_DISC_SHARE: Final = 0.4
"""Edge of the bite relative to the disc's box."""


def marked_discs(codes: LabelArray, *, swapped: bool) -> tuple[int, ...]:
    """The discs a training channel marks: those above a vertebra that is odd in this variant.

    Args:
        codes: uint8 output codes of the whole scan. Not modified.
        swapped: The variant with odd and even exchanged marks the other set.

    Returns:
        Disc codes, superior to inferior; empty where no disc of the set is in view, see ``taught_variant``.

    Source:
        The reference lists the discs of each set by name; here the place in the column decides, so that discs which are
        missing between others, hidden or fused, shift nothing, nor do 11 or 13 thoracic vertebrae. What class 7 means
        follows: it is the vertebra below a marked disc, as at inference.
    """
    shown = present_codes(codes)
    spine = column_showing(shown, whole=not has_unreviewed(codes))
    # C1 is the first vertebra, so the one below the disc of index k is number k + 2.
    return tuple(disc for k, disc in enumerate(spine.discs) if disc in shown and (k % 2 == 1) != swapped)


def taught_variant(codes: LabelArray, *, swapped: bool) -> bool:
    """Whether odd and even are exchanged: as asked, but never so that no disc is marked, for inference marks one.

    Args:
        codes: As in ``marked_discs``.
        swapped: What is asked for.
    """
    return swapped if marked_discs(codes, swapped=swapped) else not swapped and bool(marked_discs(codes, swapped=True))


def disturbed_channel(codes: LabelArray, marked: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """The channel with errors that a step-1 network makes: outlines, bites, a lost disc, a joined neighbor.

    Args:
        codes: uint8 output codes, or a part of them. Not modified.
        marked: From ``marked_discs``.
        rng: Source of the errors.

    Returns:
        float32 0/1, same shape.
    """
    shown = present_codes(codes)
    visible = [code for code in marked if code in shown]
    if visible and rng.random() < LOST_SHARE:
        visible.remove(visible[int(rng.integers(len(visible)))])
    channel = mark(codes, visible) > 0
    if visible and rng.random() < OUTLINE_SHARE:
        channel = _disturb_outline(channel, rng)
    if visible and rng.random() < HOLE_SHARE:
        _take_bite(channel, codes == visible[int(rng.integers(len(visible)))], rng)
    others = [code for code in DISCS if code not in marked and code in shown]
    if others and rng.random() < FALSE_SHARE:
        part = codes == others[int(rng.integers(len(others)))]
        _take_bite(part, part.copy(), rng)
        channel |= part
    return channel.astype(np.float32)


def _disturb_outline(channel: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Each boundary voxel kept or given away by a smooth random field, so that errors are lumps and not salt."""
    field = ndimage.gaussian_filter(rng.standard_normal(channel.shape).astype(np.float32), 2.0)
    grown, shrunk = ndimage.binary_dilation(channel), ndimage.binary_erosion(channel)
    limit = float(field.std()) * 0.7
    result: npt.NDArray[np.bool_] = np.where(field > limit, grown, np.where(field < -limit, shrunk, channel))
    return result


def _take_bite(channel: npt.NDArray[np.bool_], disc: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Clear a box of the disc in ``channel``, which is the caller's own array."""
    box = ndimage.find_objects(disc.astype(np.uint8))[0]
    bite = []
    for axis in box:
        length = axis.stop - axis.start
        edge = max(1, round(length * BITE_DISC_SHARE))
        start = axis.start + int(rng.integers(0, max(1, length - edge + 1)))
        bite.append(slice(start, start + edge))
    channel[tuple(bite)] = False
