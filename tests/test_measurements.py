"""Tests of sizes and angles on columns with known measures: straight, tilted, and bent to an arc."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from totalspineseg_server.anatomy import CANAL, CODE_OF, CORD, NAME_OF, SACRUM, column
from totalspineseg_server.cli import main
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.measurements import COLUMN_ROW, COLUMNS, CORD_NOTE, measure, structure_rows

SHAPE = (36, 110, 230)
BODY_MM, DISC_MM, DEPTH_MM = 26.0, 9.0, 32.0
CANAL_RADIUS_MM, CORD_RADIUS_MM = 8.0, 4.5
FIRST = ("T12", "L1", "L2", "L3", "L4", "L5")


def draw(
    bend_mm: float = math.inf, *, tilt_deg: float = 0.0, wedge_deg: float = 0.0, lateral: float = 0.0
) -> np.ndarray:
    """A lumbar column at 1 mm whose middle line is an arc of radius ``bend_mm``, hollow to posterior. With
    ``wedge_deg``, the upper endplate of L2 is tilted by this angle, and its disc by the opposite one. With ``lateral``,
    the canal moves sideways by this many mm for each mm of height."""
    x, y, z = (a.astype(float) for a in np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij", sparse=True))
    # Sagittal position relative to the middle of the column, turned by the tilt.
    turn = math.radians(tilt_deg)
    dy, dz = y - 70.3, z - SHAPE[2] / 2
    dy, dz = dy * math.cos(turn) - dz * math.sin(turn), dy * math.sin(turn) + dz * math.cos(turn)
    if math.isinf(bend_mm):
        along, forward = dz + 0 * dy, dy + 0 * dz
    else:
        # Center of the arc lies behind the column; anterior is away from it.
        angle = np.arctan2(dz, bend_mm + dy)
        along, forward = bend_mm * angle, np.hypot(bend_mm + dy, dz) - bend_mm
    sideways = x - SHAPE[0] / 2 - 0.4 - lateral * dz
    labels = np.zeros(SHAPE, dtype=np.uint8)
    inside = (np.abs(forward) < DEPTH_MM / 2) & (np.abs(sideways) < 14)
    discs = dict(zip((NAME_OF[v] for v in column().vertebrae), column().discs, strict=True))
    top = len(FIRST) * (BODY_MM + DISC_MM) / 2
    for name in FIRST:
        slope = math.tan(math.radians(wedge_deg)) * forward if name == "L2" else 0.0
        labels[inside & (along <= top - slope) & (along > top - BODY_MM)] = CODE_OF[name]
        if name == "L1":
            slope = math.tan(math.radians(wedge_deg)) * forward
            labels[inside & (along <= top - BODY_MM) & (along > top - BODY_MM - DISC_MM - slope)] = discs[name] or 0
        else:
            labels[inside & (along <= top - BODY_MM) & (along > top - BODY_MM - DISC_MM)] = discs[name] or 0
        top -= BODY_MM + DISC_MM
    labels[inside & (along <= top)] = SACRUM
    back = forward + DEPTH_MM / 2 + CANAL_RADIUS_MM
    labels[(back**2 + sideways**2 <= CANAL_RADIUS_MM**2) & (along <= SHAPE[2])] = CANAL
    labels[back**2 + sideways**2 <= CORD_RADIUS_MM**2] = CORD
    return labels


def row(rows: list[dict[str, Any]], level: str) -> dict[str, Any]:
    return next(r for r in rows if r["level"] == level)


SHAPES = {
    "straight": {},
    "tilted": {"tilt_deg": 17.0},
    "tilted the other way": {"tilt_deg": -11.0},
    "bent": {"bend_mm": 250.0},
    "leaning sideways": {"lateral": 0.05},
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def measured(request: pytest.FixtureRequest) -> tuple[dict[str, float], list[dict[str, Any]]]:
    options = SHAPES[request.param]
    return options, measure(draw(**options), (1, 1, 1))


@pytest.mark.parametrize("level", ["L1-L2", "L2-L3", "L3-L4"])
def test_disc_heights(measured: tuple[dict[str, float], list[dict[str, Any]]], level: str) -> None:
    assert row(measured[1], level)["disc_height_mm"] == pytest.approx(DISC_MM, abs=0.6)


@pytest.mark.parametrize("level", ["L2", "L3", "L4"])
def test_body_heights(measured: tuple[dict[str, float], list[dict[str, Any]]], level: str) -> None:
    options, rows = measured
    # On an arc the height grows with the distance from its center; the zones lie 0.3 depths before and behind.
    stretch = 0.3 * DEPTH_MM / options.get("bend_mm", math.inf)
    found = row(rows, level)
    assert found["body_middle_mm"] == pytest.approx(BODY_MM, abs=0.6)
    assert found["body_anterior_mm"] == pytest.approx(BODY_MM * (1 + stretch), abs=0.8)
    assert found["body_posterior_mm"] == pytest.approx(BODY_MM * (1 - stretch), abs=0.8)


@pytest.mark.parametrize("level", ["L2-L3", "L3"])
def test_canal_and_cord(measured: tuple[dict[str, float], list[dict[str, Any]]], level: str) -> None:
    found = row(measured[1], level)
    assert found["canal_area_mm2"] == pytest.approx(math.pi * CANAL_RADIUS_MM**2, rel=0.04)
    assert found["cord_area_mm2"] == pytest.approx(math.pi * CORD_RADIUS_MM**2, rel=0.05)
    # Mean chord within 2.5 mm of the middle.
    assert found["canal_ap_mm"] == pytest.approx(2 * CANAL_RADIUS_MM, abs=0.7)
    assert found["note"] == CORD_NOTE


@pytest.mark.parametrize("bend_mm", [200.0, 300.0, math.inf], ids=str)
def test_lumbar_lordosis_is_the_angle_of_the_arc(bend_mm: float) -> None:
    rows = measure(draw(bend_mm), (1, 1, 1))
    # From the top of L1 to the bottom of the disc on the sacrum: five bodies and five discs.
    expected = math.degrees(5 * (BODY_MM + DISC_MM) / bend_mm)
    assert row(rows, COLUMN_ROW)["lumbar_lordosis_deg"] == pytest.approx(expected, abs=1.5)
    assert row(rows, COLUMN_ROW)["thoracic_kyphosis_deg"] is None


def test_thoracic_kyphosis_is_positive_where_the_column_is_hollow_to_anterior() -> None:
    """T4 .. T12 on an arc whose center lies in front."""
    bend = 300.0
    x, y, z = (
        a.astype(float) for a in np.meshgrid(*(np.arange(n) for n in (30, 110, 250)), indexing="ij", sparse=True)
    )
    dy, dz = y - 40, z - 125
    along = bend * np.arctan2(dz, bend - dy)
    forward = bend - np.hypot(bend - dy, dz)
    labels = np.zeros((30, 110, 250), dtype=np.uint8)
    level_mm, codes = 22.0, column()
    start = codes.vertebrae.index(CODE_OF["T3"])
    for k in range(11):
        top = 5.5 * level_mm - k * level_mm
        inside = (np.abs(forward) < 14) & (np.abs(x - 15.4) < 11)
        labels[inside & (along <= top) & (along > top - 17)] = codes.vertebrae[start + k]
        labels[inside & (along <= top - 17) & (along > top - level_mm)] = codes.discs[start + k] or 0
    labels[((forward + 22) ** 2 + (x - 15.4) ** 2 < 49) & (along < 120)] = CANAL
    found = row(measure(labels, (1, 1, 1)), COLUMN_ROW)
    assert found["thoracic_kyphosis_deg"] == pytest.approx(math.degrees((8 * level_mm + 17) / bend), abs=2)
    assert found["lumbar_lordosis_deg"] is None


@pytest.mark.parametrize("atlas", [False, True])
def test_cervical_lordosis_is_the_angle_of_the_arc(atlas: bool) -> None:
    """It was never measured, because C2 has no disc above it."""
    labels, neck = draw(250.0), np.arange(256, dtype=np.uint8)
    old = [CODE_OF[name] for name in FIRST]
    discs = dict(zip(column().vertebrae, column().discs, strict=True))
    for k, code in enumerate(old):
        new = CODE_OF[f"C{k + 2}"]
        neck[code], neck[discs[code] or 0] = new, discs[new] or 0
    neck[SACRUM] = CODE_OF["T1"]
    labels = neck[labels]
    if atlas:
        top = np.argwhere(labels == CODE_OF["C2"]).max(axis=0)
        labels[12:24, top[1] + 2 : top[1] + 8, top[2] - 6 : top[2] - 1] = CODE_OF["C1"]
    five_levels = math.degrees(5 * (BODY_MM + DISC_MM) / 250.0)
    assert row(measure(labels, (1, 1, 1)), COLUMN_ROW)["cervical_lordosis_deg"] == pytest.approx(five_levels, abs=2)


def test_wedge_angle_of_a_wedged_body() -> None:
    rows = measure(draw(wedge_deg=10.0), (1, 1, 1))
    assert row(rows, "L2")["wedge_deg"] == pytest.approx(10.0, abs=1.5)
    assert row(rows, "L2")["body_anterior_mm"] < row(rows, "L2")["body_posterior_mm"]
    assert row(rows, "L3")["wedge_deg"] == pytest.approx(0.0, abs=1.0)


def test_doubtful_levels_are_measured_in_rows_that_say_so() -> None:
    labels = draw(250.0)
    rows = measure(labels, (1, 1, 1), doubtful=(CODE_OF["L1"], CODE_OF["L3-L4"]), certainty="counted")
    without = measure(labels, (1, 1, 1))
    for level in ("L1", "L3-L4"):
        assert row(rows, level) == row(without, level) | {"names": "doubtful"}
    assert (row(rows, "L2")["names"], row(without, "L2")["names"]) == ("counted", None)
    assert row(rows, "L2")["body_middle_mm"] is not None


def test_an_angle_between_doubtful_levels_is_measured_and_marked() -> None:
    """The angles of nearly every real scan were empty, because a name was doubtful."""
    labels = draw(250.0)
    found = row(measure(labels, (1, 1, 1), doubtful=(CODE_OF["L1"],), certainty="counted"), COLUMN_ROW)
    known = row(measure(labels, (1, 1, 1), doubtful=(CODE_OF["L2"],), certainty="counted"), COLUMN_ROW)
    assert found["lumbar_lordosis_deg"] == known["lumbar_lordosis_deg"] is not None
    assert (found["names"], known["names"], known["note"]) == ("doubtful", "counted", None)
    assert "lumbar_lordosis_deg" in found["note"] and "L1" in found["note"]


SCAN = np.array([[0, 0, 4.0, -70], [-1, 0, 0, 110], [0, 1, 0, -900], [0, 0, 0, 1.0]])
"""A sagittal scan: slices of 4 mm from left to right, rows from anterior to posterior."""


def test_volume_place_and_intensity_of_every_structure() -> None:
    """A canal or a sacrum had no row, and nothing said where a structure is or how bright."""
    labels = draw()
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-18, 3, -900)
    picture = np.where(labels == CODE_OF["L3"], 70.0, 10.0)
    picture[labels == CODE_OF["L4"]] = np.arange((labels == CODE_OF["L4"]).sum())
    rows = structure_rows(
        Volume(labels, affine), Grid((110, 230, 9), SCAN), image=(Volume(picture, affine), labels), certainty="certain"
    )
    assert [r["level"] for r in rows][-5:] == ["L5-S", "sacrum", "canal", "cord", COLUMN_ROW]
    assert all(tuple(r) == COLUMNS for r in rows)
    assert [r["label"] for r in rows[-4:-1]] == [SACRUM, CANAL, CORD]
    l3, at = row(rows, "L3"), np.argwhere(labels == CODE_OF["L3"])
    assert l3["volume_ml"] == pytest.approx(len(at) / 1000, abs=0.005)
    middle = at.mean(axis=0) + affine[:3, 3]
    assert [l3[f"centroid_{axis}_mm"] for axis in "xyz"] == pytest.approx(middle, abs=0.01)
    back = SCAN @ [*(l3[f"centroid_{axis}_vox"] for axis in "ijk"), 1]
    assert back[:3] == pytest.approx(middle, abs=0.05)
    assert (l3["intensity_mean"], l3["intensity_sd"], row(rows, "cord")["intensity_median"]) == (70, 0, 10)
    l4 = row(rows, "L4")
    assert l4["intensity_p5"] < l4["intensity_median"] < l4["intensity_p95"]
    assert l4["intensity_mean"] == pytest.approx(l4["intensity_median"], abs=1)
    assert (l3["names"], row(rows, "cord")["names"]) == ("certain", None)
    assert row(rows, "L2-L3")["disc_height_mm"] == pytest.approx(DISC_MM, abs=0.6)


def test_structures_have_a_volume_where_no_size_can_be_measured() -> None:
    """Without a canal, or in an image that its header skews, there was no row at all."""
    labels = np.where(np.isin(draw(), (CANAL, CORD)), 0, draw())
    grid = Grid((1, 1, 1), np.eye(4))
    found = row(structure_rows(Volume(labels, np.eye(4)), grid), "L3")
    assert found["volume_ml"] > 10 and found["body_middle_mm"] is None and found["intensity_mean"] is None
    skewed = row(structure_rows(Volume(draw(), np.eye(4)), grid, sizes=False), "L3")
    assert skewed["volume_ml"] == found["volume_ml"] and skewed["body_middle_mm"] is None
    assert structure_rows(Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)), grid) == []


def test_cut_off_bodies_are_not_measured() -> None:
    """A vertebra at the border of the image was reported with half its height."""
    labels = draw()[:, :, :180]
    present = [level for level in FIRST if (labels == CODE_OF[level]).any()]
    rows = measure(labels, (1, 1, 1))
    assert row(rows, present[0])["body_middle_mm"] is None
    assert row(rows, "L4")["body_middle_mm"] is not None


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_the_side_of_the_image_cuts_is_not_measured(side: str) -> None:
    """In a narrow image beside the midline, discs came out as thin as 7 of 9 mm, and the canal with half its area."""
    labels = draw()
    cut = row(measure(np.ascontiguousarray(labels[18:] if side == "left" else labels[:19]), (1, 1, 1)), "L2-L3")
    assert {cut["disc_height_mm"], cut["canal_ap_mm"], cut["canal_area_mm2"], cut["cord_area_mm2"]} == {None}


def test_a_canal_cut_off_behind_is_not_measured() -> None:
    """Half a canal was measured as a canal of 10.8 mm instead of 15.8."""
    cut = row(measure(np.ascontiguousarray(draw()[:, 44:]), (1, 1, 1)), "L2-L3")
    assert (cut["canal_ap_mm"], cut["canal_area_mm2"], cut["cord_area_mm2"]) == (None, None, None)
    assert cut["disc_height_mm"] == pytest.approx(DISC_MM, abs=0.6)


@pytest.mark.parametrize("gap", [(120, 142), (122, 126), (110, 119)])
def test_a_canal_that_was_missed_at_a_level_has_no_size_there(gap: tuple[int, int]) -> None:
    """Beside a stretch without canal, an area of 81 instead of 202 mm2 was measured."""
    labels = draw()
    part = labels[:, :, slice(*gap)]
    part[np.isin(part, (CANAL, CORD))] = 0
    there = row(measure(labels, (1, 1, 1)), "L2-L3")
    assert (there["canal_ap_mm"], there["canal_area_mm2"], there["cord_area_mm2"]) == (None, None, None)
    assert there["disc_height_mm"] == pytest.approx(DISC_MM, abs=0.6)


def test_a_body_without_a_disc_above_is_not_measured() -> None:
    """A vertebra whose upper half the network missed was reported with half its height."""
    labels = draw()
    l1 = np.flatnonzero((labels == CODE_OF["L1"]).any(axis=(0, 1)))
    upper = labels[:, :, (l1[0] + l1[-1]) // 2 :]
    upper[upper > CANAL] = 0
    rows = measure(labels, (1, 1, 1))
    assert row(rows, "L1")["body_middle_mm"] is None
    assert row(rows, "L2")["body_middle_mm"] is not None


def test_two_fused_bodies_are_not_measured_as_one() -> None:
    """A block of L2 and L3, drawn as L2, was measured as a body of 52 mm."""
    labels = draw()
    labels[np.isin(labels, (CODE_OF["L2-L3"], CODE_OF["L3"]))] = CODE_OF["L2"]
    rows = measure(labels, (1, 1, 1))
    assert row(rows, "L2")["body_middle_mm"] is None
    assert row(rows, "L4")["body_middle_mm"] == pytest.approx(BODY_MM, abs=0.6)


def test_what_is_drawn_in_pieces_is_not_measured() -> None:
    """Two discs with one name were measured as a disc of 18 mm, and a false disc within a body added 3 mm to its
    height."""
    labels = draw()
    labels[labels == CODE_OF["L2-L3"]] = CODE_OF["L3-L4"]
    z = np.argwhere(labels == CODE_OF["L5"])[:, 2]
    part = labels[:, :, (z.min() + z.max()) // 2 - 1 :][:, :, :3]
    part[part == CODE_OF["L5"]] = CODE_OF["L4-L5"]
    rows = measure(labels, (1, 1, 1))
    for level, cell in (("L3-L4", "disc_height_mm"), ("L4-L5", "disc_height_mm"), ("L5", "body_middle_mm")):
        assert (row(rows, level)[cell], row(rows, level)["canal_area_mm2"]) == (None, None)
    assert row(rows, "L1-L2")["disc_height_mm"] == pytest.approx(DISC_MM, abs=0.6)


@pytest.mark.parametrize(("gap", "measured"), [(2, True), (3, False)])
def test_a_thin_gap_does_not_divide_a_body(gap: int, measured: bool) -> None:
    """A slice or two that a network left out within a body are not a border between bodies."""
    labels = draw()
    z = np.argwhere(labels == CODE_OF["L4"])[:, 2]
    middle = (z.min() + z.max()) // 2
    labels[:, :, middle : middle + gap][labels[:, :, middle : middle + gap] == CODE_OF["L4"]] = 0
    assert (row(measure(labels, (1, 1, 1)), "L4")["body_middle_mm"] is not None) is measured


def test_a_crumb_beside_a_disc_does_not_leave_it_unmeasured() -> None:
    labels = draw()
    x, _, z = np.argwhere(labels == CODE_OF["L3-L4"]).mean(axis=0).round().astype(int)
    front = np.argwhere(labels == CODE_OF["L3-L4"])[:, 1].max()
    labels[x, front + 4 : front + 6, z] = CODE_OF["L3-L4"]
    assert row(measure(labels, (1, 1, 1)), "L3-L4")["disc_height_mm"] == pytest.approx(DISC_MM, abs=0.6)


def test_rows_run_from_superior_to_inferior_and_have_all_columns() -> None:
    rows = measure(draw(), (1, 1, 1))
    levels = [r["level"] for r in rows]
    assert levels[:4] == ["T12", "T12-L1", "L1", "L1-L2"]
    assert levels[-2:] == ["L5-S", COLUMN_ROW]
    assert all(tuple(r) == COLUMNS for r in rows)


def test_spacing_counts() -> None:
    """Voxels with a height of 2 mm halved every height."""
    rows = measure(np.ascontiguousarray(draw()[:, :, ::2]), (1, 1, 2))
    assert row(rows, "L3")["body_middle_mm"] == pytest.approx(BODY_MM, abs=1.0)
    assert row(rows, "L2-L3")["canal_area_mm2"] == pytest.approx(math.pi * CANAL_RADIUS_MM**2, rel=0.06)


@pytest.mark.parametrize("code", [0, SACRUM, CANAL], ids=["empty", "sacrum only", "canal only"])
def test_nothing_to_measure(code: int) -> None:
    labels = np.zeros((20, 20, 30), dtype=np.uint8)
    labels[5:15, 5:15, 5:25] = code
    assert measure(labels, (1, 1, 1)) == []


def test_the_argument_is_not_modified() -> None:
    labels = draw()
    before = labels.copy()
    measure(labels, (1, 1, 1))
    np.testing.assert_array_equal(labels, before)


def test_other_label_maps_are_measured_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label that a reader corrected could not be measured."""
    labels = np.ascontiguousarray(draw()[:, ::2, ::2])
    grid = Grid(labels.shape, np.diag([1.0, 2.0, 2.0, 1.0]))
    for folder, data in (("maps", labels), ("images", np.where(labels == CODE_OF["L3"], 70, 10).astype(np.int16))):
        (tmp_path / folder).mkdir()
        write_volume(tmp_path / folder / "a.nii.gz", data, grid)
    write_volume(tmp_path / "maps" / "b.nii.gz", labels, grid)
    maps, out = str(tmp_path / "maps"), tmp_path / "out.json"
    assert main(["measure", maps, str(out), "--image", str(tmp_path / "images")]) == 1
    assert "'b'" in capsys.readouterr().err
    found = row(json.loads(out.read_text(encoding="utf-8")), "L3")
    assert (found["scan"], found["intensity_mean"], found["names"]) == ("a", 70, None)
    assert found["body_middle_mm"] == pytest.approx(BODY_MM, abs=2)
    assert main(["measure", maps, str(tmp_path / "out.csv")]) == 0
    table = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert {r["scan"] for r in table} == {"a", "b"}
    assert main(["measure", maps, str(tmp_path / "out.xlsx")]) == 2
