"""Tests of synthetic spines: order of the anatomy, variants, fields of view, contrast, determinism."""

import importlib
import itertools
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_fill_holes, label

from known_figures import require_known
from totalspineseg_server import anatomy
from totalspineseg_server.synthesis import (
    Field,
    RenderOptions,
    SpineOptions,
    SyntheticSpine,
    demo_studies,
    head,
    random_spine,
    render,
    step1_classes,
    step2_classes,
)
from totalspineseg_server.synthesis.column import Vertebra, bend_column
from totalspineseg_server.synthesis.morphometry import level_sizes
from totalspineseg_server.synthesis.render import _coil, _flow, _saturate, tissue_signals
from totalspineseg_server.synthesis.shapes import (
    Local,
    Mask,
    Raster,
    Reach,
    arch,
    arch_reach,
    atlas,
    body,
    body_reach,
    spinous,
    spinous_ends,
    spinous_reach,
)
from totalspineseg_server.synthesis.surroundings import draw_ligaments
from totalspineseg_server.synthesis.tissues import PRIORS, Tissue
from totalspineseg_server.synthesis.vertebrae import IMPLANT_ODDS, draw_implants

pytestmark = pytest.mark.slow

render_module = importlib.import_module("totalspineseg_server.synthesis.render")
COARSE = (3.5, 1.75, 1.75)


def make(seed: int = 0, **options: object) -> SyntheticSpine:
    settings: dict[str, object] = {"spacing_mm": COARSE, "field": Field.WHOLE, "width_mm": 80.0, "depth_mm": 160.0}
    return random_spine(np.random.default_rng(seed), SpineOptions(**(settings | options)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> SyntheticSpine:
    return make(3, thoracic=12, lumbar=5)


def figures(spine: SyntheticSpine) -> dict[str, list[float]]:
    """Return structure or tissue -> its volume in voxels, and its middle in voxels along each axis."""
    found = {}
    for kind, painted in (("code", spine.labels), ("tissue", spine.tissues)):
        for value in np.unique(painted).tolist():
            places = np.nonzero(painted == value)
            found[f"{kind} {value}"] = [float(places[0].size), *(float(axis.mean()) for axis in places)]
    return found


def gray_values(image: NDArray[np.float32]) -> list[float]:
    """Return percentiles of an image, and the mean step between neighbors along each axis, which blur makes smaller."""
    steps = [float(np.abs(np.diff(image, axis=axis)).mean()) for axis in range(3)]
    return [*np.percentile(image, (10, 50, 90, 99)).tolist(), *steps]


def test_spines_are_drawn_as_they_were(whole: SyntheticSpine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number moved or thickened a structure in every synthetic spine, or darkened every image, and the
    figures measured with the earlier ones stayed in the pages.
    """
    spines = {
        "whole": whole,
        "neck": make(4, field=Field.CERVICAL, thoracic=12, lumbar=5),
        "loin": make(9, field=Field.LUMBAR, thoracic=11, lumbar=6),
    }
    # What lies around the column is only in wide scans, and not in each of them.
    wide = {"width_mm": 240.0, "depth_mm": 260.0, "spacing_mm": (4.0, 3.0, 3.0)}
    for k, field in enumerate((Field.CERVICAL, Field.CERVICOTHORACIC, Field.THORACOLUMBAR, Field.LUMBAR)):
        spines |= {f"wide, {field.value} {seed}": make(seed, field=field, **wide) for seed in (20 + k, 30 + k)}
    measured = {f"{name}, {part}": values for name, spine in spines.items() for part, values in figures(spine).items()}
    # A changed end of the canal is a hundred voxels of it.
    require_known("spines", measured, rel=0.0005, abs=0.003)
    measured = {}
    for name in PRIORS:
        measured[f"signals, {name}"] = tissue_signals(np.random.default_rng(7), name)[: len(Tissue)].tolist()
    for odds, count in ((0.0, 2), (1.0, 8)):
        # All artifacts at once, so that each is in a few images.
        for name in (*(f"{kind}_ODDS" for kind in ("RINGING", "GHOST", "WRAP", "METAL", "FLOW")), "_SATURATION_ODDS"):
            monkeypatch.setattr(render_module, name, odds)
        for seed in range(count):
            image = render(np.random.default_rng(seed), spines["loin"])
            measured[f"image {seed}, odds {odds:g}"] = gray_values(image)
    require_known("images", measured, rel=0.003, abs=0.003)


def test_parts_of_vertebrae_are_shaped_as_they_were() -> None:
    """A changed number gave the bodies of the neck sharp corners: less than the voxels of a scan show at once."""
    measured = {}
    for vertebra in bend_column(np.random.default_rng(1), 12, 5, 1.5).vertebrae[::3]:
        parts = [(body, body_reach), (arch, arch_reach), (spinous, spinous_reach)]
        if vertebra.index == 0:
            parts = [(lambda local, one: atlas(local, one, 5.0), lambda _: ((-45, -50, -12), (45, 15, 12)))]
        for part, reach in parts:
            axes = np.ogrid[tuple(slice(low - 1, high + 1, 0.6) for low, high in zip(*reach(vertebra), strict=True))]
            places = np.nonzero(part(Local(*(axis.astype(np.float32) for axis in axes)), vertebra))
            moments = [float(value) for axis in places for value in (axis.mean(), axis.std())]
            measured[f"{vertebra.index}, {len(measured)}"] = [float(len(places[0])), *moments]
    require_known("shapes", measured, rel=0.0005, abs=0.002)


def test_same_seed_gives_same_spine_and_image_and_another_seed_another() -> None:
    options = {"field": Field.LOWER_LUMBAR}
    first, second, third = make(1, **options), make(1, **options), make(2, **options)
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.tissues, second.tissues)
    assert first.labels.shape != third.labels.shape or not np.array_equal(first.labels, third.labels)
    images = [render(np.random.default_rng(s), first) for s in (5, 5, 6)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_whole_spine_shows_every_structure_of_the_normal_column_in_order(whole: SyntheticSpine) -> None:
    plan = anatomy.column()
    expected = {*plan.vertebrae, *(d for d in plan.discs if d is not None), anatomy.SACRUM, 1, 2}
    assert set(np.unique(whole.labels).tolist()) == expected | {0}
    for row in (plan.vertebrae[1:], [d for d in plan.discs if d is not None]):
        heights = [float(np.median(np.nonzero(whole.labels == code)[2])) for code in row]
        assert all(upper > lower for upper, lower in itertools.pairwise(heights))


def test_each_disc_touches_the_vertebrae_it_is_named_after(whole: SyntheticSpine) -> None:
    plan = anatomy.column()
    for upper, lower, disc in zip(plan.vertebrae, (*plan.vertebrae[1:], anatomy.SACRUM), plan.discs, strict=True):
        if disc is None:
            continue
        around = set(np.unique(whole.labels[binary_dilation(whole.labels == disc)]).tolist())
        assert {upper, lower} <= around, f"disc {disc} does not touch {upper} and {lower}"


def test_column_is_one_piece_and_each_body_lies_in_front_of_the_canal(whole: SyntheticSpine) -> None:
    _, pieces = label(binary_dilation(whole.labels > 0, iterations=1))
    assert pieces == 1
    for code in (*anatomy.DISCS[:-2], anatomy.DISC_L5_S):
        x, y, z = (
            (float(np.mean(a)) for a in np.nonzero(whole.labels == code)) if (whole.labels == code).any() else (0,) * 3
        )
        canal = np.nonzero(np.isin(whole.labels[:, :, round(z)], (1, 2)))[1]
        if canal.size and x:
            assert y > canal.mean(), f"disc {code} is not in front of the canal"


def test_cord_is_wrapped_by_canal_and_ends_near_the_first_lumbar_vertebra() -> None:
    whole = make(3, thoracic=12, lumbar=5, jitter=0.0, spacing_mm=(1.5, 1.5, 2.0))  # stenoses may press on the cord
    cord, canal = whole.labels == anatomy.CORD, whole.labels == anatomy.CANAL
    lowest = int(np.nonzero(cord)[2].min())
    first_lumbar = np.nonzero(whole.labels == anatomy.L1)[2]
    reach = 40 / whole.affine[2, 2]
    assert first_lumbar.min() - reach < lowest < first_lumbar.max() + reach
    assert np.nonzero(canal)[2].min() < lowest - 60 / whole.affine[2, 2]
    rim = binary_dilation(cord, structure=np.array([[[0], [1], [0]], [[1], [1], [1]], [[0], [1], [0]]])) & ~cord
    inside = rim[:, :, lowest + 5 : int(np.nonzero(cord)[2].max()) - 5]
    assert canal[:, :, lowest + 5 : int(np.nonzero(cord)[2].max()) - 5][inside].mean() > 0.9


def test_sacs_differ_between_people_and_the_cord_keeps_within() -> None:
    """Cords in real necks came out a third too thin, because every synthetic sac was wide."""
    spines = [make(seed, field=Field.CERVICAL) for seed in range(8)]
    areas = []
    for spine in spines:
        cord, sac = spine.labels == anatomy.CORD, np.isin(spine.labels, (anatomy.CORD, anatomy.CANAL))
        middle = spine.labels.shape[2] // 2
        areas.append(cord[:, :, middle].sum() / sac[:, :, middle].sum())
    assert max(areas) > 0.45 > 0.35 > min(areas)


def test_head_shows_what_networks_take_for_column_and_names_none_of_it() -> None:
    lines, stems = [], 0
    for seed in range(6):
        spine = make(seed, field=Field.CERVICAL, width_mm=120.0, depth_mm=240.0, spacing_mm=(2.0, 1.0, 1.0))
        atlas = np.nonzero(spine.labels == anatomy.C1)
        top, middle = int(np.median(atlas[2])), int(np.median(atlas[0]))
        above = spine.tissues[:, :, top:]
        stems += int((above == Tissue.BRAIN).any())  # medulla and pons, where the scan reaches them
        assert not (spine.labels[:, :, top:][above == Tissue.BRAIN] == anatomy.CORD).any()
        bone = np.isin(spine.tissues, (Tissue.MARROW, Tissue.OTHER_BONE)) & (spine.labels == 0)
        jaw = bone[:, int(atlas[1].max()) + 25 :, : top + 10]
        assert jaw[: middle - 8].any()
        assert jaw[middle + 8 :].any()  # both halves, none of it labeled
        axis = spine.tissues[spine.labels == anatomy.C2]
        lines.append(bool(np.isin(axis, (Tissue.ANNULUS, Tissue.NUCLEUS)).any()))
    assert stems >= 3
    assert set(lines) == {False, True}  # the line below the dens: in some spines, and never a disc


def test_clivus_rises_as_marrow_from_above_the_dens() -> None:
    spine = make(1, field=Field.CERVICAL, width_mm=60.0, depth_mm=200.0, spacing_mm=(2.0, 1.0, 1.0), jitter=0.0)
    atlas = np.nonzero(spine.labels == anatomy.C1)
    above = spine.tissues[int(np.median(atlas[0])), :, int(np.median(atlas[2])) + 26 :]
    stem = np.nonzero((above == Tissue.BRAIN)[:, 0])[0].max()
    bone = np.isin(above[stem:], (Tissue.MARROW, Tissue.OTHER_BONE))
    low, high = (int(np.nonzero(bone[:, k])[0].min(initial=99)) for k in (0, 8))
    assert low < 20, "right in front of the stem"
    assert low < high < 40, "and it slopes forward"


@pytest.mark.parametrize("seed", range(4))
def test_a_line_may_cross_the_marrow_of_the_clivus(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right, anterior, superior = np.meshgrid(np.arange(-14, 15), np.arange(0, 60), np.arange(0, 60), indexing="ij")
    inner, noise = np.ones(right.shape, bool), np.zeros(right.shape, np.float32)
    space = head.HeadSpace(Local(right, anterior, superior), noise, inner, 1.0)

    def painted(odds: float) -> np.ndarray:
        monkeypatch.setattr(head, "_SYNCHONDROSIS_ODDS", odds)
        out = np.full(right.shape, Tissue.AIR, np.uint8)
        head._clivus(np.random.default_rng(seed), out, space, Tissue.MARROW)
        return out

    plain, crossed = painted(0), painted(1)
    line = plain != crossed
    assert line.any()
    assert (plain[line] == Tissue.MARROW).all()
    assert np.isin(crossed[line], (Tissue.ANNULUS, Tissue.CORTICAL)).all()
    assert line.sum() < 0.2 * (plain == Tissue.MARROW).sum()


def test_belly_has_a_kidney_and_a_psoas_on_either_side_and_the_liver_on_the_right() -> None:
    options = {"width_mm": 260.0, "depth_mm": 260.0, "spacing_mm": (2.0, 2.0, 2.0), "jitter": 0.0}
    spine = make(2, field=Field.LUMBAR, thoracic=12, lumbar=5, **options)
    first, third = (np.nonzero(spine.labels == anatomy.LUMBAR[k]) for k in (0, 2))
    middle, canal = int(np.median(third[0])), int(np.median(np.nonzero(spine.labels == anatomy.CANAL)[1]))
    height = int(np.median(first[2])) - 8
    for beside in (spine.tissues[middle + 26 : middle + 36], spine.tissues[middle - 36 : middle - 26]):
        kidney = beside[:, canal : canal + 12, height - 6 : height + 6]
        assert (kidney == Tissue.ORGAN_B).mean() > 0.8
    level, front = int(np.median(third[2])), int(np.median(third[1][third[1] > np.median(third[1])]))
    around = spine.tissues[:, front - 4 : front + 4, level]
    assert (around[middle - 24 : middle - 10] == Tissue.MUSCLE).mean() > 0.4
    assert (around[middle + 10 : middle + 24] == Tissue.MUSCLE).mean() > 0.4
    spine = make(2, field=Field.THORACOLUMBAR, thoracic=12, lumbar=5, **options)
    before = spine.tissues[:, canal + 25 :, int(np.median(np.nonzero(spine.labels == anatomy.THORACIC[11])[2]))]
    middle = int(np.median(np.nonzero(spine.labels == anatomy.THORACIC[11])[0]))
    right, left = ((half == Tissue.ORGAN_A).mean() for half in (before[middle + 20 :], before[: middle - 20]))
    assert right > 2 * left


def test_lungs_lie_on_both_sides_of_the_column_and_none_in_the_middle() -> None:
    size = {"width_mm": 300.0, "depth_mm": 260.0, "spacing_mm": (3.5, 3.5, 3.5)}
    for seed in range(2):
        spine = make(seed, field=Field.THORACIC, **size)
        lungs, canal = spine.tissues == Tissue.LUNG, np.isin(spine.labels, (anatomy.CORD, anatomy.CANAL))
        for z in np.flatnonzero(lungs.any(axis=(0, 1)) & canal.any(axis=(0, 1))):
            beside_mm = 3.5 * (np.nonzero(lungs[:, :, z])[0] - np.nonzero(canal[:, :, z])[0].mean())
            assert (beside_mm < 0).mean() == pytest.approx(0.5, abs=0.2), "a side has no lung"
            assert np.abs(beside_mm).min() > 9


def test_the_windpipe_is_a_tube_as_wide_as_a_finger() -> None:
    size = {"width_mm": 300.0, "depth_mm": 260.0, "spacing_mm": (3.5, 3.5, 3.5)}
    for seed in range(3):
        spine = make(seed, field=Field.CERVICOTHORACIC, **size)
        for z in np.flatnonzero((spine.tissues == Tissue.LUNG).any(axis=(0, 1)))[-9:]:
            air = spine.tissues[:, :, z] == Tissue.AIR
            assert 3.5**2 * (air & binary_fill_holes(~air)).sum() == pytest.approx(170, abs=40), "mm2"


def test_ribs_leave_every_thoracic_vertebra_and_the_last_ones_are_short() -> None:
    spine = make(4, thoracic=12, lumbar=5, width_mm=240.0, spacing_mm=(2.0, 2.0, 2.0), jitter=0.0)
    reach = []
    for code in anatomy.column().vertebrae:
        places = np.nonzero(spine.labels == code)
        slab = spine.tissues[:, : int(np.median(places[1])), int(places[2].min()) : int(places[2].max())]
        sides = np.abs(np.nonzero(slab == Tissue.OTHER_BONE)[0] - np.median(places[0])) * 2.0
        reach.append(float(sides.max(initial=0.0)))
    ribbed = dict(zip(anatomy.column().vertebrae, reach, strict=True))
    assert all(ribbed[code] > 70 for code in anatomy.THORACIC[1:9])
    assert 40 < ribbed[anatomy.LUMBAR[0]] < 75, "the last rib falls beside L1"
    assert max(ribbed[code] for code in anatomy.LUMBAR[2:4]) < 40


@pytest.mark.parametrize(
    ("part", "reach"),
    [
        pytest.param(body, body_reach, id="body"),
        pytest.param(arch, arch_reach, id="arch"),
        pytest.param(spinous, spinous_reach, id="spinous"),
    ],
)
def test_the_box_a_part_is_drawn_in_holds_all_of_it(
    part: Callable[[Local, Vertebra], Mask], reach: Callable[[Vertebra], Reach]
) -> None:
    right, anterior, superior = np.ogrid[-70:71:1.5, -95:40:1.5, -80:50:1.5]
    for seed in range(3):
        for vertebra in bend_column(np.random.default_rng(seed), 12, 5, 1.5).vertebrae[1::2]:
            local = Local(*(axis.astype(np.float32) for axis in (right, anterior, superior)))
            bone = part(local, vertebra)
            low, high = reach(vertebra)
            for axis, least, most in zip((right, anterior, superior), low, high, strict=True):
                inside = np.broadcast_to((axis >= least) & (axis <= most), bone.shape)
                assert not bone[~inside].any(), f"vertebra {vertebra.index} of seed {seed}"
            assert bone.any()


def test_the_atlas_is_a_ring_that_leaves_room_for_the_dens() -> None:
    vertebra, radius = bend_column(np.random.default_rng(1), 12, 5, 1.5).vertebrae[0], 5.0
    anterior = np.arange(-60, 40, 0.5, dtype=np.float32)
    middle = np.zeros_like(anterior)
    bone = anterior[atlas(Local(middle, anterior, middle), vertebra, radius)]
    front, back = bone[bone > 0], bone[bone < 0]
    assert radius < front.min() < radius + 5
    assert back.max() < -radius


def test_ligaments_run_before_the_bodies_between_and_behind_the_spinous_processes() -> None:
    column = bend_column(np.random.default_rng(0), 12, 5, 0.0)
    raster = Raster((20, 300, 700), (2.0, 1.0, 1.0), (-20.0, -200.0, -60.0))
    out = np.zeros(raster.shape, np.uint8)
    draw_ligaments(np.random.default_rng(0), out, column, raster)

    def at(point: NDArray[np.float64]) -> int:
        return int(out[tuple(np.round((point - raster.origin) / raster.spacing).astype(int))])

    sheets = set()
    for upper, lower in itertools.pairwise(column.vertebrae[1:]):
        fronts = [v.frame.point(0, v.size.depth / 2, 0) for v in (upper, lower)]
        roots, tips = zip(*([v.frame.point(*p) for p in spinous_ends(v)] for v in (upper, lower)), strict=True)
        assert at((fronts[0] + fronts[1]) / 2) == Tissue.LIGAMENT
        assert at((tips[0] + tips[1]) / 2) == Tissue.LIGAMENT
        sheets |= {at((roots[0] + roots[1]) / 2 + share * (sum(tips) - sum(roots)) / 2) for share in (0.3, 0.5, 0.7)}
    assert len(sheets) == 1, "one sheet without holes"
    assert sheets < {Tissue.FAT, Tissue.LIGAMENT}


def test_signal_falls_off_in_front_of_the_coil_and_where_fluid_moves(whole: SyntheticSpine) -> None:
    falloff = [_coil(np.random.default_rng(s), (4, 100, 50), (1.0, 2.0, 2.0), 1.0).mean((0, 2)) for s in range(6)]
    assert all(line[:20].mean() > 1.2 * line[-20:].mean() for line in falloff)
    flows = [_flow(np.random.default_rng(s), whole.tissues, 1.0) for s in range(12)]
    moving = [f for f in flows if isinstance(f, np.ndarray)]
    assert 0 < len(moving) < len(flows)
    for field in moving:
        assert (field[whole.tissues != Tissue.CSF] == 1).all()
        assert field[whole.tissues == Tissue.CSF].min() < 0.95


@pytest.mark.parametrize(
    ("thoracic", "lumbar", "has", "lacks"),
    [
        pytest.param(11, 5, (anatomy.T11, anatomy.L1), (anatomy.T12,), id="T11"),
        pytest.param(13, 5, (anatomy.T13, anatomy.DISC_T12_T13), (), id="T13"),
        pytest.param(12, 4, (anatomy.L4, anatomy.DISC_L5_S), (anatomy.L5,), id="L4"),
        pytest.param(12, 6, (anatomy.L6, anatomy.DISC_L5_L6), (), id="L6"),
    ],
)
def test_variants_have_their_own_levels(
    thoracic: int, lumbar: int, has: tuple[int, ...], lacks: tuple[int, ...]
) -> None:
    spine = make(4, thoracic=thoracic, lumbar=lumbar)
    present = set(np.unique(spine.labels).tolist())
    assert set(has) <= present
    assert not set(lacks) & present
    assert spine.column == anatomy.column(thoracic, lumbar).name


@pytest.mark.parametrize(
    ("view", "has", "lacks"),
    [
        pytest.param(Field.CERVICAL, (anatomy.C1, anatomy.DISC_C7_T1), (anatomy.T12, anatomy.SACRUM), id="cervical"),
        pytest.param(Field.CERVICOTHORACIC, (anatomy.C1, 23), (anatomy.L1, anatomy.SACRUM), id="cervicothoracic"),
        pytest.param(Field.THORACIC, (25, 27), (anatomy.C1, anatomy.SACRUM), id="thoracic"),
        pytest.param(Field.THORACOLUMBAR, (anatomy.T12, anatomy.L1), (anatomy.C1,), id="thoracolumbar"),
        pytest.param(Field.LUMBAR, (anatomy.L1, anatomy.L5, anatomy.SACRUM), (anatomy.C7, 21), id="lumbar"),
        pytest.param(Field.LOWER_LUMBAR, (anatomy.L5, anatomy.SACRUM), (anatomy.C7, 28), id="lower-lumbar"),
    ],
)
def test_field_of_view_shows_its_levels_and_no_others(
    view: Field, has: tuple[int, ...], lacks: tuple[int, ...]
) -> None:
    for seed in range(3):
        present = set(np.unique(make(seed, field=view, thoracic=12, lumbar=5).labels).tolist())
        assert set(has) <= present
        assert not set(lacks) & present


def test_affine_is_ras_with_the_asked_spacing(whole: SyntheticSpine) -> None:
    assert nib.aff2axcodes(whole.affine) == ("R", "A", "S")
    assert np.allclose(np.diag(whole.affine)[:3], COARSE)


def test_image_separates_fluid_from_cord_on_t2_and_the_reverse_on_t1(whole: SyntheticSpine) -> None:
    order = (("T2", Tissue.CSF, Tissue.MUSCLE), ("T1", Tissue.FAT, Tissue.CSF), ("T1gre", Tissue.CORD, Tissue.CSF))
    for contrast, brighter, darker in order:
        image = render(np.random.default_rng(0), whole, RenderOptions(contrast=contrast, strength=0.2))
        assert image.dtype == np.float32
        assert image.shape == whole.labels.shape
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert np.median(image[whole.tissues == brighter]) > 1.5 * np.median(image[whole.tissues == darker])


def test_thick_slices_leave_less_detail_across_the_slices(whole: SyntheticSpine) -> None:
    rough = [
        render(np.random.default_rng(1), whole, RenderOptions(contrast="T2", strength=0.0, slice_mm=mm))
        for mm in (1.0, 6.0)
    ]
    assert (
        min(
            float(np.abs(np.diff(rough[1], axis=a)).mean() / np.abs(np.diff(rough[0], axis=a)).mean()) for a in range(3)
        )
        < 0.75
    )


def test_perfect_step1_and_step2_maps_hold_every_class(whole: SyntheticSpine) -> None:
    before = whole.labels.copy()
    one, two = step1_classes(whole.labels), step2_classes(whole.labels)
    assert np.array_equal(before, whole.labels)
    assert set(np.unique(one).tolist()) == set(range(10))
    assert set(np.unique(two).tolist()) == set(range(12)) - {anatomy.Step2.VERTEBRA.value}
    assert np.array_equal(one > 0, whole.labels > 0)


def test_usual_counts_give_the_published_sizes_and_extra_levels_stay_between_them() -> None:
    assert level_sizes("lumbar", 5)[0].height == pytest.approx(23.8)
    assert level_sizes("thoracic", 12)[-1].width == pytest.approx(39.0)
    widths = [s.width for s in level_sizes("lumbar", 6)]
    assert widths == sorted(widths)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        pytest.param(lambda: SpineOptions(spacing_mm=(0, 1, 1)), "expected spacing_mm", id="spacing"),
        pytest.param(lambda: SpineOptions(width_mm=-5), "expected width_mm", id="width"),
        pytest.param(lambda: SpineOptions(jitter=-1), "expected jitter", id="jitter"),
        pytest.param(lambda: RenderOptions(contrast="CT"), "expected contrast", id="contrast"),
        pytest.param(lambda: RenderOptions(strength=-1), "expected strength", id="strength"),
    ],
)
def test_wrong_options_are_refused(make_it: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()  # type: ignore[operator]


def test_demo_studies_are_readable_named_and_repeatable(tmp_path: object) -> None:
    first = demo_studies(tmp_path / "a", n=1, seed=4, labels=True, spacing_mm=2.0)  # type: ignore[operator]
    second = demo_studies(tmp_path / "b", n=1, seed=4, spacing_mm=2.0)  # type: ignore[operator]
    image = nib.load(first[0])
    assert first[0].name == "demo_01_lumbar_T2.nii.gz"
    assert np.array_equal(np.asarray(image.dataobj), np.asarray(nib.load(second[0]).dataobj))
    assert image.header.get_zooms() == (2.0, 2.0, 2.0)
    truth = nib.load(first[0].parent / "truth" / first[0].name)
    assert truth.shape == image.shape
    assert anatomy.DISC_L5_S in np.asarray(truth.dataobj)


def test_sacral_discs_show_between_plates_and_stay_sacrum() -> None:
    """A second L5-S was drawn on S1-S2 of real people, because the synthetic sacrum had no visible disc."""
    heights = []
    for seed in range(6):
        spine = make(seed, field=Field.LOWER_LUMBAR, spacing_mm=(2.0, 1.0, 0.75), width_mm=60.0)
        column = bend_column(np.random.default_rng(seed), 12, 5, 1.0)
        heights.append(column.sacrum[0].gap)
        sacrum = spine.labels == anatomy.SACRUM
        rudiments = np.isin(spine.tissues, (Tissue.ANNULUS, Tissue.SACRAL_DISC, Tissue.NUCLEUS)) & sacrum
        assert rudiments.sum() * 1.5 > 300, "mm3"
        assert (np.isin(spine.labels, anatomy.DISCS) & sacrum).sum() == 0
    assert max(heights) > 3 > min(heights)
    assert column.sacrum[-1].gap == 0


def test_lowest_disc_is_a_wedge_open_to_the_front() -> None:
    """Source: 11.2 mm (3.2) in front and 6.8 mm (2.7) behind in 25 patients of the SPIDER data set."""
    spine = make(
        0, field=Field.LOWER_LUMBAR, thoracic=12, lumbar=5, jitter=0.0, spacing_mm=(2.0, 0.5, 0.5), width_mm=40.0
    )
    disc = spine.labels == anatomy.DISC_L5_S
    slab = disc[disc.shape[0] // 2]
    columns = np.flatnonzero(slab.any(1))
    third = len(columns) // 5
    behind, before = (
        slab[part].sum(1).mean() * 0.5 for part in (columns[third : 2 * third], columns[-2 * third : -third])
    )
    assert before > behind + 2
    assert 8 < before < 16


def test_a_slipped_vertebra_takes_those_above_along() -> None:
    slips = []
    for seed in range(80):
        for vertebra in bend_column(np.random.default_rng(seed), 12, 5, 1.0).vertebrae[2:]:
            size, disc, own = vertebra.size, vertebra.disc_frame, vertebra.frame
            straight = disc.axes[:, 2] * size.disc_height / 2 + own.axes[:, 2] * size.height / 2
            slip = 2 * float((own.origin - disc.origin - straight) @ own.axes[:, 1]) / size.depth
            slips.append((vertebra.region, slip))
    lumbar = [slip for region, slip in slips if region == "lumbar"]
    assert 0.02 < np.mean(np.abs(lumbar) > 0.03) < 0.09
    assert max(lumbar) < 0.31 and min(lumbar) < -0.03, "forward up to the first grade, in some backward"
    assert max(abs(slip) for region, slip in slips if region == "thoracic") < 1e-6


def test_implants_are_drawn_in_few_columns_and_change_no_label() -> None:
    column = bend_column(np.random.default_rng(0), 12, 5, 0.5)
    raster = Raster((60, 90, 220), (2.0, 3.0, 3.0), (-60.0, -200.0, -60.0))
    seen = 0
    for seed in range(200):
        tissues = np.zeros(raster.shape, np.uint8)
        draw_implants(np.random.default_rng(seed), tissues, column, raster)
        assert set(np.unique(tissues)) <= {0, Tissue.IMPLANT}
        seen += bool(tissues.any())
    assert 0.5 * IMPLANT_ODDS < seen / 200 < 3 * IMPLANT_ODDS


def test_few_scans_are_slabs_of_the_middle_alone() -> None:
    widths = [make(seed, field=Field.LOWER_LUMBAR, width_mm=None).labels.shape[0] * COARSE[0] for seed in range(40)]
    assert 1 <= sum(width < 40 for width in widths) <= 12
    assert max(widths) > 60


def test_a_saturation_band_darkens_what_lies_before_the_column_alone(whole: SyntheticSpine) -> None:
    dark = 0
    for seed in range(12):
        image = np.ones(whole.labels.shape, np.float32)
        _saturate(np.random.default_rng(seed), image, whole, COARSE, 1.0)
        assert image[whole.labels > 0].mean() > 0.9
        dark += image.min() < 0.5
    assert 1 <= dark <= 8


def test_marrow_is_dark_in_some_people_and_mottled_in_others(
    whole: SyntheticSpine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies with dark or mottled marrow came out with holes."""
    marrow, spreads = whole.tissues == Tissue.MARROW, []
    for seed in range(8):
        means = []
        for odds in (0.0, 1.0):
            monkeypatch.setattr(render_module, "_DARK_MARROW_ODDS", odds)
            image = render(np.random.default_rng(seed), whole, RenderOptions(contrast="T1", slice_mm=1.0))
            means.append(float(image[marrow].mean()))
        assert 0.25 < means[1] / means[0] < 0.95
        spreads.append(image[marrow].std() / image[marrow].mean())
    assert max(spreads) > 1.3 * min(spreads)


def test_fat_lies_behind_the_lumbar_sac_and_is_not_canal() -> None:
    found = []
    for seed in range(8):
        spine = make(seed, field=Field.LUMBAR, spacing_mm=(2.0, 1.0, 1.5), width_mm=60.0)
        fat = spine.tissues == Tissue.EPIDURAL
        assert (spine.labels[fat] == 0).all()
        found.append(fat.sum() * 3.0)
    assert np.median(found) > 1000, "mm3"


@pytest.mark.parametrize("contrast", PRIORS)
def test_every_tissue_has_a_brightness_between_black_and_white(contrast: str) -> None:
    """One wrong number in the table makes a tissue much brighter than all others, which then look equally dark."""
    assert {tissue: value for tissue, value in PRIORS[contrast].items() if not 0 <= value <= 1} == {}
