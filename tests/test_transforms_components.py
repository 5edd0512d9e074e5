"""Tests of components, boxes, dilation, canal, discs and soft maps against plain scipy, and of their properties."""

import numpy as np
import pytest
from scipy import ndimage

from block_spines import block_spine, classes_of
from totalspineseg_server.anatomy import CANAL, CODE_OF, CORD, SACRUM, VERTEBRAE
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.transforms import components as c
from totalspineseg_server.transforms.canal import canal_extent, fill_canal, smooth_centerline, soft_structure
from totalspineseg_server.transforms.discs import crop_box, missing_discs, odd_discs
from totalspineseg_server.transforms.pieces import one_spine

FULL = np.ones((3, 3, 3), dtype=bool)
SEEDS = range(6)


def blobs(seed: int, shape: tuple[int, int, int] = (23, 19, 31), share: float = 0.04) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def same_partition(ours: np.ndarray, theirs: np.ndarray) -> bool:
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("times", [1, 2, 5])
def test_dilation_is_scipys(seed: int, times: int):
    mask = blobs(seed, share=0.01)
    before = mask.copy()
    np.testing.assert_array_equal(c.dilate_faces(mask, times), ndimage.binary_dilation(mask, iterations=times))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("join", [0, 1, 2])
def test_components_are_scipys(seed: int, join: int):
    mask = blobs(seed, share=0.01 if join else 0.04)
    grown = ndimage.binary_dilation(mask, iterations=join) if join else mask
    expected, count = ndimage.label(grown, FULL)
    ours, ours_count = c.connected_components(mask, join_vox=join)
    assert ours_count == count > 1
    assert same_partition(ours, expected * mask)


@pytest.mark.parametrize(("gap", "parts"), [(1, 1), (2, 1), (3, 2)])
def test_a_crack_of_two_voxels_is_bridged(gap: int, parts: int):
    mask = np.zeros((5, 5, 20), dtype=bool)
    mask[2, 2, :5] = mask[2, 2, 5 + gap : 12] = True
    assert c.connected_components(mask, join_vox=1)[1] == (1 if parts == 1 else 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_most_voxels_are_the_spine(seed: int):
    labels = (blobs(seed, (40, 30, 50), 0.0006) * np.random.default_rng(seed).integers(1, 9, (40, 30, 50))).astype("u1")
    expected, _ = ndimage.label(ndimage.binary_dilation(labels > 0, iterations=5), FULL)
    sizes = np.bincount(expected[labels > 0])
    ours = one_spine(labels, 2)
    assert sizes[1:].size > 1
    assert np.count_nonzero(ours) == sizes.max()
    np.testing.assert_array_equal(ours[ours > 0], labels[ours > 0])
    np.testing.assert_array_equal(one_spine(ours, 2), ours)


def test_most_voxels_win_not_the_widest_component():
    labels = np.zeros((60, 8, 8), dtype=np.uint8)
    labels[0:40:8, 0, 0] = 3
    labels[55:58, 2:5, 2:5] = 4
    assert set(np.unique(one_spine(labels, 2))) == {0, 4}


def spine_of_step1(labels: np.ndarray) -> np.ndarray:
    return one_spine(labels, 1)


@pytest.mark.parametrize("function", [spine_of_step1, fill_canal, odd_discs])
def test_empty_maps_stay_empty(function):
    result = function(np.zeros((4, 5, 6), dtype=np.uint8))
    assert (result.shape, result.dtype, result.any()) == ((4, 5, 6), np.uint8, False)


@pytest.mark.parametrize("function", [spine_of_step1, fill_canal, odd_discs])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_input_is_unchanged_and_memory_order_does_not_matter(function, order: str):
    spine = block_spine("T9", "L3")
    arguments = np.array(spine, order=order)
    arguments.flags.writeable = False
    result = function(arguments)
    np.testing.assert_array_equal(arguments, spine)
    np.testing.assert_array_equal(result, function(spine))
    assert result.dtype == np.uint8
    assert not np.shares_memory(result, arguments)


@pytest.mark.parametrize("function", [spine_of_step1, fill_canal, odd_discs])
def test_padding_does_not_matter(function):
    spine = block_spine("T9", "L3")
    spine[1, 1, 3] = 45
    padded = function(np.pad(spine, ((7, 2), (1, 9), (4, 6))))
    np.testing.assert_array_equal(padded[7:-2, 1:-9, 4:-6], function(spine))
    assert np.count_nonzero(padded) == np.count_nonzero(function(spine))


@pytest.mark.parametrize("margin", [0, 2, 100])
def test_box(margin: int):
    mask = np.zeros((9, 10, 11), dtype=bool)
    mask[3, 4, 5] = mask[5, 8, 6] = True
    low = np.maximum(np.argwhere(mask).min(0) - margin, 0)
    high = np.minimum(np.argwhere(mask).max(0) + 1 + margin, mask.shape)
    box = c.foreground_box(mask, margin_vox=margin)
    assert box == tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    assert crop_box(mask.astype(np.uint8), margin=margin) == box


def test_an_empty_map_has_no_box():
    assert c.foreground_box(np.zeros((3, 3, 3), dtype=np.uint8)) is None
    with pytest.raises(NoSpineError, match="empty"):
        crop_box(np.zeros((3, 3, 3), dtype=np.uint8), margin=10)


def test_look_up_is_indexing():
    rng = np.random.default_rng(0)
    labels, table = rng.integers(0, 256, (5, 6, 7), dtype=np.uint8), rng.integers(0, 256, 256, dtype=np.uint8)
    for arguments in (labels, np.asfortranarray(labels), labels[::2, 1:]):
        np.testing.assert_array_equal(c.look_up(arguments, table), table[arguments])


def filled_slowly(labels: np.ndarray) -> np.ndarray:
    """Apply the rule for the canal voxel by voxel."""
    out = labels.copy()
    cord, _ = ndimage.label(out == 1, FULL)
    if cord.any():
        out[(cord > 0) & (cord != np.argmax(np.bincount(cord[cord > 0])))] = 2
    canal, _ = ndimage.label((out == 1) | (out == 2), FULL)
    keep = canal == np.argmax(np.bincount(canal[canal > 0]))
    out[(canal > 0) & ~keep] = 0
    for x, y, z in np.ndindex(*labels.shape):
        along_x, along_y = np.flatnonzero(keep[:, y, z]), np.flatnonzero(keep[x, :, z])
        if not along_x.size or not along_y.size or out[x, y, z] == 1:
            continue
        if along_x[0] <= x <= along_x[-1] and along_y[0] <= y <= along_y[-1]:
            out[x, y, z] = 2
    return out


@pytest.mark.parametrize("seed", SEEDS)
def test_fill_canal_is_the_rule(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 41, 92], p=[0.6, 0.1, 0.1, 0.1, 0.1], size=(14, 12, 9)).astype(np.uint8)
    ours = fill_canal(labels)
    np.testing.assert_array_equal(ours, filled_slowly(labels))
    np.testing.assert_array_equal(fill_canal(ours), ours)


def test_a_hole_in_the_canal_is_filled_and_a_second_cord_becomes_canal():
    """There is a vertebra label inside the canal, and a speck of cord beside the cord."""
    spine = block_spine("T9", "T12")
    broken = spine.copy()
    broken[9, 15, 20:23] = 29
    broken[15, 23, 30] = 1
    np.testing.assert_array_equal(fill_canal(broken), spine)


@pytest.mark.parametrize("hidden", [(CORD,), (CORD, CANAL)], ids=["cord", "canal"])
@pytest.mark.parametrize(("gap_vox", "cord_goes_on"), [(8, True), (40, False)])
def test_canal_and_cord_go_on_behind_a_stenosis(hidden: tuple[int, ...], gap_vox: int, cord_goes_on: bool):
    """Below a level so narrow that no network draws it, the canal was lost and the cord had become canal."""
    spine = block_spine("C2", "T12")
    gap = spine[:, :, 90 : 90 + gap_vox]
    gap[np.isin(gap, hidden)] = 0
    below = spine[:, :, :90]
    expected = below if cord_goes_on else np.where(below == CORD, CANAL, below)
    np.testing.assert_array_equal(fill_canal(spine)[:, :, :90], expected)


def test_stray_canal_is_left_out():
    spine = block_spine("C2", "T12")
    spine[:, :, 200:230][np.isin(spine[:, :, 200:230], (CORD, CANAL))] = 0
    stray, beside = spine.copy(), spine.copy()
    stray[10:14, 17:21, 210:214] = CANAL
    beside[18:24, :6, 20:60] = CANAL
    for labels in (stray, beside):
        np.testing.assert_array_equal(fill_canal(labels), fill_canal(spine))


@pytest.mark.parametrize("step", [1, 2])
def test_both_halves_of_a_spine_that_metal_cuts_stay(step: int):
    """Everything above the screws was dropped without a word."""
    classes = classes_of(block_spine("C2", "L5"), step)
    classes[:, :, 100:140] = 0
    np.testing.assert_array_equal(one_spine(classes, step), classes)


@pytest.mark.parametrize("step", [1, 2])
def test_the_part_between_two_voids_stays(step: int):
    """The longer parts above and below were joined first, and everything between them was dropped without a word."""
    spine = block_spine("C2", "L5")
    spine[:, :, 60:90] = spine[:, :, 120:150] = 0
    np.testing.assert_array_equal(fill_canal(spine) > 0, spine > 0)
    classes = classes_of(spine, step)
    np.testing.assert_array_equal(one_spine(classes, step), classes)


def test_what_is_not_part_of_the_spine_does_not_stay():
    """This is a second spine (wrapped around), bone without canal, and canal without a disc."""
    classes = classes_of(block_spine("T1", "L5"), 2)
    spine = np.zeros((90, *classes.shape[1:]), np.uint8)
    spine[:24] = classes
    for what in (classes, np.where(classes >= 10, 0, classes), np.where(classes <= 5, 0, classes)):
        displayed = spine.copy()
        displayed[:24, :, 150:] = 0
        displayed[-24:, :, 160:] = what[:, :, 160:]
        expected = np.zeros_like(displayed)
        expected[:24, :, :150] = classes[:, :, :150]
        np.testing.assert_array_equal(one_spine(displayed, 2), expected)


def test_odd_discs_begin_with_the_first_present():
    spine = block_spine("T11", "L3")
    assert set(np.unique(spine[odd_discs(spine) == 1])) == {82, 92}
    spine[spine == 82] = 0
    assert set(np.unique(spine[odd_discs(spine) == 1])) == {91, 93}


def test_a_missed_disc_takes_its_turn():
    """Below a disc that step 1 had missed, the marks were exchanged, and step 2 drew two vertebrae as one."""
    spine = block_spine("T9", "L3")
    gone = spine == 82
    expected = np.where(gone, 0, odd_discs(spine))
    spine[gone] = 0
    assert missing_discs(spine) == (82,)
    np.testing.assert_array_equal(odd_discs(spine, missed=(82,)), expected)
    assert (odd_discs(spine) != odd_discs(spine, missed=(82,))).any()
    # Nothing is above the first one; what is said to be missed there costs it no turn.
    np.testing.assert_array_equal(odd_discs(spine, missed=(79, 82)), odd_discs(spine, missed=(82,)))


@pytest.mark.parametrize(("thoracic", "lumbar"), [(12, 5), (13, 5), (11, 5), (12, 6), (12, 4), (11, 4)])
def test_no_disc_is_missing_in_a_column_of_another_count(thoracic: int, lumbar: int):
    spine = block_spine("T9", "S", thoracic=thoracic, lumbar=lumbar)
    assert missing_discs(spine) == ()
    # A step-1 map has one code for all vertebrae: what a variant lacks was marked as missed.
    of_step1 = np.where(np.isin(spine, VERTEBRAE), SACRUM, spine)
    assert missing_discs(of_step1) == ()
    spine[spine == CODE_OF["L2-L3"]] = of_step1[of_step1 == CODE_OF["L2-L3"]] = 0
    assert missing_discs(spine) == missing_discs(of_step1) == (CODE_OF["L2-L3"],)


def test_extra_discs_take_their_turn():
    spine = block_spine("T11", "S", thoracic=13, lumbar=6)
    assert set(np.unique(spine[odd_discs(spine) == 1])) == {82, 91, 93, 95, 100}


def test_soft_map_ends_one_voxel_outside_the_hard_label():
    probability = np.random.default_rng(0).random((12, 13, 14), dtype=np.float32)
    mask = np.zeros(probability.shape, dtype=bool)
    mask[0:4, 5:8, 6:14] = True
    soft = soft_structure(probability, mask)
    expected = np.where(ndimage.binary_dilation(mask), probability, 0)
    np.testing.assert_array_equal(soft, expected)
    assert soft.dtype == np.float32
    assert not soft_structure(probability, np.zeros_like(mask)).any()
    with pytest.raises(ValueError, match="on one grid"):
        soft_structure(probability, mask[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_canal_extent_slice_by_slice(seed: int):
    canal = blobs(seed, (9, 8, 15), 0.02)
    extent = canal_extent(canal)
    points = []
    for row, z in enumerate(extent.z):
        x, y = np.nonzero(canal[:, :, z])
        assert (extent.x_first[row], extent.x_last[row]) == (x.min(), x.max())
        assert (extent.y_first[row], extent.y_last[row]) == (y.min(), y.max())
        middle = ((x.min() + x.max()) // 2, (y.min() + y.max()) // 2, z)
        points += [middle] if canal[middle] else []
    assert set(extent.z) == set(np.nonzero(canal)[2])
    assert [tuple(p) for p in extent.points.tolist()] == [tuple(map(int, p)) for p in points]


def test_centerline_of_nothing_and_of_too_little():
    canal = np.zeros((7, 8, 9), dtype=bool)
    assert smooth_centerline(canal, 1.0).shape == (0, 3)
    canal[2:5, 3, 4] = canal[3, 5, 6] = True
    np.testing.assert_allclose(smooth_centerline(canal, 1.0), [[3, 3, 4], [3, 4, 5], [3, 5, 6]])


def test_centerline_follows_the_canal():
    z = np.arange(60)
    canal = np.zeros((20, 60, 60), dtype=bool)
    for height in z:
        canal[8:11, 10 + height // 2 : 15 + height // 2, height] = True
    line = smooth_centerline(canal, 1.0)
    np.testing.assert_array_equal(line[:, 2], z)
    np.testing.assert_allclose(line[:, 0], 9, atol=0.01)
    assert np.abs(line[:, 1] - (12 + z / 2)).max() < 1.5


def test_centerline_through_four_slices_is_curved():
    """A canal in few thick slices had corners."""
    z = np.array([2, 4, 6, 8])
    canal = np.zeros((9, 40, 12), dtype=bool)
    canal[4, z**2 // 2, z] = True
    line = smooth_centerline(canal, 1.0)
    np.testing.assert_allclose(line[:, 1], line[:, 2] ** 2 / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("slice_mm", "kept_slices", "squares"),
    [(3.0, slice(None), 8000), (1.5, slice(None), 4000), (3.0, slice(60, 140), 8000 * 0.8**2)],
    ids=["3 mm", "1.5 mm", "a fifth is missing"],
)
def test_centerline_is_smoothed_alike_in_slices_of_any_thickness(slice_mm: float, kept_slices: slice, squares: float):
    """Behind metal the line left the canal, and in thin slices it followed each root."""
    z = np.delete(np.arange(200), np.arange(200)[kept_slices][20:60] if kept_slices.start else [])
    canal = np.zeros((9, 60, 200), dtype=bool)
    y = 30 + 20 * (-1) ** np.arange(len(z))
    canal[4, y, z] = True
    line = smooth_centerline(canal, slice_mm)
    np.testing.assert_allclose(line[:, 0], 4, atol=1e-6)
    assert ((line[z, 1] - y) ** 2).sum() == pytest.approx(squares, rel=0.002)
