"""Tests of runs over folders, with networks that read the image's brightness."""

import base64
import csv
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from highdicom.sr import srread
from nibabel.affines import apply_affine

from dicom_series import SAGITTAL, itk_slices, placed, save, slices
from phantom import CodeReader, image_of, lumbar_codes
from totalspineseg_server import pipeline
from totalspineseg_server.anatomy import CODE_OF, DISC_L5_S, SACRUM
from totalspineseg_server.cohort.documents import write_documents
from totalspineseg_server.cohort.inputs import Case, find_cases, pair_localizers
from totalspineseg_server.cohort.interchange import write_bids, write_segs
from totalspineseg_server.cohort.outputs import FOLDERS, _stored_image
from totalspineseg_server.cohort.overlap import overlapped, sentence
from totalspineseg_server.cohort.running import LocalExecutor, Progress, Summary
from totalspineseg_server.cohort.running import run as run_cases
from totalspineseg_server.cohort.work import RunOptions, Work
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.errors import ImageError, StorageError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume
from totalspineseg_server.numbering.alignment import ELSEWHERE
from totalspineseg_server.numbering.evidence import Pin
from totalspineseg_server.numbering.report import doubtful_codes
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.version import VERSION

pytestmark = pytest.mark.slow

AFFINE = np.array([[0, 0, 1.0, -20], [-1, 0, 0, 60], [0, 1, 0, -100], [0, 0, 0, 1.0]])
"""Array axes P, S, R: not the axes of the networks."""


class Readers:
    """Networks that count how often they are used."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def get(self, step: int) -> CodeReader:
        self.calls.append(step)
        return CodeReader(step)


class NothingSeen(CodeReader):
    """A network that sees only background."""

    def predict(self, channels: Any, *, soft: Any = ()) -> Prediction:
        return super().predict(np.zeros_like(channels), soft=soft)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """The codes of the phantom with P, S, R axes."""
    return np.ascontiguousarray(lumbar_codes().transpose(1, 2, 0)[::-1])


@pytest.fixture(scope="module")
def few(codes: np.ndarray) -> np.ndarray:
    """Return the lower half of the phantom, for tests that run several times."""
    return np.ascontiguousarray(codes[:, :125])


def write_scan(path: Path, codes: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y, z = codes.shape
    write_volume(path, image_of(codes).astype(np.int16), Grid((x, y, z), AFFINE))
    return path


def translated(affine: np.ndarray, mm: float) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += mm
    return moved


def do(
    output: Path,
    cases: Sequence[Case],
    networks: Any,
    options: RunOptions,
    versions: Any = (),
    *,
    overwrite: bool = False,
) -> Summary:
    work = Work(output, options, dict(versions))
    return run_cases(work, cases, LocalExecutor(work, lambda: networks, workers=2), overwrite=overwrite)


def run(source: Path, output: Path, networks: Any = None, *, overwrite: bool = False, **options: Any) -> Summary:
    cases = find_cases(source)
    versions = {"step1": "reader-1", "step2": "reader-2"}
    summary = do(output, cases, networks or Readers(), RunOptions(**options), versions, overwrite=overwrite)
    weights = "Weights in use: reader."
    write_documents(output, cases, summary, versions=versions, weights=weights, warning="", asked={"iso": False})
    return summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, codes: np.ndarray) -> Path:
    """The output of a run over a good scan, a bad one, and a good one whose name has dots and spaces."""
    folder = tmp_path_factory.mktemp("run")
    write_scan(folder / "in" / "a.nii.gz", codes)
    (folder / "in" / "b.nii.gz").write_bytes(b"\x1f\x8b broken")
    write_scan(folder / "in" / "sub 01.v2 T2w.nrrd", codes)
    x, y, z = apply_affine(AFFINE, np.argwhere(codes == CODE_OF["L3"]).mean(axis=0)).tolist()
    # What is measured is certain of its level.
    summary = run(folder / "in", folder / "out", pins=(Pin(CODE_OF["L3"], (x, y, z)),))
    assert set(summary.failures) == {"b"}
    return folder / "out"


def test_a_report_warns_of_nothing_where_the_names_are_certain(finished: Path) -> None:
    """Every row had the warning that its names are certain."""
    page = (finished / "report.html").read_text(encoding="utf-8")
    about = [part.split("</div>")[0] for part in page.split('<div class="about">')[1:]]
    certain = [part for part in about if "The names are certain." in part]
    assert len(certain) == 2
    assert not any("<li>" in part for part in certain)


@pytest.mark.parametrize("name", ["a", "sub 01.v2 T2w"])
def test_results_lie_in_the_grid_of_the_input(finished: Path, codes: np.ndarray, name: str) -> None:
    image = read_image(finished.parent / "in" / ("a.nii.gz" if name == "a" else f"{name}.nrrd"))
    for folder in FOLDERS[2:]:
        volume = read_image(finished / folder / f"{name}.nii.gz")
        assert volume.data.shape == codes.shape
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)
    assert read_image(finished / "input" / f"{name}.nii.gz").grid.orientation == "RAS"
    np.testing.assert_array_equal(read_labels(finished / "step2_output" / f"{name}.nii.gz").data, codes)


def test_one_bad_scan_does_not_stop_the_rest(finished: Path) -> None:
    document = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    assert document["done"] == ["a", "sub 01.v2 T2w"]
    assert "is damaged or incomplete" in document["failed"]["b"]
    assert document["models"] == {"step1": "reader-1", "step2": "reader-2"}
    assert document["versions"]["numpy"] == np.__version__


def test_previews_of_every_step_with_and_without_tags(finished: Path) -> None:
    kinds = ("input", "step1_raw", "step1_output", "levels", "step2_raw", "step2_output")
    expected = {f"a_{kind}{tags}.jpg" for kind in kinds for tags in ("", "_tags")} | {"a_coronal_tags.jpg"}
    assert {p.name for p in (finished / "preview").glob("a_*")} == expected


def test_the_record_lists_the_levels(finished: Path) -> None:
    record = json.loads((finished / "reports" / "a.json").read_text(encoding="utf-8"))
    names = [level["name"] for level in record["levels"]]
    assert record["probability"] > 0.9
    assert names.index("T12-L1") < names.index("L5") < names.index("L5-S")
    assert record["in_view"] == "T12 - sacrum"
    assert record["seconds"]["read"] >= 0


def test_measurements_table_has_every_scan(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "measurements.csv").read_text(encoding="utf-8").splitlines()))
    heights = {row["scan"]: float(row["disc_height_mm"]) for row in rows if row["level"] == "L3-L4"}
    assert heights == pytest.approx({"a": 10.0, "sub 01.v2 T2w": 10.0}, abs=0.2)


def test_report_needs_no_other_file(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    pictures = page.split("data:image/webp;base64,")[1:]
    assert len(pictures) >= 2
    assert base64.b64decode(pictures[0].split('"')[0])[:4] == b"RIFF"
    assert "T12 - sacrum" in page
    assert "is damaged or incomplete" in page
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert "src=" not in page.replace('src="data:', "")


def test_finished_scans_are_skipped_and_missing_files_made_again(tmp_path: Path, few: np.ndarray) -> None:
    """A second run did everything again, or did not restore a deleted result."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    write_scan(tmp_path / "in" / "b.nii.gz", few)
    keep = ("step2_output",)
    run(tmp_path / "in", tmp_path / "out", keep=keep)
    second = Readers()
    assert run(tmp_path / "in", tmp_path / "out", second, keep=keep).skipped == ("a", "b")
    assert second.calls == []
    (tmp_path / "out" / "step2_output" / "b.nii.gz").unlink()
    third = Readers()
    summary = run(tmp_path / "in", tmp_path / "out", third, keep=keep)
    assert (summary.skipped, third.calls) == (("a",), [1, 2])
    assert (tmp_path / "out" / "step2_output" / "b.nii.gz").is_file()


@pytest.mark.parametrize("change", ["overwrite", "options", "input", "record"])
def test_what_makes_a_scan_unfinished(tmp_path: Path, few: np.ndarray, change: str) -> None:
    source = write_scan(tmp_path / "in" / "a.nii.gz", few)
    keep = ("step2_output",)
    run(tmp_path / "in", tmp_path / "out", keep=keep)
    if change == "input":
        os.utime(source, ns=(1, 1))
    if change == "record":
        (tmp_path / "out" / "reports" / "a.json").write_text('{"scan": "a", ', encoding="utf-8")
    again = Readers()
    run(tmp_path / "in", tmp_path / "out", again, keep=keep, overwrite=change == "overwrite", iso=change == "options")
    assert again.calls == [1, 2]


def test_keep_only_writes_those_folders(tmp_path: Path, few: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    run(tmp_path / "in", tmp_path / "out", keep=("step1_levels",))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "step1_levels",
        "reports",
        "run.json",
        "measurements.csv",
        "report.html",
        "label_tables",
    }


def test_iso_and_step1(tmp_path: Path, codes: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", codes)
    readers = Readers()
    keep = ("step1_output", "step1_levels", "preview")
    run(tmp_path / "in", tmp_path / "out", readers, iso=True, step1=True, keep=keep)
    assert readers.calls == [1]
    volume = read_labels(tmp_path / "out" / "step1_output" / "a.nii.gz")
    assert (volume.grid.orientation, volume.data.shape) == ("RAS", lumbar_codes().shape)
    assert DISC_L5_S in np.unique(volume.data)
    assert CODE_OF["L3"] not in np.unique(volume.data)
    assert not list((tmp_path / "out" / "preview").glob("*step2*"))


def test_a_step_1_record_does_not_call_all_vertebrae_the_sacrum(tmp_path: Path, few: np.ndarray) -> None:
    """With --step1 the report listed a sacrum of 106 ml and no other vertebra."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    record = run(tmp_path / "in", tmp_path / "out", step1=True, keep=("step1_levels",)).records["a"]
    assert record["in_view"] == "L3-L4 - L5-S"
    names = {structure["code"]: structure["name"] for structure in record["structures"]}
    assert (names[SACRUM], names[DISC_L5_S]) == ("vertebrae", "L5-S")


def test_a_scan_is_unfinished_while_it_is_segmented_again(tmp_path: Path, few: np.ndarray) -> None:
    """A run that was killed while it replaced results left an old record beside new files, so that the scan counted as
    finished."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    (tmp_path / "out" / "step2_output" / "a.nii.gz").unlink()
    (tmp_path / "out" / "step2_output" / "a.nii.gz").mkdir()
    summary = run(tmp_path / "in", tmp_path / "out", keep=("step2_output",), overwrite=True)
    assert "a" in summary.failures
    assert not (tmp_path / "out" / "reports" / "a.json").exists()


def test_a_localizer_of_the_run_before_is_used(tmp_path: Path, few: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "sub-01_T2w.nii.gz", few)
    labels = tmp_path / "loc" / "sub-01_T1w.nii.gz"
    labels.parent.mkdir()
    x, y, z = few.shape
    write_volume(labels, few, Grid((x, y, z), AFFINE))
    cases = pair_localizers(find_cases(tmp_path / "in"), labels.parent, suffixes=["_T2w"], localizer_suffix="_T1w")
    summary = do(tmp_path / "out", cases, Readers(), RunOptions(keep=("step2_output",)))
    assert summary.records["sub-01_T2w"]["made_with"]["localizer"][0] == "sub-01_T1w.nii.gz"
    assert summary.records["sub-01_T2w"]["warnings"] == []


def test_a_skewed_image_is_not_measured(tmp_path: Path, few: np.ndarray) -> None:
    """A header from an affine registration gave wrong sizes and angles, without a warning."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    image = read_image(tmp_path / "in" / "a.nii.gz")
    skewed = AFFINE.copy()
    skewed[1, 1] = np.tan(np.radians(12))
    write_volume(tmp_path / "in" / "b.nii.gz", image.data, Grid(image.grid.shape, skewed))
    records = run(tmp_path / "in", tmp_path / "out", keep=("step2_output",)).records
    heights = [[row["disc_height_mm"] for row in records[name]["measurements"]] for name in "ab"]
    assert any(heights[0]) and not any(heights[1])
    assert all(row["volume_ml"] for row in records["b"]["measurements"])
    skews = {name: [f["message"] for f in records[name]["findings"] if "skews" in f["message"]] for name in "ab"}
    assert not skews["a"] and "12 degrees" in skews["b"][0] and "resample_to_output" in skews["b"][0]


def test_structures_are_measured_on_the_image_as_scanned(finished: Path, codes: np.ndarray) -> None:
    rows = list(csv.DictReader((finished / "measurements.csv").read_text(encoding="utf-8").splitlines()))
    l3 = next(row for row in rows if (row["scan"], row["level"]) == ("a", "L3"))
    image = read_image(finished.parent / "in" / "a.nii.gz")
    marked = codes == CODE_OF["L3"]
    assert float(l3["intensity_mean"]) == pytest.approx(image.data[marked].mean(), abs=0.01)
    place = [float(l3[f"centroid_{axis}_vox"]) for axis in "ijk"]
    assert place == pytest.approx(np.argwhere(marked).mean(axis=0), abs=0.1)
    assert (float(l3["volume_ml"]), l3["names"]) == (pytest.approx(marked.sum() / 1000, abs=0.2), "certain")
    assert {"sacrum", "canal", "column"} <= {row["level"] for row in rows}
    assert (finished / "label_tables" / "totalspineseg.ctbl").is_file()


def test_label_maps_as_bids_derivatives(tmp_path: Path, few: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T2w.nii.gz", few)
    write_scan(tmp_path / "in" / "no BIDS name.nii.gz", few)
    out, keep = tmp_path / "out", ("step2_output",)
    records = run(tmp_path / "in", out, keep=keep).records
    assert write_bids(out, find_cases(tmp_path / "in"), records, iso=False) == 2
    root = out / "derivatives" / "totalspineseg"
    label = root / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_seg-TotalSpineSeg_desc-T2w_dseg.nii.gz"
    assert label.read_bytes() == (out / "step2_output" / "sub-01_ses-1_T2w.nii.gz").read_bytes()
    known = json.loads((label.with_name(label.name.replace(".nii.gz", ".json"))).read_text(encoding="utf-8"))
    assert known["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz"]
    assert known["NamesCertainty"] in ("certain", "counted", "doubtful")
    assert known["ModelVersions"] == {"step1": "reader-1", "step2": "reader-2"}
    assert str(tmp_path) not in json.dumps(known)
    description = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
    assert (description["DatasetType"], description["GeneratedBy"][0]["Version"]) == ("derivative", VERSION)
    assert (root / "dseg.tsv").read_text(encoding="utf-8").startswith("index\tname\tcolor\n")
    assert len(list(root.glob("sub-noBIDSname*/anat/*_dseg.nii.gz"))) == 1
    written = label.stat().st_mtime_ns
    write_bids(out, find_cases(tmp_path / "in"), records, iso=False)
    assert label.stat().st_mtime_ns == written, "a map that is up to date is not written again"
    (tmp_path / "in" / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T2w.nii.gz").write_bytes(b"broken")
    run(tmp_path / "in", out, keep=keep)
    assert not label.exists(), "a result that is gone stayed as a derivative"


def test_label_maps_of_dicom_series_as_seg(tmp_path: Path, few: np.ndarray) -> None:
    sagittal = np.ascontiguousarray(image_of(few).transpose(1, 2, 0)[::-1, ::-1])
    save(tmp_path / "in" / "series", slices(placed(SAGITTAL, (1, 1, 1), np.eye(3)), pixels=sagittal))
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    out = tmp_path / "out"
    records = run(tmp_path / "in", out, keep=("step2_output",)).records
    cases = find_cases(tmp_path / "in")
    assert write_segs(out, cases, records) == (1, {})
    labels = read_labels(out / "step2_output" / "series.nii.gz")
    seg = read_seg(out / "seg" / "series.dcm", labels.grid, sources=tmp_path / "in" / "series")
    assert map_names(seg, labels.grid).codes.tolist() == labels.data.tolist()
    assert write_segs(out, cases, records, reports=True) == (1, {})
    report = srread(out / "sr" / "series.dcm")
    groups = {g.tracking_identifier: g for g in report.content.get_volumetric_roi_measurement_groups()}
    rows = records["series"]["measurements"]
    doubtful = {row["level"] for row in rows if row["names"] == "doubtful"}
    assert doubtful, "these levels have no landmark"
    assert {s.name for s in seg.segments} == {f"{name} ?" if name in doubtful else name for name in groups}
    row = next(row for row in rows if row["kind"] == "disc")
    measured = {m.name.meaning: m.value for m in groups[row["level"]].get_measurements()}
    assert (measured["Volume"], measured.get("Mean height of the disc")) == (row["volume_ml"], row["disc_height_mm"])
    certainties = [q.value.meaning for q in groups[row["level"]].get_qualitative_evaluations()]
    assert certainties == [row["names"].capitalize()]
    (tmp_path / "in" / "series").rename(tmp_path / "in" / "moved")
    (tmp_path / "out" / "seg" / "series.dcm").unlink()
    count, failures = write_segs(out, cases, records)
    assert (count, "No DICOM SEG" in failures["series"]) == (0, True)


def test_a_series_without_every_second_slice_has_a_warning(tmp_path: Path, few: np.ndarray) -> None:
    """A series without every second slice was processed without a warning in the record and the report."""
    sagittal = np.ascontiguousarray(image_of(few).transpose(1, 2, 0)[::-1, ::-1])
    every_second = slices(placed(SAGITTAL, (1, 1, 1), np.eye(3)), pixels=sagittal)[::2]
    save(tmp_path / "in" / "series", every_second)
    summary = run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    record = summary.records["series"]
    assert [f["kind"] for f in record["findings"]].count("image") == 1
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("2.0 mm apart") == 1, (
        "once, not as a warning, too"
    )


def test_a_localizer_beside_the_scan_is_reported(tmp_path: Path, few: np.ndarray) -> None:
    """A localizer from another examination, 300 mm away, was of no use, and the report did not say so."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    x, y, z = few.shape
    write_volume(tmp_path / "loc.nii.gz", few, Grid((x, y, z), translated(AFFINE, 300)))
    cases = pair_localizers(find_cases(tmp_path / "in"), tmp_path / "loc.nii.gz")
    summary = do(tmp_path / "out", cases, Readers(), RunOptions(keep=("step2_output",)))
    assert "does not overlap this scan" in summary.records["a"]["warnings"][-1]


def test_a_localizer_of_another_patient_is_reported(tmp_path: Path, few: np.ndarray) -> None:
    """The localizer's canal was 20 mm beside that of the scan, but its names were used all the same."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    x, y, z = few.shape
    aside = AFFINE.copy()
    aside[0, 3] += 20
    write_volume(tmp_path / "loc.nii.gz", few, Grid((x, y, z), aside))
    cases = pair_localizers(find_cases(tmp_path / "in"), tmp_path / "loc.nii.gz")
    summary = do(tmp_path / "out", cases, Readers(), RunOptions(keep=("step2_output",)))
    (elsewhere,) = (f for f in summary.records["a"]["findings"] if f["kind"] == ELSEWHERE)
    assert "was not used: its canal lies" in elsewhere["message"]
    assert summary.records["a"]["warnings"] == []


def test_what_step_1_found_is_kept_when_step_2_fails(tmp_path: Path, few: np.ndarray) -> None:
    """A scan in which step 2 found nothing left no files, or an old step 2 beside a new step 1."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    out = tmp_path / "out"
    run(tmp_path / "in", out)

    class Blind(Readers):
        def get(self, step: int) -> Any:
            return super().get(step) if step == 1 else NothingSeen(2)

    summary = run(tmp_path / "in", out, Blind(), overwrite=True)
    assert "no intervertebral disc" in summary.failures["a"]
    assert {p.parent.name for p in out.glob("*/a*.nii.gz")} == {f for f in FOLDERS if f[:5] not in ("step2", "previ")}
    assert not list(out.glob("preview/*step2*"))
    assert (out / "preview" / "a_step1_output_tags.jpg").is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "no intervertebral disc" in page
    assert "data:image/webp" in page
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["failed"].keys() == {"a"}
    again = Readers()
    assert run(tmp_path / "in", out, again).failures == {}
    assert again.calls == [1, 2]


def test_a_scan_that_cannot_be_read_keeps_no_old_result(tmp_path: Path, few: np.ndarray) -> None:
    """A broken image was reported as failed, while the labels of the previous image stayed under its name."""
    source = write_scan(tmp_path / "in" / "a.nii.gz", few)
    run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    source.write_bytes(b"broken")
    run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    assert not list((tmp_path / "out").glob("*/a.*"))


def test_a_scan_out_of_reach_keeps_its_results(tmp_path: Path, few: np.ndarray) -> None:
    source = write_scan(tmp_path / "elsewhere" / "a.nii.gz", few)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").symlink_to(source)
    run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    source.rename(tmp_path / "dropped")
    assert "does not exist" in run(tmp_path / "in", tmp_path / "out", keep=("step2_output",)).failures["a"]
    source.parent.joinpath("a.nii.gz").write_bytes((tmp_path / "dropped").read_bytes())
    os.utime(source, ns=((tmp_path / "dropped").stat().st_mtime_ns,) * 2)
    again = Readers()
    assert run(tmp_path / "in", tmp_path / "out", again, keep=("step2_output",)).skipped == ("a",)
    assert again.calls == []


@pytest.mark.parametrize("link", [False, True], ids=["files", "links"])
def test_scans_that_the_run_would_overwrite_are_refused(tmp_path: Path, few: np.ndarray, link: bool) -> None:
    """If INPUT was OUTPUT/input, each scan was deleted before it was read."""
    scan = write_scan(tmp_path / "study" / "input" / "a.nii.gz", few)
    before = scan.read_bytes()
    source = scan.parent
    if link:
        source = tmp_path / "links"
        source.mkdir()
        (source / "a.nii.gz").symlink_to(scan)
    for keep in (FOLDERS, ("step2_output",)):
        with pytest.raises(StorageError, match=r"[Cc]hoose another OUTPUT"):
            run(source, tmp_path / "study", keep=keep)
    assert scan.read_bytes() == before
    assert not (tmp_path / "study" / "reports").exists()
    assert run(source, tmp_path / "other", keep=("step2_output",)).failures == {}


def test_a_localizer_that_the_run_would_overwrite_is_refused(tmp_path: Path, few: np.ndarray) -> None:
    """A map that was corrected by hand inside OUTPUT was deleted before it was read."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    labels = tmp_path / "out" / "step2_output" / "a.nii.gz"
    labels.parent.mkdir(parents=True)
    x, y, z = few.shape
    write_volume(labels, few, Grid((x, y, z), AFFINE))
    before = labels.read_bytes()
    cases = pair_localizers(find_cases(tmp_path / "in"), labels)
    with pytest.raises(StorageError, match="another folder"):
        do(tmp_path / "out", cases, Readers(), RunOptions(keep=("step1_output",)))
    assert labels.read_bytes() == before


def test_a_scan_of_another_place_does_not_take_over_results_of_its_name(tmp_path: Path, few: np.ndarray) -> None:
    """If the files of two patients had the same name, the second patient got the labels of the first, or replaced
    them."""
    one = write_scan(tmp_path / "p1" / "T2.nii", few)
    other = write_scan(tmp_path / "p2" / "T2.nii", np.where(few == CODE_OF["L3"], 0, few))
    os.utime(other, ns=(one.stat().st_mtime_ns,) * 2)
    assert one.stat().st_size == other.stat().st_size
    keep, out = ("step2_output",), tmp_path / "out"
    run(one, out, keep=keep)
    first = (out / "step2_output" / "T2.nii.gz").read_bytes()
    assert "another scan named 'T2'" in run(other, out, keep=keep).failures["T2"]
    assert (out / "step2_output" / "T2.nii.gz").read_bytes() == first
    assert run(one, out, keep=keep).skipped == ("T2",)
    moved = one.rename(tmp_path / "T2.nii")
    os.utime(moved, ns=(1, 1))
    again = Readers()
    assert (run(moved, out, again, keep=keep).failures, again.calls) == ({}, [1, 2])
    assert run(other, out, keep=keep, overwrite=True).failures == {}
    assert (out / "step2_output" / "T2.nii.gz").read_bytes() != first


def test_a_damaged_record_of_another_scan_is_kept_and_reported_once(tmp_path: Path, few: np.ndarray) -> None:
    """A damaged record was written over without a word, although it alone said that the results were another scan's."""
    keep, out = ("step2_output",), tmp_path / "out"
    run(write_scan(tmp_path / "p1" / "T2.nii", few), out, keep=keep)
    record = out / "reports" / "T2.json"
    damaged = record.read_text(encoding="utf-8")[:100]
    record.write_text(damaged, encoding="utf-8")
    other = write_scan(tmp_path / "p2" / "T2.nii", np.where(few == CODE_OF["L3"], 0, few))
    first, second = run(other, out, keep=keep), run(other, out, keep=keep)
    aside = out / "reports" / "T2.json.damaged"
    assert str(aside) in first.damaged["T2"]
    assert aside.read_text(encoding="utf-8") == damaged
    assert (second.damaged, second.skipped) == ({}, ("T2",))


def test_a_shorter_run_leaves_the_files_of_other_steps(tmp_path: Path, few: np.ndarray) -> None:
    """A run with --step1 into the same folder deleted the earlier results of step 2."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    run(tmp_path / "in", tmp_path / "out", step1=True, keep=("step1_output",))
    assert {p.parent.name for p in (tmp_path / "out").glob("*/a.nii.gz")} == {"step1_output", "step2_output"}


def test_a_shorter_run_shows_its_own_picture(tmp_path: Path, few: np.ndarray) -> None:
    """The page of a --step1 run showed the step-2 result of an earlier run."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    for step1 in (False, True):
        run(tmp_path / "in", tmp_path / "out", keep=("preview",), step1=step1)
    assert (tmp_path / "out" / "preview" / "a_step2_output_tags.jpg").is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ("a_step1_output_tags" in page, "a_step2_output_tags" in page) == (True, False)


@pytest.mark.parametrize("change", ["image", "weights", "numbering", "no record"])
def test_nothing_of_another_image_or_weights_stays_beside_a_new_result(
    tmp_path: Path, few: np.ndarray, change: str
) -> None:
    """After --step1 on a replaced image, step2_output and its preview still showed the old image."""
    source, out = write_scan(tmp_path / "in" / "a.nii.gz", few), tmp_path / "out"
    run(tmp_path / "in", out, keep=("step2_output", "preview"))
    if change == "image":
        os.utime(source, ns=(1, 1))
    if change == "no record":
        (out / "reports" / "a.json").unlink()
    options = RunOptions(step1=True, keep=("step1_output",), method="iterative" if change == "numbering" else "chain")
    versions = {"step1": "reader-9" if change == "weights" else "reader-1"}
    do(out, find_cases(tmp_path / "in"), Readers(), options, versions)
    assert {p.parent.name for p in out.glob("*/a*.*")} == {"step1_output", "reports"}


def test_another_localizer_makes_a_scan_unfinished(tmp_path: Path, few: np.ndarray) -> None:
    """A better localizer was ignored, because the scan had been finished with the old one."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    x, y, z = few.shape
    write_volume(tmp_path / "loc.nii.gz", few, Grid((x, y, z), AFFINE))
    found = []
    for localizer in (None, tmp_path / "loc.nii.gz", tmp_path / "loc.nii.gz"):
        cases = pair_localizers(find_cases(tmp_path / "in"), localizer)
        readers = Readers()
        do(tmp_path / "out", cases, readers, RunOptions(keep=("step2_output",)))
        found.append(len(readers.calls))
    assert found == [2, 2, 0]


def test_an_arch_without_a_body_is_as_doubtful_as_its_neighbors() -> None:
    """In an uncertain numbering the topmost vertebra, of which only the arch was in view, was shown as certain."""
    labels = np.array([0, CODE_OF["T7"], CODE_OF["T8"], CODE_OF["L1"], SACRUM], dtype=np.uint8).reshape(5, 1, 1)
    levels = [SimpleNamespace(code=CODE_OF["T8"], probability=0.98), SimpleNamespace(code=CODE_OF["L1"], probability=1)]
    for certainty, contradicted, expected in (
        ("doubtful", False, {"T7", "T8"}),
        ("certain", False, set()),
        ("counted", False, set()),
        ("doubtful", True, {"T7", "T8", "L1"}),
    ):
        numbering: Any = SimpleNamespace(levels=levels, certainty=certainty, contradicted=contradicted)
        assert doubtful_codes(numbering, labels) == {CODE_OF[name] for name in expected}
    assert doubtful_codes(None, labels) == frozenset()


def test_where_the_whole_is_not_certain_some_level_is_not() -> None:
    """A pin that met no level left all sizes in the table, although the names were not certain."""
    labels = np.array([0, CODE_OF["T8"], CODE_OF["L1"], CODE_OF["canal"]], dtype=np.uint8).reshape(4, 1, 1)
    levels = [SimpleNamespace(code=CODE_OF[name], probability=1) for name in ("T8", "L1")]
    for certainty, expected in (("doubtful", {"T8", "L1"}), ("certain", set())):
        numbering: Any = SimpleNamespace(levels=levels, certainty=certainty, contradicted=False)
        assert doubtful_codes(numbering, labels) == {CODE_OF[name] for name in expected}


def test_a_file_name_that_is_not_utf_8_is_a_scan_like_any_other(tmp_path: Path, few: np.ndarray) -> None:
    """A name that was not UTF-8 ended the whole run when its documents were written."""
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    strange = os.fsdecode(b"lat\xe9 & <b>")
    (tmp_path / "in" / "a.nii.gz").rename(tmp_path / "in" / f"{strange}.nii.gz")
    keep = ("step2_output", "preview")
    summary = run(tmp_path / "in", tmp_path / "out", keep=keep)
    assert summary.failures == {}
    assert (tmp_path / "out" / "step2_output" / f"{strange}.nii.gz").is_file()
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["done"] == [strange]
    assert run(tmp_path / "in", tmp_path / "out", keep=keep).skipped == (strange,)


def test_old_temporary_files_are_removed_and_new_ones_left(tmp_path: Path, few: np.ndarray) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", few)
    folder = tmp_path / "out" / "step2_output"
    folder.mkdir(parents=True)
    old, new = folder / ".partial-old.nii.gz", folder / ".partial-new.nii.gz"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    assert (old.exists(), new.exists()) == (False, True)


def test_stages_overlap() -> None:
    """While one item is computed, the next is read and the last is written."""
    reading_second, written_first = threading.Event(), threading.Event()
    written = []

    def read(item: int) -> int:
        if item == 2:
            reading_second.set()
        return item

    def compute(item: int, loaded: int) -> int:
        if item == 1:
            assert reading_second.wait(5), "the second item is read while the first is computed"
        if item == 3:
            assert written_first.wait(5), "the first item is written while the third is computed"
        return 10 * loaded

    def write(item: int, found: int) -> int:
        written.append(found)
        if item == 1:
            written_first.set()
        return found

    done = list(overlapped([1, 2, 3], read, compute, write, workers=1))
    assert [(d.item, d.written, d.failure) for d in done] == [(1, 10, None), (2, 20, None), (3, 30, None)]


def test_levels_are_named_while_the_next_scan_is_in_the_network(
    tmp_path: Path, few: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU waited until the CPU had named the levels of the scan before."""
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", few)
    begun = threading.Event()

    class Signaling(Readers):
        def get(self, step: int) -> CodeReader:
            found = super().get(step)
            if len(self.calls) == 3:
                begun.set()
            return found

    original = pipeline.segmented

    def segmented(*words: Any, **options: Any) -> pipeline.Segmentation:
        assert begun.wait(10), "the network works on the next scan"
        return original(*words, **options)

    monkeypatch.setattr(pipeline, "segmented", segmented)
    summary = run(tmp_path / "in", tmp_path / "out", Signaling(), keep=("step2_output",))
    assert not summary.failures and set(summary.records) == {"a", "b"}


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_fault_in_any_stage_ends_its_item_only(stage: str) -> None:
    def fail(name: str, item: int) -> int:
        if item == 2 and name == stage:
            raise ImageError("an image is required")
        return item

    done = overlapped(
        [1, 2, 3],
        lambda i: fail("read", i),
        lambda i, _: fail("compute", i),
        lambda i, _: fail("write", i),
        workers=2,
    )
    assert {d.item: d.failure for d in done} == {1: None, 2: "an image is required", 3: None}


def test_an_interrupt_keeps_what_is_done(tmp_path: Path, few: np.ndarray) -> None:
    for name in "abc":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", few)

    class Stopping(Readers):
        def get(self, step: int) -> CodeReader:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().get(step)

    summary = run(tmp_path / "in", tmp_path / "out", Stopping(), keep=("step2_output",))
    assert summary.interrupted
    assert set(summary.records) == {p.stem for p in (tmp_path / "out" / "reports").glob("*.json")} == {"a"}
    assert "c" not in summary.records
    rest = run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    assert set(rest.records) == {"a", "b", "c"}
    assert "a" in rest.skipped


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImageError("one sentence"), "one sentence"),
        (MemoryError(), "too little free memory"),
        (RuntimeError("line\nbreak"), "(RuntimeError): line break"),
        (KeyError(), "(KeyError)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_fault_is_one_sentence(error: Exception, expected: str) -> None:
    assert expected in sentence(error)
    assert "\n" not in sentence(error)


def test_progress_reports_failures_and_stays_quiet_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    progress = Progress(2, sys.stderr)
    progress.advance("a")
    progress.advance("b", "too small")
    progress.close()
    Progress(1, None).advance("c")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/2, ")
    assert lines[1] == "[2/2, 0:00 left] b: failed: too small"
    assert len(lines) == 2


def test_a_folder_of_dicom_series(tmp_path: Path, codes: np.ndarray) -> None:
    """Series in their own folders are scans; results are NIfTI files on the grid of the series."""
    import SimpleITK as sitk

    folder = tmp_path / "in" / "patient 1" / "t2"
    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(image_of(codes).astype(np.int16).transpose(2, 1, 0)))
    # The phantom's axes P, S, R in DICOM's own L, P, S.
    image.SetDirection([0, 0, -1, 1, 0, 0, 0, 1, 0])
    uid = "1.2.826.0.1.3680043.2.1125.1"
    direction = image.GetDirection()
    orientation = "\\".join(str(direction[i]) for i in (0, 3, 6, 1, 4, 7))
    with itk_slices() as write:
        for k in range(image.GetDepth()):
            tags = {
                "0020|000d": f"{uid}.1",
                "0020|000e": f"{uid}.2",
                "0008|0018": f"{uid}.3.{k}",
                "0020|0037": orientation,
                "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, k)))),
                "0020|0013": str(k),
                "0008|0060": "MR",
            }
            write(folder / f"{k:03d}.dcm", image[:, :, k], tags)
    summary = run(tmp_path / "in", tmp_path / "out", keep=("step2_output",))
    assert summary.failures == {}
    labels = read_labels(tmp_path / "out" / "step2_output" / "patient 1_t2.nii.gz")
    assert labels.grid.orientation == read_image(folder).grid.orientation
    values = dict(zip(*np.unique(labels.data, return_counts=True), strict=True))
    assert values == dict(zip(*np.unique(codes, return_counts=True), strict=True))


@pytest.mark.parametrize(
    ("value", "dtype"), [(-32768, np.int16), (32767, np.int16), (-32769, np.float32), (32768, np.float32)]
)
def test_whole_numbers_are_stored_as_int16_up_to_its_limits(value: int, dtype: type) -> None:
    """Numbers beyond the limits of int16 came back as other numbers."""
    scan = SimpleNamespace(iso=SimpleNamespace(data=np.full((2, 2, 2), value, np.float32)))
    stored = _stored_image(scan, True)
    assert (stored.dtype, stored.tolist()) == (dtype, scan.iso.data.tolist())
