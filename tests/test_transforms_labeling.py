"""Tests of names: landmarks, counting, the row of discs and vertebrae, painting, levels."""

import numpy as np
import pytest

from block_spines import block_spine, classes_of, step1_answer
from iterative import label_iteratively
from totalspineseg_server.anatomy import CODE_FROM_STEP2, SACRUM
from totalspineseg_server.transforms.labeling import Naming, interleave, name_iteratively, paint
from totalspineseg_server.transforms.landmarks import find_landmarks
from totalspineseg_server.transforms.levels import level_points
from totalspineseg_server.transforms.pieces import find_pieces

VIEWS = [("C1", "S"), ("C1", "T4"), ("C2", "L1"), ("T3", "S"), ("T10", "L3"), ("L1", "S"), ("C6", "T6"), ("L4", "S")]


@pytest.mark.parametrize(("first", "last"), VIEWS, ids=["-".join(v) for v in VIEWS])
def test_views_with_a_landmark_are_named(first: str, last: str):
    spine = block_spine(first, last)
    np.testing.assert_array_equal(label_iteratively(classes_of(spine, 1), 1), step1_answer(spine))
    np.testing.assert_array_equal(label_iteratively(classes_of(spine, 2), 2), spine)


def test_six_lumbar_vertebrae_with_both_ends_in_view():
    spine = block_spine("C1", "S", lumbar=6)
    np.testing.assert_array_equal(label_iteratively(classes_of(spine, 1), 1), step1_answer(spine))


def test_no_landmark_no_name():
    """Without a landmark there is nothing to count from, and the map keeps only canal and cord."""
    spine = block_spine("T3", "T9")
    raw = classes_of(spine, 2)
    naming = name_iteratively(find_pieces(raw, 2))
    assert naming == Naming((0,) * 6, (0,) * 7)
    assert set(np.unique(label_iteratively(raw, 2))) == {0, 1, 2}


def discs_named(raw: np.ndarray, **options) -> tuple[int, ...]:
    return name_iteratively(find_pieces(raw, 1), **options).discs


@pytest.mark.parametrize(("voxels", "named"), [(200, False), (201, True)])
def test_a_landmark_class_needs_more_than_200_voxels(voxels: int, named: bool):
    spine = block_spine("C5", "T3")
    raw = classes_of(spine, 1)
    raw[tuple(np.argwhere(raw == 3)[voxels:].T)] = 1
    assert any(discs_named(raw)) is named


def test_the_class_must_be_the_commonest_landmark_of_its_disc():
    raw = classes_of(block_spine("T10", "L3"), 1)
    where = np.argwhere(raw == 4)
    raw[tuple(where[:500].T)] = 3
    assert find_landmarks(find_pieces(raw, 1)) == {2: 71}


@pytest.mark.parametrize(("value", "view", "disc"), [(2, ("C6", "T6"), 4), (5, ("T10", "L3"), 2)])
def test_the_end_landmarks_must_lie_at_the_ends(value: int, view: tuple[str, str], disc: int):
    """A C2-C3 in the middle of the view would shift the whole column."""
    spine = block_spine(*view)
    raw = classes_of(spine, 1)
    middle = find_pieces(raw, 1).disc_map == disc
    raw[middle] = value
    assert discs_named(raw) == discs_named(classes_of(spine, 1))


def test_with_both_ends_the_others_are_not_asked():
    spine = block_spine("C1", "S")
    raw = classes_of(spine, 1)
    raw[raw == 3] = 1
    raw[spine == 74] = 3
    np.testing.assert_array_equal(label_iteratively(raw, 1), step1_answer(spine))


def test_of_the_middle_landmarks_the_first_is_enough():
    spine = block_spine("C6", "L2")
    raw = classes_of(spine, 1)
    raw[raw == 4] = 1
    raw[spine == 79] = 4
    discs = discs_named(raw)
    assert find_landmarks(find_pieces(raw, 1)).keys() == {1, 9}
    assert discs[:9] == (67, 71, 72, 73, 74, 75, 76, 77, 78)


def test_a_lower_landmark_overrides_what_is_below_it():
    spine = block_spine("C1", "S")
    raw = classes_of(spine, 1)
    raw[spine == 75] = 0
    assert discs_named(raw)[-3:] == (93, 94, 100)


def test_discs_beyond_the_column_stay_unnamed():
    raw = classes_of(block_spine("C1", "T4"), 1)
    lone = raw.copy()
    raw = np.concatenate([raw, np.zeros((*raw.shape[:2], 8), dtype=np.uint8)], axis=2)
    raw[8:16, 14:24, -8:] = 8
    raw[5:19, 27:41, -4:-1] = 1
    raw[raw == 2] = 1
    assert discs_named(raw) == (0, *discs_named(lone))


def test_a_localizer_landmark_names_the_disc_it_overlaps_most():
    spine = block_spine("T3", "L3")
    raw = classes_of(spine, 1)
    raw[raw == 4] = 1
    localizer = np.where(spine == 91, spine, 0)
    assert not any(discs_named(raw))
    np.testing.assert_array_equal(label_iteratively(raw, 1, localizer=localizer), step1_answer(spine))


def test_a_localizer_without_landmark_names_the_first_disc_it_meets():
    spine = block_spine("T3", "T9")
    localizer = np.where(spine > 74, spine, 0).astype(np.int16)
    raw = classes_of(spine, 2)
    np.testing.assert_array_equal(label_iteratively(raw, 2, localizer=localizer), spine)


def test_with_a_localizer_the_middle_landmarks_of_the_scan_are_not_believed():
    spine = block_spine("T3", "L3")
    raw = classes_of(spine, 1)
    raw[raw == 4] = 1
    raw[spine == 78] = 4
    np.testing.assert_array_equal(label_iteratively(raw, 1, localizer=spine), step1_answer(spine))


def test_a_localizer_beside_the_spine_changes_nothing():
    raw = classes_of(block_spine("T3", "T9"), 1)
    assert not any(discs_named(raw, localizer=np.zeros(raw.shape, dtype=np.uint8)))


def test_a_localizer_on_another_grid_is_refused():
    raw = classes_of(block_spine("T3", "T9"), 1)
    with pytest.raises(ValueError, match=r"shape.*\(3, 3, 3\)"):
        discs_named(raw, localizer=np.zeros((3, 3, 3), dtype=np.uint8))


def row(order: str, heights: list[float] | None = None) -> str:
    """Interleave a row of letters, D and V, which are evenly spaced unless heights say otherwise."""
    places = list(zip(order, heights or range(len(order), 0, -1), strict=True))
    discs = [h for letter, h in places if letter == "D"]
    vertebrae = [h for letter, h in places if letter == "V"]
    return "".join("D" if p.is_disc else "V" for p in interleave(list(enumerate(discs)), list(enumerate(vertebrae))))


@pytest.mark.parametrize(
    ("arguments", "mended"),
    [
        ("VDVDV", "VDVDV"),
        ("VDDVVD", "VDVDVD"),
        ("DVVDDV", "DVDVDV"),
        ("DVVD", "VDVD"),
        ("VDVVD", "VDVDV"),
        ("VVDVD", "VVDVD"),
        ("VDVDVV", "VDVDVV"),
        ("VDDVD", "DVDVD"),
        ("VVDVVD", "VVDVDV"),
        ("", ""),
    ],
)
def test_row_of_discs_and_vertebrae(arguments: str, mended: str):
    assert row(arguments) == mended


@pytest.mark.parametrize("arguments", ["DVVD", "VDVVD", "VDDVD"])
def test_at_an_end_only_what_is_nearly_level_changes_places(arguments: str):
    """A vertebra that was missed between two discs moved the vertebra above them one level down."""
    assert row(arguments, [12 * height for height in range(len(arguments), 0, -1)]) == arguments


def test_the_nearer_pair_changes_places():
    assert row("DVVDDVVD", [20, 18, 16, 15, 12, 9, 7, 1])[2:6] == "DVDV"


def test_a_last_vertebra_without_disc_gets_the_next_name():
    truth = block_spine("C1", "T4")
    truth[truth == 74] = 0
    np.testing.assert_array_equal(label_iteratively(classes_of(truth, 2), 2), truth)


def test_vertebrae_above_the_first_disc_count_upward():
    """The spinous process of T12 above a view that begins in L1 stayed unlabeled."""
    truth = block_spine("T12", "S")
    truth[truth == 91] = 0
    np.testing.assert_array_equal(label_iteratively(classes_of(truth, 2), 2), truth)


def test_a_naming_of_other_pieces_is_refused():
    raw = classes_of(block_spine("L1", "S"), 2)
    with pytest.raises(ValueError, match=r"5 discs and 6 vertebrae.*1 and 0"):
        paint(find_pieces(raw, 2), raw, Naming((91,), ()), 2)


def test_specks_are_no_sacrum_in_a_scan_of_the_neck():
    """A neck with certain names had a sacrum of seven voxels: a row in 3D Slicer, a segment, a line of measurements."""
    spine = block_spine("C1", "T4")
    raw = classes_of(spine, 2)
    raw[2:5, 2, 2] = next(value for value, code in CODE_FROM_STEP2.items() if code == SACRUM)
    np.testing.assert_array_equal(label_iteratively(raw, 2), spine)


def test_paint_takes_any_codes():
    raw = classes_of(block_spine("L1", "S", lumbar=6), 2)
    pieces = find_pieces(raw, 2)
    naming = Naming((92, 93, 94, 95, 96, 100), (41, 42, 43, 44, 45, 46, 50))
    np.testing.assert_array_equal(paint(pieces, raw, naming, 2), block_spine("L1", "S", lumbar=6))


@pytest.mark.parametrize("step", [1, 2])
def test_padding_and_memory_order_do_not_matter(step):
    raw = classes_of(block_spine("T10", "S"), step)
    plain = label_iteratively(raw, step)
    padded = np.asfortranarray(np.pad(raw, ((5, 3), (2, 4), (9, 1))))
    padded.flags.writeable = False
    ours = label_iteratively(padded, step)
    np.testing.assert_array_equal(ours[5:-3, 2:-4, 9:-1], plain)
    assert np.count_nonzero(ours) == np.count_nonzero(plain)
    assert ours.dtype == np.uint8


def points_of(labels: np.ndarray, **options) -> dict[int, np.ndarray]:
    points = level_points(labels, **options)
    assert points.dtype == np.uint8
    assert np.count_nonzero(points) == len(np.unique(points)) - 1
    return {int(points[tuple(p)]): p for p in np.argwhere(points)}


@pytest.mark.parametrize(("first", "last"), VIEWS, ids=["-".join(v) for v in VIEWS])
def test_levels_rise_from_superior_to_inferior(first: str, last: str):
    spine = block_spine(first, last)
    before = spine.copy()
    points = points_of(step1_answer(spine))
    heights = [points[value][2] for value in sorted(points)]
    assert heights == sorted(heights, reverse=True)
    assert len(points) == len(set(np.unique(spine)) - {0, 1, 2} - set(range(11, 51))) + 2 * (first == "C1")
    np.testing.assert_array_equal(spine, before)


def test_a_point_is_the_posterior_tip_of_its_disc():
    spine = block_spine("T12", "S")
    points = points_of(step1_answer(spine))
    for value, code in ((20, 91), (21, 92), (25, 100)):
        disc = np.argwhere(spine == code)
        assert spine[tuple(points[value])] == code
        assert points[value][1] == disc[:, 1].min()
        assert disc[:, 2].min() <= points[value][2] <= disc[:, 2].max()


def test_an_extra_disc_has_no_point_and_moves_none():
    points = points_of(step1_answer(block_spine("T12", "S", lumbar=6)))
    assert sorted(points) == [20, 21, 22, 23, 24, 25]


@pytest.mark.parametrize("missing", [(11,), (50,), (63,)], ids=["no C1", "no vertebrae", "no C2-C3"])
def test_the_two_upper_points_need_c1_vertebrae_and_c2_c3(missing: tuple[int, ...]):
    labels = step1_answer(block_spine("C1", "T4"))
    assert {1, 2} < points_of(labels).keys()
    labels[np.isin(labels, missing)] = 0
    assert not {1, 2} & points_of(labels).keys()


def test_a_small_c1_gives_no_upper_points():
    labels = step1_answer(block_spine("C1", "T4"))
    c1 = np.argwhere(labels == 11)
    labels[tuple(c1[501:].T)] = 0
    assert {1, 2} < points_of(labels).keys()
    labels[tuple(c1[500:].T)] = 0
    assert not {1, 2} & points_of(labels).keys()


@pytest.mark.parametrize("gone", [(1, 2), tuple(range(63, 101))], ids=["no canal", "no discs"])
def test_no_canal_or_no_disc_no_points(gone):
    labels = step1_answer(block_spine("C1", "T4"))
    labels[np.isin(labels, gone)] = 0
    assert points_of(labels) == {}


def test_a_minority_class_names_no_disc():
    raw = classes_of(block_spine("T10", "L3"), 1)
    raw[tuple(np.argwhere(raw == 4)[:250].T)] = 3
    assert find_landmarks(find_pieces(raw, 1)) == {2: 91}


def test_landmarks_of_the_localizer_go_before_its_other_discs():
    spine = block_spine("T3", "L3")
    raw = classes_of(spine, 1)
    raw[raw == 4] = 1
    localizer = np.where(spine == 91, spine, 0)
    localizer[spine == 74] = 80
    localizer[tuple(np.argwhere(spine == 82)[:100].T)] = 91
    np.testing.assert_array_equal(label_iteratively(raw, 1, localizer=localizer), step1_answer(spine))


@pytest.mark.parametrize(
    ("spine", "disc"),
    [(block_spine("T12", "L2", thoracic=13), 83), (block_spine("L5", "S", lumbar=6), 96)],
    ids=["T13", "L6"],
)
def test_a_localizer_knows_the_extra_vertebra(spine: np.ndarray, disc: int):
    raw = classes_of(spine, 2)
    raw[raw == 4] = 1
    np.testing.assert_array_equal(label_iteratively(raw, 2, localizer=np.where(spine == disc, spine, 0)), spine)


def test_the_sacrum_has_its_name_whatever_the_discs_say():
    """Without the L5-S landmark the lowest disc counts as L5-L6, and the sacrum became L6."""
    raw = classes_of(block_spine("C1", "S"), 2)
    raw[raw == 5] = 1
    naming = name_iteratively(find_pieces(raw, 2))
    assert (naming.discs[-1], naming.vertebrae[-2:]) == (96, (45, 50))
    raw[np.isin(raw, [2, 3, 4])] = 1
    assert name_iteratively(find_pieces(raw, 2)).vertebrae == (0,) * 24 + (50,)


def test_of_equal_height_the_disc_goes_first():
    places = interleave([(0, 9.0), (1, 5.0)], [(0, 7.0), (1, 5.0)])
    assert [(p.is_disc, p.index) for p in places] == [(True, 0), (False, 0), (True, 1), (False, 1)]


def test_what_stands_above_c1_does_not_move_its_point():
    labels = np.pad(step1_answer(block_spine("C1", "T4")), ((0, 0), (0, 0), (0, 6)))
    plain = points_of(labels)
    labels[4:20, 30:40, -3:] = 50
    crowned = points_of(labels)
    np.testing.assert_array_equal(crowned[1], plain[1])


def test_points_are_nearest_in_millimeters():
    labels = np.zeros((24, 16, 24), dtype=np.uint8)
    labels[10:15, 3:8, :12] = 2
    labels[12, 9, 8] = labels[12, 5, 14] = 95
    assert points_of(labels)[24].tolist() == [12, 5, 14]
    assert points_of(labels, spacing=(1.0, 1.0, 4.0))[24].tolist() == [12, 9, 8]
