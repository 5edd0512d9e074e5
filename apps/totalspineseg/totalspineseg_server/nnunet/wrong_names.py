"""Count how often the names of labeled scans are wrong, each named with the trust measured on the other patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from totalspineseg_server import pipeline
from totalspineseg_server.agreement import score_case
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.nnunet.packed import Packed
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.step1_names import step1_names
from totalspineseg_server.transforms.components import Box
from totalspineseg_server.trust import Failures, Trust

FINAL: Final = 2
"""The step whose names are checked; those of step 1 alone are not."""


@dataclass(frozen=True)
class SegmentedScan:
    """A labeled scan as both networks drew it.

    Attributes:
        subject: Subject of the scan.
        grid: Its 1 mm grid.
        box: The part that step 2 saw.
        maps: Step -> classes (X, Y, Z) of that step, packed.
        codes: The label on the whole grid, packed.
        counts: Step -> the counts in this scan.
    """

    subject: str
    grid: Grid
    box: Box
    maps: Mapping[int, Packed]
    codes: Packed
    counts: Mapping[int, Trust]


def count_failures(scans: Sequence[SegmentedScan], *, mirror: Mapping[int, bool]) -> Trust:
    """Name each scan with the trust measured on the other patients.

    Args:
        scans: Labeled scans of one or more patients.
        mirror: Step -> whether the image and its mirror image were averaged.

    Returns:
        The counts of names with and without a contradiction; scans of which nothing is named do not count.
    """
    total = Trust()
    for scan in scans:
        others = {
            step: replace(
                sum((other.counts[step] for other in scans if other.subject != scan.subject), Trust()), mirror=averaged
            )
            for step, averaged in mirror.items()
        }
        try:
            numbering, labels = _named(scan, others)
        except NoSpineError:
            continue
        score = score_case(scan.codes.unpacked(), labels)
        if numbering is not None and score.levels_found:
            total = total + failure(numbering, wrong=score.levels_right < score.levels_found)
    return total


def failure(numbering: Numbering, *, wrong: bool) -> Trust:
    """Return the counts of one scan.

    Args:
        numbering: Its final names.
        wrong: Whether one of them is wrong.
    """
    counts = Failures(1.0, float(wrong), 1.0 - numbering.probability)
    return Trust(contradicted=counts) if numbering.contradicted else Trust(uncontradicted=counts)


def _named(scan: SegmentedScan, trusts: Mapping[int, Trust]) -> tuple[Numbering | None, LabelArray]:
    shape = scan.grid.shape
    # Only the grid of the image counts: its voxels are those of the maps.
    image = pipeline.Scan(Volume(np.broadcast_to(np.float32(0), shape), scan.grid.affine), scan.grid)
    whole: Box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    first = pipeline.rename(image, scan.maps[1].unpacked(), whole, 1, trust=trusts[1])
    names = step1_names(first.labels, first.numbering)
    step1 = None if names is None else names.part(scan.box)
    found = pipeline.rename(image, scan.maps[2].unpacked(), scan.box, 2, step1=step1, trust=trusts[2])
    return found.numbering, found.labels
