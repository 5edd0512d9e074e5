"""Check that a label map shows disc, vertebra and canal, and that levels are named from superior to inferior."""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from scipy.ndimage import distance_transform_edt

from totalspineseg_server.anatomy import (
    BACKGROUND,
    CANAL,
    CERVICAL,
    CORD,
    DISCS,
    SACRUM,
    THORACIC,
    UNREVIEWED,
    VERTEBRAE,
)
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import LabelArray

BONES: Final = (*VERTEBRAE, SACRUM)
WITH_CORD: Final = frozenset(CERVICAL + THORACIC[:10])
"""Vertebrae beside which everybody has a cord, which ends at T11 or below."""

UNREVIEWED_SHARE: Final = 0.05
"""Smallest share of the labeled voxels that unreviewed voxels must have; fewer are a slip of the brush and cannot
hide a cord, canal or discs.
"""
UNLABELED_MM: Final = 25.0
"""Distance from a labeled structure within which discs, canal and the rest of a cut vertebra lie."""


def missing_kinds(labels: LabelArray) -> tuple[str, ...]:
    """Return the kinds of structures that must be in view with those of a label map, but are missing from it.

    A network that is trained on such a map would learn that they do not exist.

    Args:
        labels: uint8 codes, any shape; in a step-1 map the sacrum's code stands for every vertebra. Not modified.

    Returns:
        Some of "disc", "vertebra", "canal", "cord"; none if the map shows all of the spine in view, or if
        ``UNREVIEWED`` marks a part that nobody checked.
    """
    counts = np.bincount(labels.ravel(order="K"), minlength=256)
    codes = frozenset(np.flatnonzero(counts).tolist())
    if counts[UNREVIEWED] > UNREVIEWED_SHARE * (counts.sum() - counts[BACKGROUND]):
        return ()
    missing = {
        "disc": codes.isdisjoint(DISCS),
        "vertebra": codes.isdisjoint(BONES),
        "canal": CANAL not in codes,
        "cord": CORD not in codes and not codes.isdisjoint(WITH_CORD),
    }
    return tuple(kind for kind, lacks in missing.items() if lacks)


def is_upside_down(labels: LabelArray) -> bool:
    """Return whether most levels lie above the levels that should be above them.

    This is true for labels in another numbering scheme (TotalSegmentator counts upward) and for flipped volumes.

    Args:
        labels: uint8 (X, Y, Z) codes, nearest RAS. Not modified.

    Returns:
        False for fewer than two levels of a kind.
    """
    counts = np.stack([np.bincount(labels[:, :, z].ravel(), minlength=256) for z in range(labels.shape[2])])
    sizes = counts.sum(axis=0)
    steps: list[float] = []
    for row in (BONES, DISCS):
        codes = [code for code in row if sizes[code]]
        heights = np.arange(len(counts)) @ counts[:, codes] / sizes[codes]
        steps += np.diff(heights).tolist()
    return sum(step > 0 for step in steps) * 2 > len(steps)


def require_plausible(labels: LabelArray) -> None:
    """Check that a finished label can be used to train or to compare models.

    Args:
        labels: As in ``is_upside_down``; ``UNREVIEWED`` where nobody checked.

    Raises:
        LabelError: It is upside down, or lacks a kind of structure that must be in view, although nothing is marked as
            unreviewed.
    """
    if is_upside_down(labels):
        raise LabelError(
            "Most levels are named from bottom to top instead of from top to bottom. If the label is upside down, turn "
            "it. If it uses another table's numbers, convert it."
        )
    if missing := missing_kinds(labels):
        raise LabelError(
            f"There is no {' and no '.join(missing)} in the label. Draw it, or mark what nobody labeled as "
            f"'unreviewed' ({UNREVIEWED})."
        )


def mark_unlabeled(labels: LabelArray, spacing: Sequence[float]) -> LabelArray:
    """Return a map in which unlabeled voxels around the spine are unreviewed, if a kind of structure is missing.

    Programs that draw no disc or no canal do not say that there is none.

    Args:
        labels: uint8 codes (X, Y, Z). Not modified.
        spacing: Voxel size, mm.

    Returns:
        uint8 map: ``UNREVIEWED`` for background within ``UNLABELED_MM`` of a structure; the argument if every kind is
        there.
    """
    if not missing_kinds(labels):
        return labels
    near = distance_transform_edt(labels == BACKGROUND, sampling=tuple(spacing)) <= UNLABELED_MM
    return np.where((labels == BACKGROUND) & near, UNREVIEWED, labels).astype(np.uint8)


def mark_unchecked(codes: LabelArray, unchecked: Collection[int]) -> LabelArray:
    """Return codes in which structures that nobody checked are unreviewed.

    Args:
        codes: uint8. Not modified.
        unchecked: Codes of these structures.
    """
    return np.where(np.isin(codes, sorted(unchecked)), UNREVIEWED, codes).astype(np.uint8)


def without_regions(codes: LabelArray) -> LabelArray:
    """Return codes as clients, checks and networks see them: regions that nobody checked are background.

    Args:
        codes: uint8. Not modified.
    """
    return np.where(codes == UNREVIEWED, BACKGROUND, codes).astype(np.uint8)
