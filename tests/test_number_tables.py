"""Tests of label maps in other programs' numbers, and of the color tables of viewers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import columns
from phantom import image_of
from totalspineseg_server.anatomy import (
    BACKGROUND,
    CANAL,
    CODE_OF,
    CORD,
    DISCS,
    L6,
    NAME_OF,
    NUMBER_TABLES,
    STRUCTURES,
    T13,
    UNREVIEWED,
    VERTEBRAE,
    Kind,
)
from totalspineseg_server.cli import main
from totalspineseg_server.cli.prepare import labeled_scans
from totalspineseg_server.color_tables import color_tables
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import read_labels, read_numbered, write_volume

GOLDEN = Path(__file__).parent / "golden" / "lower_lumbar_clean"


def numbered(codes: np.ndarray, table: str) -> np.ndarray:
    """Return a map of codes in another program's numbers; what the table lacks is background."""
    own = NUMBER_TABLES[table]
    back = {code: number for number, code in own.codes.items()}
    usual = [n for n in (*back.values(), *own.disc_below) if own.codes.get(n) not in (T13, L6) and n < 125]
    back |= {code: number for number, code in own.codes_of(usual).items() if code in DISCS}
    lookup = np.zeros(256, dtype=np.int16)
    for code, number in back.items():
        lookup[code] = number
    return lookup[codes]


@pytest.mark.parametrize(
    ("table", "number", "name"),
    [
        ("totalsegmentator", 27, "L5"),
        ("totalsegmentator", 31, "L1"),
        ("totalsegmentator", 43, "T1"),
        ("totalsegmentator", 50, "C1"),
        ("totalsegmentator", 26, "sacrum"),
        ("totalsegmentator", 79, "cord"),
        ("totalsegmentator-mr", 1, "sacrum"),
        ("totalsegmentator-mr", 2, "L5"),
        ("totalsegmentator-mr", 25, "C1"),
        ("spineps", 1, "C1"),
        ("spineps", 20, "L1"),
        ("spineps", 28, "T13"),
        ("spineps", 102, "C2-C3"),
        ("spineps", 120, "L1-L2"),
        ("spineps", 124, "L5-S"),
        ("verse", 19, "T12"),
        ("verse", 25, "L6"),
    ],
)
def test_the_published_numbers(table: str, number: int, name: str) -> None:
    assert NAME_OF[NUMBER_TABLES[table].codes_of([number])[number]] == name


@pytest.mark.parametrize(
    ("table", "known", "unknown"),
    [
        ("totalsegmentator", (1, 24, 51, 78, 80, 117), (0, 118)),
        ("totalsegmentator-mr", (), (0, 26)),
        ("spineps", (27, 62, 126, 201, 228), (0, 29, 59, 63, 127, 200, 229)),
        ("verse", (27,), (0, 29)),
    ],
)
def test_what_the_programs_find_beside_the_spine_is_background(
    table: str, known: tuple[int, ...], unknown: tuple[int, ...]
) -> None:
    assert NUMBER_TABLES[table].codes_of([*known, *unknown]) == dict.fromkeys(known, BACKGROUND)


@pytest.mark.parametrize(
    ("present", "disc", "name"),
    [
        ((19, 28, 20), 119, "T12-T13"),
        ((19, 28, 20), 128, "T12-L1"),
        ((18, 20), 118, "T12-L1"),
        ((24, 25, 26), 124, "L5-L6"),
        ((24, 25, 26), 125, "L5-S"),
        ((22, 23, 26), 123, "L5-S"),
    ],
)
def test_discs_beside_extra_and_missing_vertebrae(present: tuple[int, ...], disc: int, name: str) -> None:
    """The disc below L5 was the one on the sacrum although an L6 was drawn."""
    assert NAME_OF[NUMBER_TABLES["spineps"].codes_of([*present, disc])[disc]] == name


def test_a_map_in_other_numbers_is_read_as_codes(tmp_path: Path) -> None:
    codes = read_labels(GOLDEN / "step2_output.nii.gz")
    volume = codes.data.copy()
    other = numbered(volume, "spineps")
    other[0, 0, 0] = 220
    write_volume(tmp_path / "vert.nii.gz", other, codes.grid)
    found = read_numbered(tmp_path / "vert.nii.gz", "spineps")
    np.testing.assert_array_equal(found.data, volume)
    np.testing.assert_allclose(found.affine, codes.affine, atol=1e-4)


def test_organs_of_totalsegmentator_become_background(tmp_path: Path) -> None:
    data = np.zeros((4, 4, 4), dtype=np.uint8)
    data[0, 0, :3] = (5, 29, 117)
    write_volume(tmp_path / "total.nii.gz", data, Grid((4, 4, 4), np.eye(4)))
    found = read_numbered(tmp_path / "total.nii.gz", "totalsegmentator").data
    assert found[0, 0].tolist() == [BACKGROUND, CODE_OF["L3"], BACKGROUND, BACKGROUND]


def test_lint_reads_other_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VerSe's L2 to L5 have the numbers of T1 to T4 here, and such a map had no finding."""
    case = columns.built(1, fov="lumbar", spacing=2.0)[0]
    write_volume(
        tmp_path / "a.nii.gz", numbered(case.truth, "spineps"), Grid(case.truth.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    )
    assert main(["lint", str(tmp_path / "a.nii.gz"), "--numbers", "spineps"]) == 0
    assert "spineps: T10 to sacrum" in capsys.readouterr().err
    assert main(["lint", str(tmp_path / "a.nii.gz"), "--numbers", "totalsegmentator-mr"]) == 2
    message = capsys.readouterr().err
    assert "spineps" not in message and "totalsegmentator-mr" in message


def test_a_localizer_in_other_numbers_names_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    localizer = read_labels(GOLDEN / "step2_output.nii.gz")
    mr = numbered(localizer.data, "totalsegmentator-mr")
    write_volume(tmp_path / "loc.nii.gz", mr, localizer.grid)
    words = [
        "label",
        str(GOLDEN / "step2_raw.nii.gz"),
        str(tmp_path / "out.nii.gz"),
        "--loc",
        str(tmp_path / "loc.nii.gz"),
    ]
    assert main(words) == 2
    assert "--numbers" in capsys.readouterr().err
    report = tmp_path / "out.json"
    assert main([*words, "--numbers", "totalsegmentator-mr", "--report", str(report)]) == 0
    words[-1] = str(GOLDEN / "step2_output.nii.gz")
    words[2] = str(tmp_path / "own.nii.gz")
    assert main(words) == 0
    own = read_labels(tmp_path / "own.nii.gz").data
    np.testing.assert_array_equal(read_labels(tmp_path / "out.nii.gz").data, own)
    assert json.loads(report.read_text(encoding="utf-8"))["certainty"] == "certain"


def test_from_labels_without_a_canal_no_network_learns_that_there_is_none(tmp_path: Path) -> None:
    """A vertebra mask of another program says nothing about the canal."""
    codes = read_labels(GOLDEN / "step2_output.nii.gz")
    mask = numbered(np.where(np.isin(codes.data, (CANAL, CORD)), BACKGROUND, codes.data), "spineps")
    for part, name, data in (
        ("sub-1/anat", "sub-1_T2w", image_of(codes.data).astype(np.int16)),
        ("derivatives/x/sub-1/anat", "sub-1_T2w_seg-vert_msk", mask),
    ):
        (tmp_path / part).mkdir(parents=True)
        write_volume(tmp_path / part / f"{name}.nii.gz", data, codes.grid)
    (source,), _ = labeled_scans(tmp_path, "_seg-vert_msk", "spineps")
    label = source.read().codes.data
    assert set(np.unique(label[codes.data == CANAL])) == {UNREVIEWED}
    bones = np.isin(codes.data, VERTEBRAE)
    np.testing.assert_array_equal(label[bones], codes.data[bones])


def test_color_tables_name_every_structure_in_its_viewers_format() -> None:
    tables = color_tables()
    slicer = [line.split() for line in tables["totalspineseg.ctbl"].splitlines() if not line.startswith("#")]
    assert [(int(row[0]), row[1]) for row in slicer[1:]] == [(s.code, s.name) for s in STRUCTURES]
    assert all(len(row) == 6 and all(0 <= int(part) <= 255 for part in row[2:]) for row in slicer)
    itksnap = tables["totalspineseg_itksnap.txt"].splitlines()[2]
    assert itksnap.split()[0] == str(STRUCTURES[0].code) and itksnap.endswith(f'"{STRUCTURES[0].name}"')
    lut = [line.split() for line in tables["totalspineseg.lut"].splitlines()]
    assert all(len(row) == 5 and all(0 <= float(part) <= 1 for part in row[1:4]) for row in lut)
    assert json.loads(tables["totalspineseg_sct.json"])[str(CODE_OF["L4-L5"])] == "L4-L5"
    rows = list(csv.DictReader(tables["dseg.tsv"].splitlines(), delimiter="\t"))
    assert {int(row["index"]): row["name"] for row in rows} == {BACKGROUND: "background", **NAME_OF}
    assert len({row["color"] for row in rows}) == len(rows)
    assert {s.kind for s in STRUCTURES} == set(Kind)
