"""Make step 2's second channel for training: every other disc, exact or with step 1's errors."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from totalspineseg_server.anatomy import BACKGROUND, DISCS, STEP1_REGIONS
from totalspineseg_server.geometry import FloatArray, LabelArray
from totalspineseg_server.nnunet.targets import has_unreviewed, mark, present_codes
from totalspineseg_server.prediction import Predictor
from totalspineseg_server.transforms.discs import column_showing

EXACT_CHANNEL_SHARE: Final = 0.25
"""Share of second channels that are exact; the others have errors of step 1, real or simulated. A network that mostly
sees exact outlines copies its input: thin discs would become as small as step 1 found them.
"""
FOUND_CHANNEL_SHARE: Final = 2 / 3
"""Share of the other channels that have the discs a step-1 network found in the same scan, if there is a network."""
OUTLINE_SHARE: Final = 0.7
"""Share of the simulated channels in which each disc is a little larger, smaller or shifted (the usual error)."""
LOST_SHARE: Final = 0.25
"""Share of the simulated channels in which a marked disc is missing, as if step 1 had found it without its name."""
FALSE_SHARE: Final = 0.15
"""Share of the simulated channels in which a part of an unmarked disc is marked, as if two discs had been joined."""
HOLE_SHARE: Final = 0.3
"""Share of the simulated channels in which a disc has a hole, like degenerate discs."""
BITE_DISC_SHARE: Final = 0.4
"""Edge length of the hole relative to the disc's box."""


def marked_discs(codes: LabelArray, *, swapped: bool) -> tuple[int, ...]:
    """Return the discs that a training channel marks: those above a vertebra that is odd in this variant.

    Args:
        codes: uint8 output codes of the whole scan. Not modified.
        swapped: Whether odd and even are exchanged, so that the other discs are marked.

    Returns:
        Codes of the marked discs, superior to inferior; empty if none of them is in view, see ``training_variant``.

    Source:
        The reference lists the discs of each set by name. Here the position in the column counts, so that missing,
        hidden or fused discs, or 11 or 13 thoracic vertebrae, shift nothing. Class 7 is the vertebra below a marked
        disc, as at inference.
    """
    present = present_codes(codes)
    spine = column_showing(present, whole=not has_unreviewed(codes))
    # C1 is the first vertebra, so the one below the disc with index k is number k + 2.
    return tuple(disc for k, disc in enumerate(spine.discs) if disc in present and (k % 2 == 1) != swapped)


def training_variant(codes: LabelArray, *, swapped: bool) -> bool:
    """Return whether odd and even are exchanged: as requested, or the other way if no disc would be marked.

    Args:
        codes: As in ``marked_discs``.
        swapped: The request.
    """
    return swapped if marked_discs(codes, swapped=swapped) else not swapped and bool(marked_discs(codes, swapped=True))


def disturbed_channel(codes: LabelArray, marked: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Return a channel with errors of a step-1 network: outlines, holes, a missing disc, a joined neighbor.

    Args:
        codes: uint8 output codes, or a part of them. Not modified.
        marked: From ``marked_discs``.
        rng: Source of the errors.

    Returns:
        float32 0/1, same shape.
    """
    present = present_codes(codes)
    visible = [code for code in marked if code in present]
    if visible and rng.random() < LOST_SHARE:
        visible.remove(visible[int(rng.integers(len(visible)))])
    channel = mark(codes, visible) > 0
    if visible and rng.random() < OUTLINE_SHARE:
        channel = _disturb_outline(channel, rng)
    if visible and rng.random() < HOLE_SHARE:
        _take_bite(channel, codes == visible[int(rng.integers(len(visible)))], rng)
    others = [code for code in DISCS if code not in marked and code in present]
    if others and rng.random() < FALSE_SHARE:
        part = codes == others[int(rng.integers(len(others)))]
        _take_bite(part, part.copy(), rng)
        channel |= part
    return channel.astype(np.float32)


def _disturb_outline(channel: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Grow or shrink the outline by a smooth random field, so that errors are lumps and not single voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(channel.shape).astype(np.float32), 2.0)
    grown, shrunk = ndimage.binary_dilation(channel), ndimage.binary_erosion(channel)
    limit = float(field.std()) * 0.7
    result: npt.NDArray[np.bool_] = np.where(field > limit, grown, np.where(field < -limit, shrunk, channel))
    return result


def _take_bite(channel: npt.NDArray[np.bool_], disc: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Clear a box of the disc in ``channel``, which is the caller's own array and is modified."""
    box = ndimage.find_objects(disc.astype(np.uint8))[0]
    bite = []
    for axis in box:
        length = axis.stop - axis.start
        edge = max(1, round(length * BITE_DISC_SHARE))
        start = axis.start + int(rng.integers(0, max(1, length - edge + 1)))
        bite.append(slice(start, start + edge))
    channel[tuple(bite)] = False


NEAR_MM: Final = 5
"""A voxel farther than this from every true disc does not belong to a disc."""
_DISC_CLASSES: Final = STEP1_REGIONS["disc"]


def found_discs(image: FloatArray, codes: LabelArray, predictor: Predictor) -> LabelArray:
    """Give each found voxel the code of the nearest true disc, so that either set of discs can be marked.

    Args:
        image: (X, Y, Z) float32 at 1 mm, nearest RAS. Not modified.
        codes: uint8 output codes, the same shape. Not modified.
        predictor: The warm step-1 network.

    Returns:
        uint8 codes of discs, the same shape, 0 elsewhere; all 0 if there is no disc or none was found.
    """
    truth = np.isin(codes, DISCS)
    found = np.isin(predictor.predict(image[np.newaxis]).labels, _DISC_CLASSES)
    if not truth.any() or not found.any():
        return np.zeros_like(codes)
    distance, nearest = ndimage.distance_transform_edt(~truth, return_indices=True)
    named: LabelArray = np.where(found & (distance <= NEAR_MM), codes[tuple(nearest)], BACKGROUND).astype(np.uint8)
    return named
