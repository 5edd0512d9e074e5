"""Tests of the linter: its findings, and that sound maps have none."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import columns
from totalspineseg_server.anatomy import CANAL, CORD, DISCS, SACRUM, STEP1_FROM_CODE, VERTEBRAE
from totalspineseg_server.numbering.linter import lint

GOLDEN = Path(__file__).parent / "golden"
SPACING = (2.0, 2.0, 2.0)
Labels = np.ndarray
Edit = Callable[[Labels], None]


@pytest.fixture(scope="module")
def lumbar() -> Labels:
    """A sound map, T11 to the sacrum."""
    return columns.built(1, fov="lumbar", spacing=2.0)[0].truth


def found(labels: Labels) -> set[tuple[str, int]]:
    return {(finding.kind, finding.code) for finding in lint(labels, SPACING)}


@pytest.mark.golden
@pytest.mark.parametrize("case", ["cervical_noise", "lower_lumbar_clean", "whole_l6"])
@pytest.mark.parametrize("step", [1, 2])
def test_sound_maps_have_no_findings(case: str, step: int) -> None:
    labels = np.asarray(nib.load(GOLDEN / case / f"step{step}_output.nii.gz").dataobj)
    assert lint(labels, (1.0, 1.0, 1.0)) == ()


@pytest.mark.parametrize("variant", list(columns.VARIANTS))
def test_variants_are_sound(variant: str) -> None:
    thoracic, lumbar = columns.VARIANTS[variant]
    case = columns.built(2, fov="thoracolumbar", thoracic=thoracic, lumbar=lumbar, spacing=2.0)[0]
    assert lint(case.truth, SPACING) == ()


@pytest.mark.parametrize(
    ("spacing", "direction"),
    [((1.0, 2.0, 2.0), "left to right"), ((4.0, 2.0, 2.0), "left to right"), ((2.0, 2.0, 4.0), "head to foot")],
    ids=["half the distance of slices", "twice", "twice as high"],
)
def test_a_wrong_voxel_size_is_a_finding(lumbar: Labels, spacing: tuple[float, float, float], direction: str) -> None:
    """Half the distance between sagittal slices gave certain names and wrong volumes, and nothing was said."""
    assert [f.message for f in lint(lumbar, spacing) if f.kind == "size" and direction in f.message]


def gap(labels: Labels) -> None:
    labels[labels == 43] = 0


def disc_gap(labels: Labels) -> None:
    labels[labels == 93] = 0


def skipped(labels: Labels) -> None:
    for old, new in ((92, 91), (91, 82), (82, 81), (42, 41), (41, 32), (32, 31), (31, 30), (30, 29)):
        labels[labels == old] = new


def left_out(labels: Labels) -> None:
    """A vertebra and a disc are missing, and the levels below are named as if they did not exist."""
    labels[np.isin(labels, (43, 94))] = 0
    for old, new in ((44, 43), (95, 94), (45, 44), (100, 95)):
        labels[labels == old] = new


def duplicate(labels: Labels) -> None:
    labels[labels == 44] = 42


def swapped(labels: Labels) -> None:
    two, three = labels == 42, labels == 43
    labels[two], labels[three] = 43, 42


def wrong_disc(labels: Labels) -> None:
    labels[labels == 94] = 0
    labels[labels == 93] = 94


def fragment(labels: Labels) -> None:
    z = int(np.argwhere(labels == 43)[:, 2].mean())
    labels[2:6, 2:6, z : z + 4] = 43


def mixed(labels: Labels) -> None:
    """The arch of L1 is connected to that of L3."""
    first, third = (np.argwhere(labels == code) for code in (41, 43))
    x, y, z = first[first[:, 1].argmin()]
    labels[x - 4 : x + 4, y : y + 6, third[:, 2].min() : z] = 41


def cord_outside(labels: Labels) -> None:
    z = np.argwhere(labels == CORD)[:, 2]
    labels[2:8, 2:8, z.max() - 12 : z.max()] = CORD


def step_code(labels: Labels) -> None:
    labels[labels == 93] = 8


def unknown_code(labels: Labels) -> None:
    labels[0, 0, 0] = 77 + 120


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (gap, ("gap", 43)),
        (disc_gap, ("gap", 93)),
        (skipped, ("gap", 92)),
        (left_out, ("wide", 94)),
        (duplicate, ("duplicate", 42)),
        (swapped, ("order", 43)),
        (wrong_disc, ("disc_between", 94)),
        (fragment, ("fragment", 43)),
        (mixed, ("reach", 41)),
        (cord_outside, ("cord_outside_canal", CORD)),
        (step_code, ("step_code", 8)),
        (unknown_code, ("unknown_code", 197)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_mistake_is_found(lumbar: Labels, edit: Edit, expected: tuple[str, int]) -> None:
    labels = lumbar.copy()
    edit(labels)
    assert expected in found(labels)
    assert lint(lumbar, SPACING) == ()


def test_findings_say_where_and_what(lumbar: Labels) -> None:
    labels = lumbar.copy()
    fragment(labels)
    before = labels.copy()
    (finding,) = [f for f in lint(labels, SPACING) if f.kind == "fragment"]
    np.testing.assert_array_equal(labels, before)
    assert finding.point_vox is not None
    assert labels[finding.point_vox] == 43
    assert finding.voxels == 64
    assert "L3" in finding.message
    shifted = np.diag([2.0, 2.0, 2.0, 1.0])
    shifted[:3, 3] = 10
    assert finding.as_dict(shifted)["point_mm"] == [2 * k + 10 for k in finding.point_vox]
    assert finding.moved((1, 2, 3)).point_vox == tuple(np.add(finding.point_vox, (1, 2, 3)))


def test_a_step_1_result_is_judged_by_its_discs(lumbar: Labels) -> None:
    """In a step-1 map the sacrum's code stands for every vertebra, so no sacrum is in fragments and no vertebra is
    missing."""
    labels = lumbar.copy()
    labels[np.isin(labels, VERTEBRAE)] = SACRUM
    assert lint(labels, SPACING) == ()
    labels[labels == 93] = 0
    assert found(labels) == {("gap", 93)}


def test_a_raw_network_map_is_recognized(lumbar: Labels) -> None:
    table = np.zeros(256, dtype=np.uint8)
    table[list(STEP1_FROM_CODE)] = list(STEP1_FROM_CODE.values())
    raw = table[lumbar]
    raw[raw == 0] = 0
    assert {kind for kind, _ in found(raw)} >= {"step_code"}


def canal_away(labels: Labels) -> None:
    labels[(labels == CORD) | (labels == CANAL)] = 0


def half_the_canal_away(labels: Labels) -> None:
    canal = (labels == CORD) | (labels == CANAL)
    canal[:, :, labels.shape[2] * 2 // 5 :] = False
    labels[canal] = 0


def discs_away(labels: Labels) -> None:
    labels[np.isin(labels, DISCS)] = 0


def bare_vertebrae(labels: Labels) -> None:
    canal_away(labels)
    discs_away(labels)


def bare_discs(labels: Labels) -> None:
    labels[~np.isin(labels, DISCS)] = 0


PARTIAL = [canal_away, half_the_canal_away, discs_away, bare_vertebrae]


@pytest.mark.parametrize("lack", [*PARTIAL, bare_discs])
@pytest.mark.parametrize("fov", ["lumbar", "thoracolumbar", "cervicothoracic"])
def test_a_sound_map_without_some_kinds_has_no_findings(lack: Edit, fov: str) -> None:
    """A lumbar map without a canal had up to four false findings."""
    labels = columns.built(3, fov=fov, spacing=2.0)[0].truth
    lack(labels)
    assert lint(labels, SPACING) == ()


@pytest.mark.parametrize("lack", PARTIAL)
@pytest.mark.parametrize(("edit", "expected"), [(gap, ("gap", 43)), (swapped, ("order", 43))])
def test_swapped_and_missing_levels_are_found_without_some_kinds(
    lumbar: Labels, lack: Edit, edit: Edit, expected: tuple[str, int]
) -> None:
    """Vertebrae without a canal were not checked at all, and called sound."""
    labels = lumbar.copy()
    edit(labels)
    lack(labels)
    assert expected in found(labels)


def test_discs_alone_are_checked(lumbar: Labels) -> None:
    labels = lumbar.copy()
    bare_discs(labels)
    labels[labels == 93] = 0
    assert found(labels) == {("gap", 93)}


@pytest.mark.parametrize("canal", [True, False])
def test_a_slab_of_sagittal_slices_parts_bodies_from_their_arches(lumbar: Labels, canal: bool) -> None:
    """Each arch was called a fragment, or a second copy of its vertebra."""
    labels = lumbar.copy()
    middle = int(np.argwhere(labels == CANAL)[:, 0].mean())
    slab = labels[middle - 2 : middle + 3].copy()
    if not canal:
        canal_away(slab)
    assert lint(slab, SPACING) == ()
    slab[labels[middle - 2 : middle + 3] == 44] = 42
    assert ("duplicate", 42) in found(slab)


@pytest.mark.parametrize("value", [0, CORD, CANAL, 60, 8])
def test_a_map_without_levels_says_that_nothing_was_checked(value: int) -> None:
    """An empty map, and maps of other tools, passed as sound."""
    labels = np.zeros((30, 30, 60), dtype=np.uint8)
    labels[10:20, 10:20, 5:50] = value
    assert ("not_checked", 0) in found(labels)


@pytest.mark.parametrize("code", [43, 93])
def test_a_level_of_a_few_voxels_is_found(code: int) -> None:
    """A map with a single voxel of L3 passed as sound."""
    labels = np.zeros((30, 30, 60), dtype=np.uint8)
    labels[15, 15, 30:32] = code
    (finding,) = lint(labels, SPACING)
    assert (finding.kind, finding.code, finding.voxels) == ("fragment", code, 2)


def test_an_image_is_not_a_map(lumbar: Labels) -> None:
    """For an image in place of a map, a line was printed for every gray value."""
    (finding,) = lint((np.random.default_rng(0).random(lumbar.shape) * 300).astype(np.int32), SPACING)
    assert finding.kind == "not_checked" and "values" in finding.message


def counted_upward(labels: Labels) -> None:
    """Number levels as TotalSegmentator does: L5 is 27, L4 is 28 and so on, the sacrum 25."""
    table = np.zeros(256, dtype=np.uint8)
    table[[SACRUM, 45, 44, 43, 42, 41, 32, 31]] = [25, *range(27, 34)]
    labels[:] = table[labels]


def counted_from_c1(labels: Labels) -> None:
    """Number levels as VerSe does: T11 is 18, L1 is 20, the sacrum 26."""
    table = np.zeros(256, dtype=np.uint8)
    table[[31, 32, 41, 42, 43, 44, 45, SACRUM]] = [18, 19, 20, 21, 22, 23, 24, 26]
    labels[:] = table[labels]


@pytest.mark.parametrize(("edit", "kind"), [(counted_upward, "order"), (counted_from_c1, "unknown_code")])
def test_another_tools_numbers_are_found(lumbar: Labels, edit: Edit, kind: str) -> None:
    labels = lumbar.copy()
    edit(labels)
    assert kind in {name for name, _ in found(labels)}


def test_anything_but_a_label_map_is_refused() -> None:
    with pytest.raises(ValueError, match="2D uint8"):
        lint(np.zeros((3, 3), dtype=np.uint8), SPACING)
    with pytest.raises(ValueError, match="got 3D float32"):
        lint(np.zeros((3, 3, 3), dtype=np.float32), SPACING)  # type: ignore[arg-type]
