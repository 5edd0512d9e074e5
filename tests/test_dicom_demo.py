"""Tests that synthetic patients for a PACS are valid, the same every time, and have their truth on their grids."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from demo_series import DemoStudy, demo_pacs
from scipy import ndimage

from totalspineseg_server.anatomy import NAME_OF
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.errors import ImageError
from totalspineseg_server.geometry import same_grid
from totalspineseg_server.io.dicom.headers import read_headers
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_seg
from totalspineseg_server.io.volumes import read_image, read_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pacs") / "demo"


@pytest.fixture(scope="module")
def study(folder: Path) -> DemoStudy:
    return demo_pacs(folder, 1, seed=3, truth=True)[0]


def test_a_study_has_two_sagittal_series_and_a_localizer(study: DemoStudy, folder: Path) -> None:
    assert [series.description for series in study.series] == [
        "T2 TSE sagittal",
        "T1 TSE sagittal",
        "Localizer 3 planes",
    ]
    assert [series.localizer for series in study.series] == [False, False, True]
    files = sorted(path for path in folder.rglob("*.dcm"))
    assert sorted(file for series in study.series for file in series.files) == files
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    assert len({header.SOPInstanceUID for header in headers}) == len(files)
    for keyword, count in {
        "StudyInstanceUID": 1,
        "FrameOfReferenceUID": 1,
        "PatientID": 1,
        "SeriesInstanceUID": 3,
    }.items():
        assert len({header[keyword].value for header in headers}) == count
    assert {(header.Modality, header.SOPClassUID.name) for header in headers} == {("MR", "MR Image Storage")}
    assert {str(header.PatientName) for header in headers} == {"SYNTHETIC^ONE"}
    assert study.uid == headers[0].StudyInstanceUID
    assert all(len(header.SOPInstanceUID) <= 64 for header in headers)


@pytest.mark.parametrize("place", [0, 1], ids=["T2", "T1"])
def test_truth_lies_on_the_grid_of_its_series(study: DemoStudy, place: int) -> None:
    series = study.series[place]
    image = read_image(series.folder)
    assert series.truth is not None
    truth = read_labels(series.truth)
    assert same_grid(image.grid, truth.grid)
    assert image.grid.spacing == pytest.approx((1, 1, 4))
    # Slices run to the right, columns to the back, rows downward, all of them slightly askew.
    assert image.grid.orientation == "PIR"
    assert 0.9 < abs(image.affine[0, 2]) / 4 < 0.99999
    # Cortical bone around a canal full of fluid or cord: the structures show where the truth says they are.
    canal, l4 = truth.data == 2, truth.data == 44
    assert l4.sum() > 1000
    means = image.data[canal].mean(), image.data[l4].mean(), image.data[image.data > 0].min()
    assert means[0] != pytest.approx(means[1], rel=0.05)
    assert means[2] < means[1]


def test_the_series_of_a_study_show_the_same_place(study: DemoStudy) -> None:
    """Two series in one frame of reference must show the same point at the same coordinates."""
    first, second = (read_labels(series.truth) for series in study.series[:2] if series.truth)
    assert not same_grid(first.grid, second.grid)
    to_first = np.linalg.inv(first.affine) @ second.affine
    voxels = np.argwhere(second.data > 0)[::97]
    moved = np.rint(voxels @ to_first[:3, :3].T + to_first[:3, 3]).astype(int)
    np.testing.assert_array_equal(first.data[tuple(moved.T)], second.data[tuple(voxels.T)])


def test_the_localizer_is_refused_and_shows_the_spine(study: DemoStudy) -> None:
    localizer = study.series[2]
    with pytest.raises(ImageError, match=r"3 orientations \(3 \w+, 3 \w+, 3 \w+; .*localizer"):
        read_image(localizer.folder)
    assert localizer.truth is None
    items = [pydicom.dcmread(path) for path in localizer.files]
    assert all(item.pixel_array.std() > 10 for item in items)
    for first in (0, 3, 6):
        places = np.array([item.ImagePositionPatient for item in items[first : first + 3]], dtype=float)
        np.testing.assert_allclose(np.linalg.norm(np.diff(places, axis=0), axis=1), 10, atol=1e-6)


def test_a_localizer_slice_shows_what_the_t2_shows_there(study: DemoStudy) -> None:
    """Planes cut along a wrong axis look like a spine, but of another place."""
    image = read_image(study.series[1].folder)
    back = np.linalg.inv(image.affine)
    for path in study.series[2].files:
        item = pydicom.dcmread(path)
        across, down = np.array(item.ImageOrientationPatient[:3]), np.array(item.ImageOrientationPatient[3:])
        rows, columns = np.mgrid[0 : item.Rows, 0 : item.Columns]
        steps = columns[..., None] * across + rows[..., None] * down
        lps = np.array(item.ImagePositionPatient) + float(item.PixelSpacing[0]) * steps
        voxels = (lps * (-1, -1, 1)) @ back[:3, :3].T + back[:3, 3]
        inside = ((voxels >= 0) & (voxels <= np.array(image.data.shape) - 1)).all(-1)
        expected = ndimage.map_coordinates(image.data.astype(float), voxels[inside].T, order=1)
        assert inside.sum() > 500
        np.testing.assert_allclose(item.pixel_array[inside], expected, atol=2)


def test_truth_goes_through_dicom_seg_and_back(study: DemoStudy) -> None:
    series = study.series[0]
    assert series.truth is not None
    truth = read_labels(series.truth)
    seg = write_seg(truth, series.folder, model="truth", version="1")
    mapped = map_names(read_seg(seg_bytes(seg), truth.grid, sources=series.folder), truth.grid)
    np.testing.assert_array_equal(mapped.codes, truth.data)
    assert "L4" in [NAME_OF[code] for code in mapped.present]


def test_the_same_seed_gives_the_same_files(study: DemoStudy, folder: Path, tmp_path: Path) -> None:
    again = demo_pacs(tmp_path, 1, seed=3)[0]
    assert (again.uid, [series.uid for series in again.series]) == (study.uid, [series.uid for series in study.series])
    for series in again.series:
        assert series.truth is None
        for file in series.files:
            assert file.read_bytes() == (folder / file.relative_to(tmp_path)).read_bytes()
    assert not (tmp_path / "truth").exists()
    assert read_headers(again.series[0].folder)
