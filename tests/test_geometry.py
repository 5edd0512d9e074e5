"""Tests of grids: orientation, the 1 mm grid, and the way back."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from totalspineseg_server.errors import GridError, ImageError
from totalspineseg_server.geometry import (
    Grid,
    Volume,
    image_to_iso,
    iso_grid,
    labels_from_iso,
    labels_on_grid,
    labels_to_iso,
    on_grid,
    points_from_iso,
    same_grid,
    same_voxels,
    soft_from_iso,
    to_ras,
)

ORIENTATIONS = ["".join(codes) for codes in itertools.product("RL", "AP", "SI")] + ["PSR", "PIR", "IPR", "SLA", "ARS"]


def oriented(codes: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    affine = nib.orientations.inv_ornt_aff(ornt, shape) @ np.diag([*spacing, 1.0])
    rotation = np.eye(4)
    angle = np.radians(7)
    rotation[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = rotation @ affine
    affine[:3, 3] += (-40, 13.7, 250)
    return affine


def smooth(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape)
    return ndimage.gaussian_filter(noise, 3).astype(np.float32)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_point_keeps_its_place_in_the_patient(codes: str) -> None:
    """A result in the wrong place, or mirrored, is the worst silent error."""
    shape, spacing = (40, 36, 30), (0.7, 1.0, 1.9)
    affine = oriented(codes, shape, spacing)
    labels = np.zeros(shape, np.uint8)
    labels[10:14, 20:24, 5:8] = 7
    labels[30:33, 8:11, 20:23] = 9
    iso = labels_to_iso(Volume(labels, affine))
    assert iso.grid.orientation == "RAS"
    np.testing.assert_allclose(iso.spacing, 1, atol=1e-6)
    for value in (7, 9):
        before = nib.affines.apply_affine(affine, np.argwhere(labels == value).mean(0))
        after = nib.affines.apply_affine(iso.affine, np.argwhere(iso.data == value).mean(0))
        assert np.linalg.norm(before - after) < 0.8
    back = labels_from_iso(iso.data, iso.grid, Grid(shape, affine))
    assert back.shape == shape
    for value in (7, 9):
        before = np.argwhere(labels == value).mean(0)
        assert np.abs(np.argwhere(back == value).mean(0) - before).max() < 0.6


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR"])
def test_linear_resampling_equals_scipy(codes: str) -> None:
    shape = (25, 30, 20)
    volume = Volume(smooth(shape), oriented(codes, shape, (0.8, 1.2, 2.5)))
    iso = image_to_iso(volume)
    mapping = np.linalg.inv(volume.affine) @ iso.affine
    expected = ndimage.affine_transform(
        volume.data, mapping[:3, :3], mapping[:3, 3], output_shape=iso.data.shape, order=1, mode="nearest"
    )
    np.testing.assert_allclose(iso.data, expected, atol=1e-4)


def test_an_iso_ras_image_is_not_touched() -> None:
    volume = Volume(smooth((20, 21, 22)), np.diag([1.0, 1, 1, 1]))
    iso = image_to_iso(volume)
    np.testing.assert_array_equal(iso.data, volume.data)
    np.testing.assert_array_equal(iso.affine, volume.affine)


def test_single_precision_headers_do_not_flip_voxels() -> None:
    """An affine through a NIfTI header (float32) moved up to 5.7 % of the foreground by a voxel."""
    shape = (40, 225, 100)
    affine = oriented("PIR", shape, (0.8, 0.8, 2.0))
    labels = (smooth(shape) > 0.5).astype(np.uint8)
    exact = labels_to_iso(Volume(labels, affine)).data
    stored = labels_to_iso(Volume(labels, affine.astype(np.float32).astype(np.float64))).data
    np.testing.assert_array_equal(exact, stored)


def test_arguments_are_not_modified() -> None:
    volume = Volume(smooth((20, 20, 20)), oriented("LPI", (20, 20, 20), (2.0, 0.5, 1.0)))
    before = volume.data.copy()
    iso = image_to_iso(volume)
    soft_from_iso(iso.data, iso.grid, volume.grid)
    np.testing.assert_array_equal(volume.data, before)


def test_soft_maps_come_back_within_interpolation_error() -> None:
    shape = (40, 40, 20)
    volume = Volume(smooth(shape), oriented("SLA", shape, (0.9, 1.1, 1.4)))
    iso = image_to_iso(volume)
    back = soft_from_iso(iso.data, iso.grid, volume.grid)
    inner = (slice(3, -3),) * 3
    assert np.abs(back - volume.data)[inner].max() < 0.02


@pytest.mark.parametrize("corner", [False, True], ids=["middle", "corner"])
def test_a_small_soft_map_comes_back_as_a_whole_one_would(corner: bool) -> None:
    shape = (50, 44, 20)
    grid = Grid(shape, oriented("SLA", shape, (0.9, 1.1, 1.4)))
    iso = iso_grid(grid)
    soft = np.zeros(iso.shape, np.float32)
    box = (slice(0, 9), slice(-8, None), slice(0, 7)) if corner else (slice(10, 19), slice(12, 20), slice(15, 22))
    soft[box] = np.random.default_rng(0).random(soft[box].shape)
    mapping = np.linalg.inv(iso.affine) @ grid.affine
    expected = ndimage.affine_transform(
        soft, mapping[:3, :3], mapping[:3, 3], output_shape=shape, order=1, mode="nearest"
    )
    np.testing.assert_allclose(soft_from_iso(soft, iso, grid), expected, atol=1e-3)
    assert not soft_from_iso(np.zeros_like(soft), iso, grid).any()


def test_points_are_neither_lost_nor_doubled_in_thick_slices() -> None:
    """A point between two 4 mm slices was lost by nearest-neighbor resampling."""
    shape = (60, 80, 12)
    grid = Grid(shape, oriented("PIR", shape, (1.0, 1.0, 4.0)))
    iso = iso_grid(grid)
    points = np.zeros(iso.shape, np.uint8)
    for k in range(3, 12):
        points[3 + 4 * (k - 3), 30, 5 + 6 * (k - 3)] = k
    back = points_from_iso(points, iso, grid)
    assert sorted(back[back > 0].tolist()) == list(range(3, 12))
    for k in range(3, 12):
        before = nib.affines.apply_affine(iso.affine, np.argwhere(points == k)[0])
        after = nib.affines.apply_affine(grid.affine, np.argwhere(back == k)[0])
        assert (np.abs(before - after) <= 2.2).all()


def test_a_label_map_of_another_series_lands_in_the_right_place() -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[10:20, 10:20, 10:20] = 44
    localizer = Volume(labels, np.diag([2.0, 2, 2, 1]))
    shape = (50, 50, 50)
    grid = Grid(shape, oriented("LPI", shape, (1.0, 1.0, 1.0)))
    moved = labels_on_grid(localizer, grid)
    world = nib.affines.apply_affine(grid.affine, np.argwhere(moved == 44))
    if len(world):
        inside = nib.affines.apply_affine(np.linalg.inv(localizer.affine), world)
        assert inside.min() >= 9.4
        assert inside.max() <= 19.6
    same = labels_on_grid(localizer, Grid(shape, np.diag([1.0, 1, 1, 1])))
    assert (same == 44).sum() == pytest.approx(8 * (labels == 44).sum(), rel=0.1)


ANISOTROPIC = Grid((6, 9, 12), oriented("LPI", (6, 9, 12), (4.0, 0.5, 1.0)))


def moved(*voxels: float) -> Grid:
    """Return ``ANISOTROPIC``, shifted by voxels along its axes."""
    shift = np.eye(4)
    shift[:3, 3] = voxels
    return Grid(ANISOTROPIC.shape, ANISOTROPIC.affine @ shift)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_a_label_in_another_index_order_lies_on_the_same_voxels(
    order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    """3D Slicer reverses the slices of left-handed volumes, and every label for such an image was refused."""
    labels = np.arange(6 * 9 * 12).reshape(ANISOTROPIC.shape).astype(np.uint8)
    ornt = np.column_stack([order, flips])
    turned = Volume(
        nib.orientations.apply_orientation(labels, ornt),
        ANISOTROPIC.affine @ nib.orientations.inv_ornt_aff(ornt, labels.shape),
    )
    before = turned.data.copy()
    assert same_voxels(turned.grid, ANISOTROPIC)
    assert same_grid(turned.grid, ANISOTROPIC) == (order == (0, 1, 2) and flips == (1, 1, 1))
    found = on_grid(turned, ANISOTROPIC)
    np.testing.assert_array_equal(found.data, labels)
    np.testing.assert_array_equal(found.affine, ANISOTROPIC.affine)
    np.testing.assert_array_equal(turned.data, before)


@pytest.mark.parametrize("axis", range(3))
def test_a_quarter_of_a_voxel_along_each_axis_is_the_same_voxel(axis: int) -> None:
    """A tolerance in mm refused headers with cosines of four digits; it can be a sixth of a voxel, or two voxels."""
    offset = np.zeros(3)
    offset[axis] = 0.24
    assert same_grid(moved(*offset), ANISOTROPIC)
    assert same_grid(moved(0.24, -0.24, 0.24), ANISOTROPIC), "each axis by itself"
    offset[axis] = 0.26
    assert not same_voxels(moved(*offset), ANISOTROPIC)


def test_rounded_cosines_are_the_same_voxels() -> None:
    """A label that ITK wrote for an image with cosines of four digits was refused, for 0.02 mm at a corner."""
    shape = (72, 100, 180)
    affine = oriented("PIR", shape, (1.0, 1.0, 1.0))
    rounded = affine.copy()
    rounded[:3, :3] = np.round(affine[:3, :3], 4)
    assert same_grid(Grid(shape, rounded), Grid(shape, affine))


def test_a_refusal_says_how_far_the_corners_are_apart() -> None:
    """For a shifted label the message printed two equal grids."""
    with pytest.raises(GridError, match=r"up to 40 mm apart.*image as reference"):
        on_grid(Volume(np.zeros(ANISOTROPIC.shape, np.uint8), moved(10, 0, 0).affine), ANISOTROPIC)
    with pytest.raises(GridError, match=r"shape \(6, 9, 11\).*shape \(6, 9, 12\)"):
        on_grid(Volume(np.zeros((6, 9, 11), np.uint8), ANISOTROPIC.affine), ANISOTROPIC)
    slab = Grid((6, 9, 1), ANISOTROPIC.affine)
    for label, image in ((slab, ANISOTROPIC), (ANISOTROPIC, slab)):
        with pytest.raises(GridError, match=f"up to {11 * ANISOTROPIC.spacing[2]:.3g} mm apart"):
            on_grid(Volume(np.zeros(label.shape, np.uint8), label.affine), image)


@pytest.mark.parametrize(
    ("data", "affine", "match"),
    [
        (np.zeros((3, 3)), np.eye(4), "expected a 3D volume"),
        (np.zeros((3, 3, 3)), np.zeros((4, 4)), "invertible"),
        (np.zeros((3, 3, 3)), np.full((4, 4), np.nan), "invertible"),
    ],
    ids=["2D", "singular", "nan"],
)
def test_bad_volumes(data: np.ndarray, affine: np.ndarray, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        Volume(data, affine)


def test_an_absurd_field_of_view_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ImageError, match="Check the voxel size"):
        iso_grid(Grid((512, 512, 512), np.diag([100.0, 100, 100, 1])))


def test_labels_of_another_shape_are_refused() -> None:
    grid = Grid((10, 10, 10), np.eye(4))
    with pytest.raises(GridError, match="expected an array"):
        labels_from_iso(np.zeros((9, 10, 10), np.uint8), grid, grid)


def test_reorientation_is_a_view() -> None:
    data = smooth((10, 11, 12))
    assert np.shares_memory(to_ras(Volume(data, oriented("LPI", data.shape, (1, 1, 1)))).data, data)
