"""Tests of the reader's loop with 3D Slicer's own import and export and a running server; see ``slicer_desk``.

What the server keeps is compared with what the reader drew, point by point in the patient.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import monailabel.client.client
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import requests
from mr_object import mr_slices
from nibabel import orientations

from pacs_serving import wait_for
from phantom import image_of, lumbar_codes
from serving import Server, running_server
from totalspineseg_server.anatomy import CANAL, CODE_OF, NAME_OF
from totalspineseg_server.corrections.correction_store import CODES_FILE, CorrectionStore
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.io.dicom.headers import uid_from
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume
from totalspineseg_server.segments import code_of_name, with_mark

pytestmark = pytest.mark.slicer

ROOT: Final = Path(__file__).resolve().parents[1]
SLICER: Final = ROOT / ".venv-slicer" / "bin" / "python"
SECONDS: Final = 120
PAINTED: Final = [[4, 4, 4], [8, 9, 10]]
"""A box of voxels outside the column, whatever the index order."""
UPPER: Final = [CODE_OF[name] for name in ("T12", "T12-L1", "L1")]


@dataclass(frozen=True)
class Sitting:
    """What a reader saw and did.

    Attributes:
        report: Rows and answers; see ``slicer_desk``.
        drawn: Segment name -> its voxels, in the index order of 3D Slicer.
        affine: The affine of the volume in 3D Slicer.
    """

    report: dict[str, Any]
    painted: dict[str, npt.NDArray[np.bool_]]
    affine: npt.NDArray[np.float64]

    @property
    def answer(self) -> dict[str, Any]:
        assert "refused" not in self.report, self.report["refused"]
        return dict(self.report["answer"])

    @property
    def colors(self) -> dict[str, int]:
        """Return segment name -> number of its color, in the order of the rows."""
        return {row["name"]: row["color"] for row in self.report["rows"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("slicer")) as running:
        yield running


def sit_down(server: Server, folder: Path, **work: Any) -> Sitting:
    """Let a reader do some work in 3D Slicer."""
    desk = folder / "desk"
    desk.mkdir()
    files = [folder / name for name in ("work.json", "report.json", "scene.npz")]
    client = monailabel.client.client.__file__
    files[0].write_text(
        json.dumps({"url": server.url, "client": client, "user": "r", "folder": str(desk), **work}), encoding="utf-8"
    )
    command = [str(SLICER), str(ROOT / "tests" / "slicer_desk.py"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(files[2]) as scene:
        arrays = dict(scene)
    painted = {name.removeprefix("segment "): data for name, data in arrays.items() if name != "affine"}
    return Sitting(json.loads(files[1].read_text(encoding="utf-8")), painted, arrays["affine"])


def turned(codes: str, spacing: tuple[float, float, float] = (1, 1, 1), degrees: float = 0) -> Volume:
    """Return the phantom with a given order of axes, voxel size in mm, and rotation of the patient in degrees."""
    data = image_of(lumbar_codes())[:: int(spacing[0]), :: int(spacing[1]), :: int(spacing[2])]
    angle = np.radians(degrees)
    turn = nib.affines.from_matvec(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], [-20.5, 13.25, 300.125]
    )
    order = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    affine = turn @ np.diag([*spacing, 1.0]) @ orientations.inv_ornt_aff(order, data.shape)
    return Volume(np.ascontiguousarray(orientations.apply_orientation(data, order)), affine)


def stored_codes(server: Server, answer: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the codes that the server stored for a submission."""
    store = CorrectionStore(server.studies / ".totalspineseg")
    correction = store.latest_accepted(answer["image"])
    assert correction is not None
    assert correction.id == answer["correction"]
    return read_labels(store.path(correction) / CODES_FILE).data


def expected(sitting: Sitting, image: Grid) -> npt.NDArray[np.uint8]:
    """Return what the reader drew, on the grid of the image; where two segments overlap, the later kind."""
    names = (sitting.answer["renumbered"] or {"names": {}})["names"]
    index = np.indices(image.shape).reshape(3, -1)
    mapping = np.linalg.inv(sitting.affine) @ image.affine
    found = mapping[:3, :3] @ index + mapping[:3, 3:]
    place = np.rint(found).astype(int)
    assert np.abs(found - place).max() < 0.25
    codes = np.zeros(image.shape, dtype=np.uint8)
    for name, data in sitting.painted.items():
        code = code_of_name(names.get(name, name))
        assert code is not None
        there = data[tuple(place)].reshape(image.shape)
        codes[there & ((codes == 0) | (code == CANAL))] = code
    return codes


GEOMETRIES: Final = {
    "right-handed": turned("RAS"),
    "left-handed": turned("LAS"),
    "sagittal, right-handed": turned("PIR"),
    "sagittal, left-handed": turned("PSR"),
    "slices first": turned("IPR"),
    "axes permuted": turned("SLA"),
    "oblique": turned("LPS", degrees=17),
    "oblique, left-handed": turned("PSR", degrees=-23),
    "anisotropic": turned("LIP", spacing=(4, 1, 1)),
}


WORK: Final = {"paint": {"L3": PAINTED}, "erase": {"L1": PAINTED}, "rename": {"L5": "L6"}}
ENDINGS: Final = [(name, ".nii.gz") for name in GEOMETRIES] + [(name, ".nrrd") for name in list(GEOMETRIES)[:2]]


def offered(server: Server, image: Volume, name: str, ending: str = ".nii.gz") -> Grid:
    """Put an image into the studies, another one for each name; return its grid as the server reads it."""
    file = server.studies / f"{name}{ending}"
    write_volume(file, image.data + np.float32(int.from_bytes(name.encode()) % 997 / 4096), image.grid)
    return read_image(file).grid


@pytest.mark.parametrize(("geometry", "ending"), ENDINGS)
def test_a_correction_is_kept_voxel_for_voxel(server: Server, tmp_path: Path, geometry: str, ending: str) -> None:
    """3D Slicer reverses the slices of left-handed images when it loads them, and each submission was refused."""
    name = f"{geometry.replace(', ', '-').replace(' ', '-')}{ending.replace('.', '-')}"
    grid = offered(server, GEOMETRIES[geometry], name, ending)
    sitting = sit_down(server, tmp_path, wanted=name, **WORK)
    codes = stored_codes(server, sitting.answer)
    np.testing.assert_array_equal(codes, expected(sitting, grid))
    assert sitting.answer["renumbered"]["names"]["L4"] == "L5"
    assert (codes == CODE_OF["L6"]).any()
    assert sitting.answer["image"] == name


def four_digits(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosines with four digits, as some converters write them."""
    return np.vstack([np.column_stack([np.round(affine[:3, :3], 4), affine[:3, 3]]), affine[3]])


@pytest.mark.parametrize("unlike", ["four digits", "two forms"])
def test_what_rounding_did_to_a_header_costs_no_submission(server: Server, tmp_path: Path, unlike: str) -> None:
    """ITK turns the header's directions into a rotation, and the label came back 0.02 to 0.25 mm beside the image."""
    image, name = turned("RAS", degrees=13), unlike.replace(" ", "-")
    nifti = nib.Nifti1Image(image.data + np.float32(len(name) / 512), image.affine)
    form = four_digits(image.affine)
    if unlike == "two forms":
        form[0, 2] += 0.9e-3
    nifti.set_sform(form, code=2 if unlike == "two forms" else 1)
    nifti.set_qform(image.affine if unlike == "two forms" else form, code=1)
    nib.save(nifti, server.studies / f"{name}.nii.gz")
    sitting = sit_down(server, tmp_path, wanted=name, **WORK)
    np.testing.assert_array_equal(
        stored_codes(server, sitting.answer), expected(sitting, read_image(server.studies / f"{name}.nii.gz").grid)
    )


@pytest.mark.parametrize("session", [False, True], ids=["Upload Volume", "Submit Label"])
@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_a_dicom_series_is_uploaded_and_corrected(server: Server, tmp_path: Path, ending: str, session: bool) -> None:
    """The volume has the name of its series, and its file may have the ending of the reader's segmentations."""
    image = turned("PIR", degrees=9)
    pixels = np.rint(image.data) + (3 if session else 0) + (ending == ".nii.gz")
    tags = {"PatientName": "SYNTHETIC", "StudyInstanceUID": uid_from("s"), "SeriesInstanceUID": uid_from("e")}
    folder = tmp_path / "series"
    folder.mkdir()
    files = []
    for number, item in enumerate(mr_slices(pixels, image.affine, [uid_from(str(k)) for k in range(48)], tags)):
        files.append(str(folder / f"{number:03d}.dcm"))
        item.save_as(files[-1], write_like_original=False)
    name = f"5: t2_tse_sag {ending} {session}"
    sitting = sit_down(server, tmp_path, files=files, name=name, session=session, ending=ending, **WORK)
    assert sitting.answer["image"] == name
    codes = stored_codes(server, sitting.answer)
    np.testing.assert_array_equal(codes, expected(sitting, uploaded(server, name).grid))
    assert (codes == CODE_OF["L6"]).any()


def uploaded(server: Server, name: str) -> Volume:
    [file] = [path for path in server.studies.iterdir() if unquote(path.name).startswith(f"{name}.")]
    return read_image(file)


def test_overlapping_segments_are_kept(server: Server, tmp_path: Path) -> None:
    """With *Allow Overlapping Segmentations* the segmentation is sent, and the canal stays where a vertebra overlaps
    it."""
    grid = offered(server, GEOMETRIES["sagittal, left-handed"], "overlapping")
    inside = [[30, 100, 20], [36, 106, 26]]
    sitting = sit_down(
        server, tmp_path, wanted="overlapping", ending=".seg.nrrd", paint={"canal": inside}, rename={"L5": "L6"}
    )
    codes = stored_codes(server, sitting.answer)
    np.testing.assert_array_equal(codes, expected(sitting, grid))
    claimed = sum(data.astype(int) for data in sitting.painted.values())
    assert sitting.answer["overlap_voxels"] == (claimed > 1).sum() > 0


def without_landmarks() -> Volume:
    """A few levels of the phantom, whose names are doubtful."""
    whole = GEOMETRIES["left-handed"]
    middle = [CODE_OF[name] for name in ("L2", "L3", "L2-L3", "L3-L4", "cord", "canal")]
    return Volume(np.where(np.isin(np.rint(whole.data / 10), middle), whole.data, 0), whole.affine)


def test_doubt_is_visible_in_the_rows_and_confirmed_names_are_recorded(server: Server, tmp_path: Path) -> None:
    """Doubt was printed to the console of 3D Slicer, which no reader opens."""
    grid = offered(server, without_landmarks(), "marked")
    sitting = sit_down(server, tmp_path, wanted="marked", rename={"L1 ?": "L1"})
    marked = ["L1 ?", "L1-L2 ?", "L2 ?", "L2-L3 ?"]
    assert [row["name"] for row in sitting.report["predicted"]] == ["canal", "cord", *marked]
    np.testing.assert_array_equal(stored_codes(server, sitting.answer), expected(sitting, grid))
    stored = CorrectionStore(server.studies / ".totalspineseg").latest_accepted("marked")
    assert stored is not None
    assert {with_mark(NAME_OF[code]) for code in stored.unconfirmed} == set(marked[1:])
    assert CODE_OF["L1"] in stored.renamed
    assert "marked as doubtful" in sitting.answer["message"]


def test_a_level_is_pinned_by_what_it_was_called_and_no_marked_row_keeps_its_voxels(
    server: Server, tmp_path: Path
) -> None:
    """In 3D Slicer's options a pin needed coordinates; and "L2 ?" stayed below the "L2" of the next result."""
    grid = offered(server, without_landmarks(), "pinned-by-name")
    pinned = ["totalspineseg", {"pin": "L1-L2 -> L2-L3"}]
    sitting = sit_down(server, tmp_path, wanted="pinned-by-name", runs=[["totalspineseg", {}], pinned, pinned])
    rows = {row["name"]: row["voxels"] for row in sitting.report["predicted"]}
    assert {name for name, voxels in rows.items() if voxels} == {"canal", "cord", "L2", "L2-L3", "L3", "L3-L4"}
    assert {"L1 ?", "L2 ?"} < set(rows), "listed to be cleared"
    np.testing.assert_array_equal(stored_codes(server, sitting.answer), expected(sitting, grid))


def test_marks_of_the_review_are_removed_before_submit(server: Server, tmp_path: Path) -> None:
    runs = [["totalspineseg", {}], ["totalspineseg_review", {}]]
    grid = offered(server, without_landmarks(), "reviewed")
    (tmp_path / "first").mkdir()
    refused = sit_down(server, tmp_path / "first", wanted="reviewed", runs=runs)
    marks = [row["name"] for row in refused.report["rows"] if row["name"].startswith("review")]
    assert any(row["voxels"] for row in refused.report["rows"] if row["name"] in marks)
    assert "422" in refused.report["refused"]
    assert marks[0] in refused.report["refused"]
    sitting = sit_down(server, tmp_path, wanted="reviewed", runs=runs, remove=marks)
    np.testing.assert_array_equal(stored_codes(server, sitting.answer), expected(sitting, grid))


COLUMN: Final = ("L5-S", "L5", "L4-L5", "L4", "L3-L4", "L3", "L2-L3", "L2", "L1-L2", "L1", "T12-L1", "T12")


def test_the_scene_has_a_row_for_what_was_found_and_its_color_is_always_the_same(
    server: Server, tmp_path: Path
) -> None:
    """Every scene had 54 rows, most of them empty."""
    whole = turned("LAS")
    below_l1 = Volume(np.where(np.isin(np.rint(whole.data / 10), UPPER), 0, whole.data), whole.affine)
    sittings = []
    for name, image in (("whole", whole), ("below-l1", below_l1)):
        offered(server, image, f"rows-{name}")
        (tmp_path / name).mkdir()
        sittings.append(sit_down(server, tmp_path / name, wanted=f"rows-{name}"))
    before, after = (sittings[0].report[when] for when in ("at_first", "predicted"))
    assert [row["name"] for row in before] == ["canal", "cord"]
    assert [row["name"] for row in after] == ["canal", "cord", "sacrum", *COLUMN]
    assert all(row["voxels"] for row in after)
    assert len(set(sittings[0].colors.values())) == len(after)
    assert set(sittings[0].colors) - set(sittings[1].colors) == {NAME_OF[code] for code in UPPER}
    assert sittings[1].colors.items() <= sittings[0].colors.items()


def test_a_saved_result_has_rows_for_what_was_found(server: Server, tmp_path: Path) -> None:
    """A saved result that was loaded with the next sample had 54 rows."""
    grid = offered(server, turned("LAS"), "saved")
    settings = {"params": json.dumps({"save_label": True, "result_extension": ".nii.gz"})}
    run = {"url": f"{server.url}/infer/totalspineseg", "params": {"image": "saved"}, "data": settings}
    wait_for(lambda: requests.post(**run, timeout=SECONDS).status_code == 200)
    sitting = sit_down(server, tmp_path, wanted="saved", runs=[], **WORK)
    rows = sitting.report["at_first"]
    assert [row["name"] for row in rows] == ["canal", "cord", "sacrum", *COLUMN]
    assert all(row["voxels"] for row in rows)
    np.testing.assert_array_equal(stored_codes(server, sitting.answer), expected(sitting, grid))


def test_a_second_result_leaves_nothing_of_the_first(server: Server, tmp_path: Path) -> None:
    """The voxels of a level that is not listed again stay in the scene and are submitted over those of the second
    result."""
    image = GEOMETRIES["left-handed"]
    grid = offered(server, image, "twice")
    x, y, z = nib.affines.apply_affine(image.affine, np.argwhere(np.rint(image.data / 10) == CODE_OF["L5"]).mean(0))
    runs = [["totalspineseg", {}], ["totalspineseg", {"pin": f"L6 {x} {y} {z}"}]]
    sitting = sit_down(server, tmp_path, wanted="twice", runs=runs)
    left = {row["name"]: row["voxels"] for row in sitting.report["rows"]}
    assert left["T12"] == 0, "L1 now"
    codes = stored_codes(server, sitting.answer)
    np.testing.assert_array_equal(codes, expected(sitting, grid))
    truth = np.rint(image.data / 10)
    for name, now in {"L5": "L6", "L4": "L5", "L1": "L2", "T12": "L1"}.items():
        assert (codes[truth == CODE_OF[name]] == CODE_OF[now]).all()
