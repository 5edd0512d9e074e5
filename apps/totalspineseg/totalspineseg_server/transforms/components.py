"""Find connected components and boxes, and dilate masks.

All functions work on C-ordered copies of the foreground's box. This does not change results: a dilation that joins two
components does so inside the box around both.
"""

from typing import Final

import cc3d
import numpy as np
import numpy.typing as npt

Box = tuple[slice, slice, slice]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]
Slices = npt.NDArray[np.intp]

CONNECTIVITY: Final = 26
"""Voxels that share a face, an edge or a corner are connected."""
JOIN_LARGEST_VOX: Final = 5
"""Dilation in voxels at 1 mm, so that a missing disc between two vertebrae (about 10 mm) does not cut the spine."""


def foreground_box(labels: npt.NDArray[np.generic], *, margin_vox: int = 0) -> Box | None:
    """Return the smallest box around all voxels that are not zero.

    Args:
        labels: Any array (X, Y, Z). Not modified.
        margin_vox: Voxels to add on every side, as far as the array goes.

    Returns:
        One slice per axis; None if every voxel is zero.
    """
    mask = labels if labels.dtype == np.bool_ else labels != 0
    slices = []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if hits.size == 0:
            return None
        slices.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return grown_box((slices[0], slices[1], slices[2]), margin_vox, labels.shape)


def grown_box(box: Box, margin_vox: int, shape: tuple[int, ...]) -> Box:
    """Return a box with a margin on every side, clipped to an array of this shape."""
    x, y, z = (
        slice(max(s.start - margin_vox, 0), min(s.stop + margin_vox, size)) for s, size in zip(box, shape, strict=True)
    )
    return x, y, z


def dilate_faces(mask: Mask, times: int = 1) -> Mask:
    """Return a mask grown by its face neighbors.

    Args:
        mask: bool (X, Y, Z). Not modified.
        times: Number of voxels to grow by.

    Returns:
        A new bool array of the same shape.
    """
    grown = np.array(mask, dtype=np.bool_, order="C")
    for _ in range(times):
        source = grown.copy()
        for axis in range(3):
            lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
            upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
            grown[upper] |= source[lower]
            grown[lower] |= source[upper]
    return grown


def between_extremes(mask: Mask, axis: int) -> Mask:
    """Return a mask that fills each line between its first and last True.

    Args:
        mask: bool (X, Y, Z). Not modified.
        axis: Direction of the lines.

    Returns:
        A new bool array.
    """
    lines = np.moveaxis(mask, axis, -1)
    length = lines.shape[-1]
    index = np.arange(length, dtype=np.int16)
    first = lines.argmax(axis=-1).astype(np.int16)
    last = (length - 1 - lines[..., ::-1].argmax(axis=-1)).astype(np.int16)
    last[~lines.any(axis=-1)] = -1
    between = (index >= first[..., np.newaxis]) & (index <= last[..., np.newaxis])
    return np.asarray(np.moveaxis(between, -1, axis))


def labels_present(labels: Labels) -> Mask:
    """Return which labels occur.

    Args:
        labels: uint8 (X, Y, Z). Not modified.

    Returns:
        256 bools; the background's is always False.
    """
    return np.asarray(np.bincount(labels[labels != 0], minlength=256) > 0)


def look_up(labels: Labels, table: npt.NDArray[np.generic]) -> Labels:
    """Return a map with every label replaced by its entry in a table.

    Args:
        labels: uint8 (X, Y, Z). Not modified.
        table: 256 entries of one byte.

    Returns:
        A new C-ordered uint8 array of the same shape.
    """
    # Fancy indexing would first turn each byte into an 8-byte index.
    found = labels.tobytes().translate(table.astype(np.uint8).tobytes())
    return np.frombuffer(bytearray(found), dtype=np.uint8).reshape(labels.shape)


def connected_components(mask: Mask, *, join_vox: int = 0) -> tuple[npt.NDArray[np.uint32], int]:
    """Number the 26-connected components of a mask.

    Args:
        mask: bool (X, Y, Z). Not modified.
        join_vox: Components that touch after dilation by this many voxels (by faces) count as one.

    Returns:
        A uint32 map, 0 outside the mask, and the number of components. An empty mask gives zeros and 0.
    """
    grown = dilate_faces(mask, join_vox) if join_vox else np.ascontiguousarray(mask)
    numbered, count = cc3d.connected_components(grown, connectivity=CONNECTIVITY, return_N=True, out_dtype=np.uint32)
    if join_vox:
        numbered *= mask
    return numbered, int(count)


def row_mask(mask: Mask, *, min_vox: int, max_gap_vox: int) -> Mask:
    """Return the largest component of a mask and the components that continue it upward or downward.

    Args:
        mask: bool (X, Y, Z) RAS. Not modified.
        min_vox: Smallest size of a component that continues it, voxels.
        max_gap_vox: Largest number of slices between it and the components found so far.

    Returns:
        A new bool array; all False for an empty mask. No two of its components share an axial slice.
    """
    numbered, count = connected_components(mask)
    if count <= 1:
        return np.array(mask, dtype=np.bool_)
    sizes = np.bincount(numbered[mask], minlength=count + 1)
    slices = {k: np.flatnonzero((numbered == k).any(axis=(0, 1))) for k in np.flatnonzero(sizes >= min_vox).tolist()}
    largest = int(np.argmax(sizes))
    row, row_slices = [largest], np.flatnonzero((numbered == largest).any(axis=(0, 1)))
    left = sorted((k for k in slices if k != largest), key=lambda k: -sizes[k])
    while found := next((k for k in left if 0 < gap_vox(slices[k], row_slices) <= max_gap_vox + 1), None):
        left.remove(found)
        row.append(found)
        row_slices = np.union1d(row_slices, slices[found])
    keep = np.zeros(count + 1, dtype=np.bool_)
    keep[row] = True
    return np.asarray(keep[numbered])


def gap_vox(slices: Slices, others: Slices) -> int:
    """Return the distance from some slices to the nearest of some other slices, which may lie above, below or between.

    Args:
        slices: The slices, rising; at least one.
        others: The other slices, rising.

    Returns:
        1 for neighbors; 0 if they share a slice, or if there are no other slices.
    """
    below, above = slices[0] - others, others - slices[-1]
    gaps = np.maximum(below, above)
    return max(0, int(gaps.min())) if others.size else 0
