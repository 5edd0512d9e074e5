"""Tests of the Python API: the page's examples, each kind of image, threads, and that nothing is written unasked."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import totalspineseg_server as spine
from dicom_series import itk_slices
from phantom import CodeReader, image_of, lumbar_codes
from totalspineseg_server import api
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.errors import GridError, ImageError, SettingError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet import networks

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
AFFINE = np.array([[0, 0, 1.0, -20], [-1.0, 0, 0, 79], [0, -1.0, 0, 125], [0, 0, 0, 1]])
"""Axes to posterior, inferior and right, as in sagittal series."""
CODES = lumbar_codes()[:, :, :126]


class Readers:
    """Networks that read the codes from the brightness."""

    def __init__(self, *_: object, **__: object) -> None:
        self.loads = 0

    def get(self, step: int) -> CodeReader:
        return CodeReader(step)

    def folder(self, step: int) -> object:
        return type("Folder", (), {"name": "starter"})()


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[Readers]:
    made: list[Readers] = []

    def make(*_: object, **__: object) -> Readers:
        made.append(Readers())
        return made[-1]

    monkeypatch.setattr(networks, "Networks", make)
    monkeypatch.setattr(api, "_models", {})
    return made


@pytest.fixture
def model(readers: list[Readers]) -> api.Model:
    return spine.load_model("starter", device="cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    data = image_of(CODES).astype(np.int16)
    return np.ascontiguousarray(data.transpose(1, 2, 0)[::-1, ::-1])


@pytest.fixture
def folder(tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with what the page names."""
    x, y, z = image.shape
    write_volume(tmp_path / "scan.nii.gz", image, Grid((x, y, z), AFFINE))
    write_volume(tmp_path / "thorax.nii.gz", np.ones((9, 9, 9)), Grid((9, 9, 9), np.eye(4)))
    golden = ROOT / "tests" / "golden" / "lower_lumbar_clean" / "step2_raw.nii.gz"
    (tmp_path / "step2_raw.nii.gz").write_bytes(golden.read_bytes())
    (tmp_path / "series").mkdir()
    slices = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    with itk_slices() as write:
        for k in range(slices.GetDepth()):
            place = "\\".join(map(str, slices.TransformIndexToPhysicalPoint((0, 0, k))))
            turn = [slices.GetDirection()[at] for at in (0, 3, 6, 1, 4, 7)]
            tags = {"0020|000d": "1.2.3", "0020|000e": "1.2.4", "0008|0018": f"1.2.5.{k}", "0020|0032": place}
            more = {"0020|0037": "\\".join(map(str, turn)), "0020|0013": str(k), "0008|0060": "MR"}
            write(tmp_path / "series" / f"{k:03d}.dcm", slices[:, :, k], tags | more)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_a_segmentation_object_marks_the_doubtful_levels(folder: Path, model: api.Model) -> None:
    """The names of doubtful levels had no question mark, unlike those of the same result in a PACS."""
    result = replace(spine.segment(folder / "series", model=model), _doubtful=frozenset({CODE_OF["L3-L4"]}))
    result.save_dicom_seg(folder / "marked.dcm")
    labels = [str(item.SegmentLabel) for item in pydicom.dcmread(folder / "marked.dcm").SegmentSequence]
    assert [label for label in labels if "?" in label] == ["L3-L4 ?"]


@pytest.mark.slow
def test_the_examples_of_the_page_run(folder: Path, readers: list[Readers], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES) >= 8
    values: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(example, "docs/python.md", "exec"), values)  # noqa: S102
    printed = capsys.readouterr().out
    assert "L4-L5" in printed
    assert "no contrast" in printed
    assert {"labels.nii.gz", "labels.dcm", "named.nii.gz"} <= {path.name for path in folder.iterdir()}
    labels = [str(item.SegmentLabel) for item in pydicom.dcmread(folder / "labels.dcm").SegmentSequence]
    assert {"L5", "L4-L5", "sacrum", "canal"} <= set(labels)
    assert len(readers) == 1


def test_every_name_of_the_api_is_on_its_page() -> None:
    assert spine.__all__ == ["lint", "load_model", "measure", "number", "segment"]
    assert [name for name in spine.__all__ if f"spine.{name}(" not in PAGE] == []
    with pytest.raises(AttributeError, match="nothing"):
        spine.nothing  # noqa: B018


def test_each_kind_of_image_gives_the_same_labels(folder: Path, image: np.ndarray, model: api.Model) -> None:
    before = image.copy()
    loaded = nib.load(folder / "scan.nii.gz")
    results = [
        spine.segment(folder / "scan.nii.gz", model=model),
        spine.segment(str(folder / "scan.nii.gz"), model=model),
        spine.segment(loaded, model=model),
        spine.segment(sitk.ReadImage(str(folder / "scan.nii.gz")), model=model),
        spine.segment(image, AFFINE, model=model),
    ]
    expected = CODES.transpose(1, 2, 0)[::-1, ::-1]
    for result in results:
        assert result.labels.shape == image.shape
        assert np.allclose(result.affine, AFFINE, atol=1e-4)
        assert (result.labels == CODE_OF["L5"]).sum() == (expected == CODE_OF["L5"]).sum()
        assert np.array_equal(result.labels, results[0].labels)
    assert np.array_equal(image, before)


def test_a_result_says_how_far_its_names_can_be_believed(image: np.ndarray, model: api.Model) -> None:
    result = spine.segment(image, AFFINE, model=model)
    assert [level.name for level in result.levels if "-" not in level.name][-2:] == ["L5", "sacrum"]
    assert result.certainty in ("certain", "counted", "doubtful")
    assert {level.certainty for level in result.levels} == {result.certainty}
    assert all(0 < level.probability <= 1 and level.runner_up for level in result.levels)
    assert result.report["models"] == {"step1": "reader-1", "step2": "reader-2"}
    assert "not for patients" in result.report["weights"]
    rows = {row["level"]: row for row in spine.measure(result)}
    assert rows["L4-L5"]["disc_height_mm"] == pytest.approx(10, abs=1)
    again = {row["level"]: row for row in spine.measure(result.labels, result.affine)}
    assert again["L4-L5"]["disc_height_mm"] == rows["L4-L5"]["disc_height_mm"]


def test_a_pin_names_the_levels(image: np.ndarray, model: api.Model) -> None:
    result = spine.segment(image, AFFINE, model=model)
    at = np.argwhere(result.labels == CODE_OF["L4"]).mean(axis=0)
    point = tuple(float(value) for value in (result.affine @ [*at, 1])[:3])
    pinned = spine.segment(image, AFFINE, model=model, pins={"L4": point})
    assert np.array_equal(pinned.labels, result.labels)
    with pytest.raises(SettingError, match="'rib'"):
        spine.segment(image, AFFINE, model=model, pins={"rib": (0, 0, 0)})


def test_several_threads_share_a_model_that_is_loaded_once(image: np.ndarray, readers: list[Readers]) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: spine.segment(image, AFFINE), range(4)))
    assert all(np.array_equal(result.labels, results[0].labels) for result in results)
    assert len(readers) == 1


def test_nothing_is_written_unasked(
    tmp_path: Path, image: np.ndarray, model: api.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = spine.segment(image, AFFINE, model=model)
    spine.lint(result)
    spine.measure(result)
    assert list(tmp_path.iterdir()) == []


def test_errors_say_what_to_do(folder: Path, image: np.ndarray, model: api.Model) -> None:
    with pytest.raises(ImageError, match="with its affine"):
        spine.segment(image, model=model)
    with pytest.raises(ImageError, match="does not exist"):
        spine.segment("no.nii.gz", model=model)
    with pytest.raises(ImageError, match="TotalSpineSeg's codes"):
        spine.measure(np.full((9, 9, 9), 200), np.eye(4))
    result = spine.segment(image, AFFINE, model=model)
    with pytest.raises(SettingError, match=r"save_dicom_seg\(path, series\)"):
        result.save_dicom_seg(folder / "labels.dcm")
    with pytest.raises(GridError):
        spine.number(step_map(), np.eye(4)).save_dicom_seg(folder / "labels.dcm", folder / "series")


def step_map() -> np.ndarray:
    return CodeReader(2).predict(image_of(CODES)[np.newaxis]).labels


def test_a_map_of_a_network_is_numbered() -> None:
    named = spine.number(step_map(), np.eye(4))
    assert {"L5", "L5-S", "sacrum"} <= set(named.names.values())
    assert spine.lint(named) == spine.lint(named.labels, named.affine)


def test_importing_it_is_cheap() -> None:
    """A program that only may use it waited for PyTorch."""
    code = "import sys, totalspineseg_server as s; print(sorted({'torch', 'numpy', 'monailabel'} & set(sys.modules)))"
    paths = str(ROOT / "apps" / "totalspineseg")
    program = f"import sys; sys.path.insert(0, {paths!r}); {code}"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout
        == "[]\n"
    )
