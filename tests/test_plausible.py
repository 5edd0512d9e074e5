"""Tests that nothing is learned from, or named by, labels that are partial, upside down or in another numbering."""

from pathlib import Path

import numpy as np
import pytest

from block_spines import block_spine
from totalspineseg_server.anatomy import CANAL, CODE_OF, CORD, DISCS, SACRUM, UNREVIEWED, VERTEBRAE
from totalspineseg_server.corrections.comparison import check
from totalspineseg_server.errors import ImageError, LabelError
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.io.volumes import read_codes, write_volume
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource, check_codes
from totalspineseg_server.numbering.linter import is_upside_down, missing_kinds
from totalspineseg_server.training.material import judged_cases

LUMBAR = block_spine("T11")
CERVICAL = block_spine("C1", "T2")
TOTALSEGMENTATOR = {"sacrum": 25, "L5": 27, "L4": 28, "L3": 29, "L2": 30, "L1": 31, "T12": 32, "T11": 33, "cord": 79}
"""Its numbers rise from the sacrum upward, and each of these is a code of ours: L5 is T7, the cord the disc T8-T9."""


def without(labels: np.ndarray, *codes: int, instead: int = 0) -> np.ndarray:
    return np.where(np.isin(labels, codes), instead, labels).astype(np.uint8)


def by_another_table(labels: np.ndarray) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for name, value in TOTALSEGMENTATOR.items():
        table[CODE_OF[name]] = value
    return table[labels]


INCOMPLETE = {
    "vertebrae alone": (without(LUMBAR, CANAL, CORD, *DISCS), ("disc", "canal")),
    "discs alone": (without(LUMBAR, CANAL, CORD, *VERTEBRAE, SACRUM), ("vertebra", "canal")),
    "cord and canal": (without(LUMBAR, *DISCS, *VERTEBRAE, SACRUM), ("disc", "vertebra")),
    "cord taken for the canal": (without(LUMBAR, CANAL), ("canal",)),
    "neck without cord": (without(CERVICAL, CORD), ("cord",)),
}
UPSIDE_DOWN = {"flipped": np.ascontiguousarray(LUMBAR[:, :, ::-1]), "another table": by_another_table(LUMBAR)}


@pytest.mark.parametrize(("labels", "missing"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_part_of_the_spine_is_not_learned_as_the_whole(labels: np.ndarray, missing: tuple[str, ...]) -> None:
    """A result with some structures, submitted as finished, taught that the others do not exist."""
    assert missing_kinds(labels) == missing
    with pytest.raises(LabelError, match=f"disc|There is no {' and no '.join(missing)} in the label"):
        check_codes(labels, step=2)
    with pytest.raises(LabelError, match=f"There is no {' and no '.join(missing)} in the label"):
        check_codes(labels, step=1)
    scan = LabeledScan("a", "a", Origin.CORRECTION, Volume(labels * 2, np.eye(4)), Volume(labels, np.eye(4)))
    cases, skipped = judged_cases((ScanSource("a", Origin.CORRECTION, lambda: scan),))
    assert not cases
    assert f"There is no {' and no '.join(missing)} in the label" in skipped[0].reason
    found = check(labels, Grid((24, 48, labels.shape[2]), np.eye(4)))
    assert f"There is no {' and no '.join(missing)} in this label" in found[0]["message"]


@pytest.mark.parametrize("labels", [LUMBAR, CERVICAL, without(LUMBAR, CORD)], ids=["lumbar", "cervical", "no cord"])
def test_a_complete_label_is_used_for_training(labels: np.ndarray) -> None:
    for step in (1, 2):
        check_codes(labels, step=step)
    check_codes(without(labels, CANAL, CORD, instead=UNREVIEWED), step=1)
    grid = Grid((24, 48, labels.shape[2]), np.eye(4))
    hidden = without(labels, CANAL, CORD, instead=UNREVIEWED)
    assert not [f for codes in (labels, hidden) for f in check(codes, grid) if f["kind"] == "incomplete"]


def test_a_slip_of_the_brush_is_not_an_unreviewed_region() -> None:
    """With one voxel marked as unreviewed, a neck without a cord taught that there is none."""
    labels = without(CERVICAL, CORD)
    labels[0, 0, :10] = UNREVIEWED
    assert missing_kinds(labels) == ("cord",)


@pytest.mark.parametrize("labels", UPSIDE_DOWN.values(), ids=UPSIDE_DOWN)
def test_levels_that_run_upward_are_used_neither_for_training_nor_for_names(tmp_path: Path, labels: np.ndarray) -> None:
    """A lumbar label of TotalSegmentator taught L5 as T7 and the cord as a disc, and named another scan."""
    assert is_upside_down(labels)
    with pytest.raises(LabelError, match="upside down"):
        check_codes(labels, step=2)
    scan = LabeledScan("a", "a", Origin.CORRECTION, Volume(labels * 2, np.eye(4)), Volume(labels, np.eye(4)))
    cases, skipped = judged_cases((ScanSource("a", Origin.CORRECTION, lambda: scan),))
    assert not cases
    assert "upside down" in skipped[0].reason
    grid = Grid((24, 48, labels.shape[2]), np.eye(4))
    write_volume(tmp_path / "localizer.nii.gz", labels, grid)
    with pytest.raises(ImageError, match=r"'localizer.nii.gz'.*upside down"):
        read_codes(tmp_path / "localizer.nii.gz")


@pytest.mark.parametrize("flip", [1, -1])
def test_levels_that_run_downward_name_in_any_orientation(tmp_path: Path, flip: int) -> None:
    labels = np.ascontiguousarray(LUMBAR[:, :, ::flip])
    write_volume(tmp_path / "a.nii.gz", labels, Grid((24, 48, labels.shape[2]), np.diag([1.0, 1, flip, 1])))
    np.testing.assert_array_equal(read_codes(tmp_path / "a.nii.gz").data, labels)


def test_levels_of_one_voxel_run_upward_or_downward() -> None:
    upward = np.array([[[41, 42, 43, 44]]], np.uint8)
    assert is_upside_down(upward)
    assert not is_upside_down(np.ascontiguousarray(upward[:, :, ::-1]))


def test_one_level_runs_nowhere() -> None:
    assert not is_upside_down(without(LUMBAR, *VERTEBRAE, *DISCS[:-1]))
    assert not is_upside_down(np.zeros((3, 3, 3), np.uint8))
