"""Tests that DICOM series of real scanners and archives are read, or refused with one sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from dicom_series import (
    AXIAL,
    ENHANCED_MR,
    OBLIQUE,
    SECONDARY_CAPTURE,
    SIZE,
    STACKS,
    at,
    enhanced,
    picture,
    placed,
    save,
    slices,
)
from totalspineseg_server.errors import ImageError, StorageError
from totalspineseg_server.geometry import same_grid
from totalspineseg_server.io.dicom.headers import read_headers, uid_from
from totalspineseg_server.io.dicom.stack import stack_of
from totalspineseg_server.io.volumes import read_image

ENHANCED_KINDS = (ENHANCED_MR, "1.2.840.10008.5.1.4.1.1.4.4", "1.2.840.10008.5.1.4.1.1.2.1")
STRUCTURED_REPORT = "1.2.840.10008.5.1.4.1.1.88.33"
LEFT_OUT = (
    "Modality",
    "PatientName",
    "PatientID",
    "FrameOfReferenceUID",
    "StudyID",
    "InstanceNumber",
    "SliceThickness",
)


def without(*keywords: str) -> Callable[[Dataset, int], None]:
    def change(item: Dataset, _: int) -> None:
        for keyword in keywords:
            delattr(item, keyword)

    return change


@pytest.mark.parametrize("affine", STACKS.values(), ids=STACKS.keys())
def test_every_voxel_lies_where_its_header_says(tmp_path: Path, affine: np.ndarray) -> None:
    volume = read_image(save(tmp_path / "series", slices(affine)))
    np.testing.assert_array_equal(volume.data, picture())
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)


@pytest.mark.parametrize("affine", STACKS.values(), ids=STACKS.keys())
def test_simpleitk_places_the_same_values_at_the_same_points(tmp_path: Path, affine: np.ndarray) -> None:
    folder = save(tmp_path / "series", slices(affine))
    volume = read_image(folder)
    other = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    for voxel in [(0, 0, 0), (12, 0, 0), (0, 10, 1), (3, 4, 2), (12, 10, 4)]:
        lps = at(volume.affine, voxel) * (-1, -1, 1)
        assert other[other.TransformPhysicalPointToIndex(lps.tolist())] == volume.data[voxel]


@pytest.mark.parametrize("shared", [True, False], ids=["shared groups", "groups in every frame"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 0, 4, 2, 1)], ids=["in order", "shuffled"])
def test_enhanced_multi_frame_is_the_same_image(tmp_path: Path, order: tuple[int, ...], shared: bool) -> None:
    single = slices()
    path = save(tmp_path / "series", [enhanced([single[k] for k in order], shared=shared)])
    for source in (path, next(path.iterdir())):
        volume = read_image(source)
        np.testing.assert_array_equal(volume.data, picture())
        np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)


def test_a_stack_spread_over_two_multi_frame_objects(tmp_path: Path) -> None:
    single = slices()
    parts = [enhanced(single[:2], uid_from("a")), enhanced(single[2:], uid_from("b"))]
    np.testing.assert_array_equal(read_image(save(tmp_path / "series", parts)).data, picture())


def test_missing_optional_tags_do_not_matter(tmp_path: Path) -> None:
    volume = read_image(save(tmp_path / "series", slices(), without(*LEFT_OUT)))
    np.testing.assert_array_equal(volume.data, picture())
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)


def test_compressed_slices(tmp_path: Path) -> None:
    def compress(item: Dataset, _: int) -> None:
        item.compress(RLELossless)

    np.testing.assert_array_equal(read_image(save(tmp_path / "series", slices(), compress)).data, picture())


def test_slices_with_their_own_scaling(tmp_path: Path) -> None:
    """Slices with different scalings were clipped to the whole numbers of the first one."""

    def scale(item: Dataset, k: int) -> None:
        item.RescaleSlope, item.RescaleIntercept = ("1" if k == 0 else "0.25"), "0"

    def no_scale(item: Dataset, _: int) -> None:
        item.RescaleSlope, item.RescaleIntercept = "1", "0"

    plain = read_image(save(tmp_path / "plain", slices(), no_scale)).data
    volume = read_image(save(tmp_path / "series", slices(), scale))
    np.testing.assert_allclose(volume.data[..., 1:], plain[..., 1:] / 4)
    np.testing.assert_allclose(volume.data[..., 0], plain[..., 0])


def rescaled(slope: float, intercept: float = 0) -> Dataset:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = str(slope), str(intercept), "US"
    return item


@pytest.mark.parametrize("kind", ENHANCED_KINDS)
@pytest.mark.parametrize(
    "scalings",
    [
        [(2, 0)] * 5,
        [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)],
        [(2, -100), (2.1, -80), (2.2, -60), (2.3, -40), (2.4, -20)],
        [(2, -100), None, (2, -100), None, (1, 0)],
    ],
    ids=["one scaling", "from 1", "differing", "some"],
)
def test_frames_of_one_object_with_their_own_scaling(
    tmp_path: Path, scalings: list[tuple[float, float] | None], kind: str
) -> None:
    """The scaling of the first frame was applied to all frames, in addition to their own: bright slices lay beside dark
    ones."""
    image = enhanced(slices())
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = kind
    for scaling, groups in zip(scalings, image.PerFrameFunctionalGroupsSequence, strict=True):
        if scaling:
            groups.PixelValueTransformationSequence = [rescaled(*scaling)]
    volume = read_image(save(tmp_path / "series", [image]))
    slopes, intercepts = np.array([scaling or (1, 0) for scaling in scalings]).T
    np.testing.assert_allclose(volume.data, picture() * slopes + intercepts, rtol=1e-5)


def test_a_scaling_that_frames_share_is_applied_once(tmp_path: Path) -> None:
    image = enhanced(slices())
    image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [rescaled(2, -7)]
    volume = read_image(save(tmp_path / "series", [image]))
    np.testing.assert_allclose(volume.data, picture() * 2.0 - 7)


def deflate(item: Dataset, _: int) -> None:
    item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def test_deflated_files_are_read(tmp_path: Path) -> None:
    """Deflated files were reported as headers without pixels."""
    np.testing.assert_array_equal(read_image(save(tmp_path / "series", slices(), deflate)).data, picture())
    image = enhanced(slices())
    image.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence = [rescaled(3)]
    volume = read_image(save(tmp_path / "enhanced", [image], deflate))
    np.testing.assert_allclose(volume.data, picture() * np.array([1, 3, 1, 1, 1]))


def test_without_room_to_unpack_a_file_is_not_called_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "series", slices(), deflate)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", full)
    with pytest.raises(StorageError, match=r"No space left on device.*Free disk space"):
        read_image(folder)


@pytest.mark.parametrize("step", [2, 3])
def test_missing_slices_are_a_warning_where_the_others_are_even(tmp_path: Path, step: int) -> None:
    """Every second slice of a series was missing, without a warning."""
    some = slices(size=(13, 11, 9))[::step]
    volume = read_image(save(tmp_path / "some", some))
    assert volume.spacing[2] == pytest.approx(3.3 * step)
    (warning,) = volume.warnings
    assert f"{3.3 * step:.1f} mm apart" in warning and "3.3 mm" in warning
    assert read_image(save(tmp_path / "all", slices())).warnings == ()


@pytest.mark.parametrize(("modality", "named"), [("CT", ["CT"]), ("MR", []), (None, [])])
def test_a_series_that_is_no_mr_is_read_with_a_warning(tmp_path: Path, modality: str | None, named: list[str]) -> None:
    """A CT got names like those of an MR, and nothing said that the networks have never seen one."""

    def state(header: Dataset, _: int) -> None:
        del header.Modality
        if modality:
            header.Modality = modality

    warnings = read_image(save(tmp_path / "series", slices(), state)).warnings
    assert [word for warning in warnings for word in warning.split() if "CT" in word] == [f"{one}," for one in named]


@pytest.mark.parametrize("stated", ["", "0.3", "12", "3.0"])
def test_a_spacing_that_scanners_write_differently_is_not_a_warning(tmp_path: Path, stated: str) -> None:
    """Some scanners state the empty space between slices, or the spacing of an interleaved group."""

    def state(item: Dataset, _: int) -> None:
        item.SpacingBetweenSlices = stated

    assert read_image(save(tmp_path / "series", slices(), state)).warnings == ()


def test_copies_reports_and_screenshots_beside_the_slices_are_left_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "series", slices())
    save(folder, [slices()[2]])
    shot = slices()[0]
    shot.SOPClassUID = shot.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    shot.SOPInstanceUID, shot.SeriesInstanceUID = uid_from("shot"), uid_from("shots")
    without("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")(shot, 0)
    report = slices(SeriesInstanceUID=uid_from("report"))[0]
    reported(report, 0)
    save(folder, [shot, report])
    (folder / "notes.txt").write_text("not DICOM", encoding="utf-8")
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.data, picture())
    assert same_grid(volume.grid, stack_of(read_headers(folder)).grid)


def move(k: int, keyword: str, index: int, by: float) -> Callable[[Dataset, int], None]:
    def change(item: Dataset, number: int) -> None:
        if number == k:
            values = [float(v) for v in getattr(item, keyword)]
            values[index] += by
            setattr(item, keyword, values)

    return change


def colored(item: Dataset, _: int) -> None:
    item.SamplesPerPixel, item.PhotometricInterpretation, item.PlanarConfiguration = 3, "RGB", 0
    item.BitsAllocated = item.BitsStored = 8
    item.HighBit = 7
    item.PixelData = item.PixelData * 3


def captured(item: Dataset, _: int) -> None:
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    without("ImagePositionPatient", "ImageOrientationPatient")(item, 0)


def three_planes(folder: Path) -> Path:
    series = {"SeriesInstanceUID": uid_from("localizer")}
    for k, affine in enumerate(STACKS.values()):
        planes = slices(affine, (11, 11, 3), **series)
        for number, item in enumerate(planes):
            item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid_from("plane", str(k), str(number))
        save(folder, planes)
    return folder


def two_stacks(folder: Path) -> Path:
    axial = slices(placed(AXIAL, (0.7, 0.9, 3.3), np.eye(3)))
    for number, item in enumerate(axial):
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid_from("axial", str(number))
    return save(save(folder, slices()), axial)


def echoes(folder: Path) -> Path:
    second = slices()
    for number, item in enumerate(second):
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid_from("echo", str(number))
    return save(save(folder, slices()), second)


def other_size(folder: Path) -> Path:
    extra = slices(OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1.0]]), (9, 11, 1))
    extra[0].SOPInstanceUID = extra[0].file_meta.MediaStorageSOPInstanceUID = uid_from("larger")
    return save(save(folder, slices()), extra)


def cut_short(folder: Path) -> Path:
    save(folder, slices())
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def cut_in_the_header(folder: Path) -> Path:
    save(folder, slices())
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:700])
    return folder


def emptied(folder: Path) -> Path:
    save(folder, slices()[:4])
    (folder / "5.dcm").write_bytes(b"")
    return folder


def reported(item: Dataset, _: int) -> None:
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = STRUCTURED_REPORT
    without("Rows", "Columns", "PixelData")(item, 0)


def multi_frame_capture(folder: Path) -> Path:
    image = enhanced(slices())
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE + ".2"
    del image.PerFrameFunctionalGroupsSequence
    del image.SharedFunctionalGroupsSequence
    return save(folder, [image])


def frames_without_groups(folder: Path) -> Path:
    image = enhanced(slices())
    del image.PerFrameFunctionalGroupsSequence
    return save(folder, [image])


def with_frames(count: int, described: int) -> Callable[[Path], Path]:
    """A multi-frame object that states another number of frames than it describes."""

    def make(folder: Path) -> Path:
        image = enhanced(slices())
        image.NumberOfFrames = count
        image.PerFrameFunctionalGroupsSequence = image.PerFrameFunctionalGroupsSequence[:described]
        return save(folder, [image])

    return make


def turned_to(*orientation: float) -> Callable[[Dataset, int], None]:
    def change(item: Dataset, _: int) -> None:
        item.ImageOrientationPatient = list(orientation)

    return change


def taller(item: Dataset, _: int) -> None:
    item.Rows = 999


def cut_and_flat(folder: Path) -> Path:
    """Slices without a distance, whose pixels end early."""
    return save(folder, slices(), lambda item, k: (flat(item, k), setattr(item, "PixelData", item.PixelData[:-10])))


REFUSED = {
    "fewer frames than places": (with_frames(3, 5), "3 frames, but describes 5"),
    "more frames than places": (with_frames(5, 3), "5 frames, but describes 3"),
    "no orientation": (lambda f: save(f, slices(), turned_to(0, 0, 0, 0, 0, 0)), "perpendicular"),
    "skewed orientation": (lambda f: save(f, slices(), turned_to(0, 1, 0, 0, 0.7, -0.7)), "perpendicular"),
    "more rows than pixels": (lambda f: save(f, slices(), taller), "damaged"),
    "pixels that end early": (cut_and_flat, "damaged"),
    "localizer in three planes": (
        three_planes,
        r"3 orientations \(3 \w+, 3 \w+, 3 \w+; .*localizer",
    ),
    "two orientations": (two_stacks, r"2 orientations \(5 sagittal, 5 axial; .*two stacks"),
    "missing slice": (lambda f: save(f, [s for k, s in enumerate(slices()) if k != 2]), "gaps from 3.30 to 6.60 mm"),
    "two echoes": (echoes, "10 images at 5 positions"),
    "one slice at the place of another": (lambda f: save(f, slices(), doubled), "5 images at 4 positions"),
    "slices of two sizes": (other_size, "several sizes: 5 of 13 x 11 and 1 of 9 x 11"),
    "sheared": (lambda f: save(f, slices(), shear), "shifted sideways"),
    "no position": (lambda f: save(f, slices(), without("ImagePositionPatient")), "position or orientation"),
    "unreadable position": (lambda f: save(f, slices(), empty_position), "position or orientation"),
    "no pixel spacing": (lambda f: save(f, slices(), without("PixelSpacing")), "pixel spacing"),
    "two pixel spacings": (lambda f: save(f, slices(), move(2, "PixelSpacing", 0, 0.1)), "several pixel spacings"),
    "secondary captures": (lambda f: save(f, slices(), captured), "secondary captures"),
    "multi-frame capture": (multi_frame_capture, "secondary captures"),
    "frames without a place": (frames_without_groups, "The 5 frames have no positions"),
    "colors": (lambda f: save(f, slices(), colored), "3 values per voxel"),
    "single slice": (lambda f: save(f, slices()[:1]), "at least 3 slices"),
    "file cut short": (cut_short, "cannot be read"),
    "file cut in its header": (cut_in_the_header, "damaged"),
    "empty file": (emptied, "'5.dcm' is damaged"),
    "two patients under one UID": (
        lambda f: save(save(f, slices()), slices(PatientID="S2", StudyInstanceUID=uid_from("t")), between),
        r"^(?!.*S[12]).*2 patients, for instance in '\w+' and '\w+'",
    ),
    "two studies under one UID": (
        lambda f: save(save(f, slices()), slices(StudyInstanceUID=uid_from("t")), between),
        "2 studies",
    ),
    "two series": (lambda f: save(save(f, slices()), slices(SeriesInstanceUID=uid_from("x"))), "2 DICOM series"),
    "no image": (lambda f: save(f, slices(), reported), "no DICOM image"),
}


def flat(item: Dataset, _: int) -> None:
    item.SliceThickness = item.SpacingBetweenSlices = 0


def test_slices_that_state_no_distance_are_read(tmp_path: Path) -> None:
    """Slices that state a distance of 0 were called unreadable, because the decoder refuses them."""
    np.testing.assert_array_equal(read_image(save(tmp_path / "flat", slices(), flat)).data, picture())


def between(item: Dataset, k: int) -> None:
    """Move a slice half way to the next one, where a slice of another patient may lie."""
    step = (np.array(slices()[1].ImagePositionPatient) - slices()[0].ImagePositionPatient) / 2
    item.ImagePositionPatient = [round(float(v), 8) for v in np.array(item.ImagePositionPatient, dtype=float) + step]
    item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = uid_from("between", str(k))


def doubled(item: Dataset, k: int) -> None:
    if k == 1:
        item.ImagePositionPatient = slices()[0].ImagePositionPatient


def shear(item: Dataset, k: int) -> None:
    item.ImagePositionPatient = [float(v) for v in item.ImagePositionPatient[:2]] + [60 + 2.0 * k]


def empty_position(item: Dataset, _: int) -> None:
    item.ImagePositionPatient = None


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_one_stack_gets_one_sentence(tmp_path: Path, make: Callable[[Path], Path], match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        read_image(make(tmp_path / "series"))
    assert str(tmp_path) not in str(caught.value)
    assert "SYNTHETIC" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slightly_uneven_and_rounded_headers_are_one_stack(tmp_path: Path) -> None:
    def rounded(item: Dataset, k: int) -> None:
        item.ImagePositionPatient = [round(float(v), 2) for v in item.ImagePositionPatient]
        item.ImageOrientationPatient = [round(float(v), 4) for v in item.ImageOrientationPatient]

    volume = read_image(save(tmp_path / "series", slices(), rounded))
    assert volume.data.shape == SIZE
    np.testing.assert_allclose(at(volume.affine, (12, 10, 4)), at(OBLIQUE, (12, 10, 4)), atol=0.05)


def test_objects_without_the_dicom_preamble(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for k, item in enumerate(slices()):
        item.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        item.is_implicit_VR = True
        item.preamble = None
        item.save_as(folder / f"{k}", write_like_original=True)
    np.testing.assert_array_equal(read_image(folder).data, picture())
