"""Choose which structures a reply lists, and in which order: 3D Slicer makes a row for each, even if it has no voxels.

3D Slicer assigns voxel value k to the k-th listed name, and gives new rows one color after another. Voxels of an
earlier reply stay in the scene unless their structure is listed: then a second result would lie over the first.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CORD, NAME_OF, SACRUM, WIRE_ID
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.segments import with_mark, without_mark

LISTED: Final = "listed"
"""Field of a result's report: the names in its reply."""
ALWAYS_LISTED = (CANAL, CORD)
"""Structures of nearly every scan; listed first, so that their rows and colors are the same each time."""


def listed_names(labels: Mapping[str, int], codes: Collection[int]) -> tuple[str, ...]:
    """Order the names of some structures so that in most scans each gets the same row and the same color.

    Args:
        labels: Published name -> wire id.
        codes: Codes to list.

    Returns:
        Canal and cord, then the column from the sacrum upward if the sacrum is listed, else downward.
    """
    name_of = {wire_id: name for name, wire_id in labels.items()}
    upward = SACRUM in codes
    column = sorted((code for code in codes if code in ORDER), key=lambda code: ORDER[code], reverse=upward)
    return tuple(name_of[WIRE_ID[code]] for code in (*ALWAYS_LISTED, *column))


def names_with_marks(
    names: Iterable[str], marked: Collection[int], earlier: Iterable[Collection[int]]
) -> tuple[str, ...]:
    """Return names with a mark at the doubtful levels, followed by the names to clear in the scene.

    For 3D Slicer "L4" and "L4 ?" are two segments. If an earlier reply had the other one, it is listed as well, without
    voxels; otherwise its old voxels would stay in the scene.

    Args:
        names: From ``listed_names``.
        marked: Codes of the doubtful levels.
        earlier: Codes that each earlier reply for the image marked.
    """
    doubtful, before = _marked_names(marked), [_marked_names(codes) for codes in earlier]
    now = [with_mark(name) if name in doubtful else name for name in names]
    others = []
    for name in map(without_mark, now):
        if name in doubtful and any(name not in marks for marks in before):
            others.append(name)
        if name not in doubtful and any(name in marks for marks in before):
            others.append(with_mark(name))
    return (*now, *others)


def _marked_names(codes: Collection[int]) -> frozenset[str]:
    return frozenset(NAME_OF[code] for code in codes if code in NAME_OF)


def without_listed(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report without the names in its reply, which describe the map of that reply only."""
    return {name: value for name, value in report.items() if name != LISTED}


def as_listed(wire: LabelArray, labels: Mapping[str, int], names: Collection[str]) -> LabelArray:
    """Return a label map whose k-th listed name has value k; if a structure has two names, the first gets its voxels.

    Args:
        wire: (X, Y, Z) published ids. Not modified.
        labels: Published name -> id.
        names: The listed names in their order; every structure of the map is among them.
    """
    table = np.zeros(np.iinfo(np.uint8).max + 1, dtype=np.uint8)
    for value, name in enumerate(names, start=1):
        wire_id = labels[without_mark(name)]
        table[wire_id] = table[wire_id] or value
    listed: LabelArray = table[wire]
    if ((listed == BACKGROUND) != (wire == BACKGROUND)).any():
        raise ValueError(f"expected a map of {', '.join(names)}, got other structures")
    return listed
