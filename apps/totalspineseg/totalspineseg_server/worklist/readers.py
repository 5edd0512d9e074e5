"""Compare the labels of readers with each other, and with the results that they corrected; no network runs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final

import numpy as np

from totalspineseg_server.agreement import dice_by_group, named_apart
from totalspineseg_server.anatomy import NAME_OF, UNREVIEWED
from totalspineseg_server.corrections.comparison import UNTOUCHED_DICE
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.segments import without_regions
from totalspineseg_server.transforms.components import labels_present

DIGITS: Final = 3
MONTH: Final = len("2026-01")


def agreements(corrections: CorrectionStore, image_id: str) -> list[dict[str, Any]]:
    """Compare the finished label of a scan with the last one of each other reader.

    Returns:
        A dictionary for each other reader, newest first: ``reader``, ``date``, ``correction`` (its id), ``beside``
        (that of the finished label), ``dice`` (name of each structure of either label -> 0..1, from top to bottom),
        ``mean`` of these, and ``named`` (name in the finished label -> that reader's name for the structure there). A
        chosen label belongs to no reader and is compared with those of all readers. Empty if only one reader finished
        the scan, or the others saw another image.
    """
    finished = corrections.finished(image_id)
    if not finished:
        return []
    current, last = finished[-1], dict[str, Correction]()
    for one in reversed(finished):
        if not one.chosen and (current.chosen or one.reader != current.reader):
            last.setdefault(one.reader, one)
    others = tuple(last.values())
    if not others:
        return []
    codes = corrections.codes(current)
    return [
        _compared(codes, corrections.codes(one), one, current, unreviewed={*current.unreviewed, *one.unreviewed})
        for one in others
        if one.image_sha256 == current.image_sha256
    ]


def _compared(
    codes: LabelArray, other: LabelArray, of: Correction, beside: Correction, *, unreviewed: set[int]
) -> dict[str, Any]:
    # A structure that one of the two did not check says nothing about either.
    codes = np.where(other == UNREVIEWED, np.uint8(UNREVIEWED), codes)
    present = labels_present(without_regions(codes)) | labels_present(without_regions(other))
    visible = [code for code in _downwards(np.flatnonzero(present).tolist()) if code not in unreviewed]
    dice = dice_by_group(codes, other, {NAME_OF[code]: (code,) for code in visible})
    known = {name: round(value, DIGITS) for name, value in dice.items() if not np.isnan(value)}
    return {
        "reader": of.reader,
        "date": of.received,
        "correction": of.id,
        "beside": beside.id,
        "dice": known,
        "mean": round(fmean(known.values()), DIGITS) if known else None,
        "named": {NAME_OF[a]: NAME_OF[b] for a, b in named_apart(codes, other).items()},
    }


def _downwards(codes: Iterable[int]) -> list[int]:
    """Return named codes from top to bottom; cord and canal last."""
    return sorted(
        (code for code in codes if code in NAME_OF), key=lambda code: (code not in ORDER, ORDER.get(code, code))
    )


@dataclass
class _Sum:
    """Totals of one structure, or of one reader."""

    dice: list[float] = field(default_factory=list)
    labels: int = 0
    unchanged: int = 0
    parked: int = 0
    withdrawn: int = 0
    last: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "structures": len(self.dice),
            "corrected": sum(value < UNTOUCHED_DICE for value in self.dice),
            "dice": round(fmean(self.dice), DIGITS) if self.dice else None,
        }


def corrected(corrections: CorrectionStore) -> dict[str, Any]:
    """Return how much readers corrected, by structure and month, and by reader.

    Returns:
        ``months`` (ascending, such as "2026-01"); ``structures``: from top to bottom, ``name`` and ``months``, month ->
        ``structures`` (number of labels or results that show it), ``corrected`` (of these) and ``dice`` (mean between
        result and label, 0..1); ``readers``: the same numbers over all structures, with ``reader``, ``labels``,
        ``unchanged`` (accepted as they were), ``parked``, ``withdrawn`` and ``last``. Labels whose result is gone have
        no Dice.
    """
    structures: dict[str, dict[str, _Sum]] = defaultdict(lambda: defaultdict(_Sum))
    readers: dict[str, _Sum] = defaultdict(_Sum)
    withdrawn: dict[str, frozenset[str]] = {}
    for one in corrections.all():
        if one.chosen:
            # The labels it was chosen from are already counted.
            continue
        if one.image not in withdrawn:
            withdrawn[one.image] = frozenset(corrections.withdrawals.of_image(one.image))
        reader = readers[one.reader]
        reader.last = max(reader.last, one.received)
        if one.id in withdrawn[one.image]:
            reader.withdrawn += 1
        elif one.status == "parked":
            reader.parked += 1
        else:
            reader.labels += 1
            reader.unchanged += one.unchanged
            # A corrected step-1 label has other structures.
            dice = {} if one.step == 1 else one.dice
            reader.dice += dice.values()
            for name, value in dice.items():
                structures[name][one.received[:MONTH]].dice.append(value)
    return {
        "months": sorted({month for known in structures.values() for month in known}),
        "structures": _lines(structures),
        "readers": [
            {
                "reader": name,
                "labels": one.labels,
                "unchanged": one.unchanged,
                "parked": one.parked,
                "withdrawn": one.withdrawn,
                "last": one.last,
                **one.as_json(),
            }
            for name, one in sorted(readers.items())
        ],
    }


def _lines(structures: Mapping[str, Mapping[str, _Sum]]) -> Sequence[dict[str, Any]]:
    names = [NAME_OF[code] for code in _downwards(NAME_OF)]
    return [
        {"name": name, "months": {month: one.as_json() for month, one in structures[name].items()}}
        for name in names
        if name in structures
    ]
