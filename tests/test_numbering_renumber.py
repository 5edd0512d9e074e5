"""A reader renames one level; the rest follows, the voxels stay."""

import numpy as np
import pytest

import columns
from lib.anatomy import CANAL, CORD, SACRUM, VERTEBRAE
from lib.errors import GridError, LabelError
from lib.numbering.evidence import Pin
from lib.numbering.renumber import find_renamed, pin_from_corrected, renumber, renumber_corrected

SPACING = 2.0


@pytest.fixture(scope="module")
def lumbar() -> columns.Case:
    return columns.build(np.random.default_rng(1), fov="lumbar", spacing=SPACING)


@pytest.fixture(scope="module")
def thoracic() -> columns.Case:
    return columns.build(np.random.default_rng(1), fov="midthoracic", spacing=SPACING)


def point(case: columns.Case, code: int) -> tuple[float, float, float]:
    xyz = np.argwhere(case.truth == code)
    middle = xyz[((xyz - xyz.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    x, y, z = (case.affine @ [*middle, 1])[:3]
    return float(x), float(y), float(z)


def names(before: np.ndarray, after: np.ndarray) -> dict[int, int]:
    """Old code -> the one new code its voxels carry."""
    result = {}
    for code in np.unique(before).tolist():
        (new,) = np.unique(after[before == code]).tolist()
        result[code] = new
    return result


@pytest.mark.parametrize(("old", "new", "shift"), [(25, 26, 1), (25, 24, -1), (77, 79, 2), (79, 78, -1)])
def test_the_whole_column_follows_one_pinned_level(thoracic: columns.Case, old: int, new: int, shift: int) -> None:
    result, _ = renumber(thoracic.truth, [Pin(new, point(thoracic, old))], affine=thoracic.affine)
    renamed = names(thoracic.truth, result)
    assert renamed == {code: code if code <= CANAL else code + shift for code in renamed}


def test_a_lumbar_column_pinned_as_l6_keeps_its_sacrum(lumbar: columns.Case) -> None:
    result, _ = renumber(lumbar.truth, [Pin(46, point(lumbar, 45))], affine=lumbar.affine)
    renamed = names(lumbar.truth, result)
    assert {code: renamed[code] for code in (32, 41, 45, 91, 95, 100, SACRUM, CORD, CANAL)} == {
        32: 41,
        41: 42,
        45: 46,
        91: 92,
        95: 96,
        100: 100,
        SACRUM: SACRUM,
        CORD: CORD,
        CANAL: CANAL,
    }


def test_a_pin_that_agrees_changes_nothing(lumbar: columns.Case) -> None:
    result, numbering = renumber(lumbar.truth, [Pin(43, point(lumbar, 43))], affine=lumbar.affine)
    np.testing.assert_array_equal(result, lumbar.truth)
    assert numbering.probability > 0.9


def test_a_step_1_map_is_renumbered_by_its_discs(thoracic: columns.Case) -> None:
    step1 = np.where(np.isin(thoracic.truth, VERTEBRAE), SACRUM, thoracic.truth).astype(np.uint8)
    result, _ = renumber(step1, [Pin(78, point(thoracic, 77))], affine=thoracic.affine)
    renamed = names(step1, result)
    assert renamed == {code: code + 1 if code > SACRUM else code for code in renamed}


def test_two_levels_of_one_name_are_told_apart(thoracic: columns.Case) -> None:
    """An annotator's map in which one name appears twice and a level is skipped."""
    wrong = thoracic.truth.copy()
    wrong[thoracic.truth == 26] = 25
    wrong[thoracic.truth == 77] = 76
    result, _ = renumber(wrong, [Pin(27, point(thoracic, 27))], affine=thoracic.affine)
    differs = result != thoracic.truth
    # Vertebrae of one name that touch are cut at the disc; their processes part nearly where they should.
    assert set(np.unique(thoracic.truth[differs])) <= {25, 26}
    assert differs.sum() < 0.05 * (np.isin(thoracic.truth, (25, 26))).sum()


def test_a_renamed_segment_is_found_and_the_rest_follows(thoracic: columns.Case) -> None:
    """The renamed segment then carries the name of its neighbor, and may touch it."""
    corrected = thoracic.truth.copy()
    corrected[thoracic.truth == 26] = 27
    (renamed,) = find_renamed(thoracic.truth, corrected)
    assert (renamed.old, renamed.new, renamed.voxels) == (26, 27, int((thoracic.truth == 26).sum()))
    pin = pin_from_corrected(thoracic.truth, corrected, affine=thoracic.affine)
    assert pin is not None
    assert pin.code == 27
    renumbered = renumber_corrected(thoracic.truth, corrected, affine=thoracic.affine)
    assert renumbered is not None
    mapping = names(thoracic.truth, renumbered[0])
    assert mapping == {code: code if code <= CANAL else code + 1 for code in mapping}


def test_redrawn_borders_are_no_new_names(thoracic: columns.Case) -> None:
    corrected = thoracic.truth.copy()
    xyz = np.argwhere(thoracic.truth == 26)
    few = tuple(xyz[: len(xyz) // 5].T)
    corrected[few] = 27
    assert find_renamed(thoracic.truth, corrected) == ()
    assert pin_from_corrected(thoracic.truth, corrected, affine=thoracic.affine) is None
    assert renumber_corrected(thoracic.truth, corrected, affine=thoracic.affine) is None


def test_a_reader_who_renames_several_has_numbered_them_all(thoracic: columns.Case) -> None:
    corrected = thoracic.truth.copy()
    corrected[thoracic.truth == 26] = 27
    corrected[thoracic.truth == 27] = 28
    assert {r.old for r in find_renamed(thoracic.truth, corrected)} == {26, 27}
    assert pin_from_corrected(thoracic.truth, corrected, affine=thoracic.affine) is None


def test_wrong_requests_are_refused(lumbar: columns.Case) -> None:
    before = lumbar.truth.copy()
    with pytest.raises(ValueError, match="at least one pinned level is required, got none"):
        renumber(lumbar.truth, [], affine=lumbar.affine)
    with pytest.raises(ValueError, match=r"must name a vertebra, a disc or the sacrum, got code \[2\]"):
        renumber(lumbar.truth, [Pin(2, (0.0, 0.0, 0.0))], affine=lumbar.affine)
    with pytest.raises(LabelError, match=r"a pin within 15 mm of a vertebra is required for T3, got \(999.0"):
        renumber(lumbar.truth, [Pin(23, (999.0, 0.0, 0.0))], affine=lumbar.affine)
    with pytest.raises(GridError, match="two maps of one grid are required"):
        find_renamed(lumbar.truth, lumbar.truth[:-1])
    np.testing.assert_array_equal(lumbar.truth, before)
