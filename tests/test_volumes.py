"""Tests of reading and writing volumes, and of the messages for bad files."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from dicom_series import itk_slices, save, slices
from totalspineseg_server.errors import GridError, ImageError, StorageError
from totalspineseg_server.files import write_file
from totalspineseg_server.geometry import Grid, Volume, on_grid, same_grid
from totalspineseg_server.io.volumes import (
    as_integers,
    is_image_name,
    read_codes,
    read_image,
    read_labels,
    stem,
    write_volume,
)

AFFINE = np.array([[0, 0, 3.3, 5], [-0.6, 0.02, 0, 7], [0, 0.6, 0.1, 8], [0, 0, 0, 1]])
"""Slightly sheared, as some scanners write it; ITK refuses such, nibabel does not."""
STRAIGHT = np.array([[0, 0, 3.3, 5], [-0.6, 0, 0, 7], [0, 0.6, 0, 8], [0, 0, 0, 1]])
SHAPE = (12, 14, 6)


def picture(dtype: type = np.int16) -> np.ndarray:
    return (np.random.default_rng(0).random(SHAPE) * 1000).astype(dtype)


def nifti(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def with_forms(
    path: Path,
    sform: np.ndarray | None,
    qform: np.ndarray | None,
    codes: tuple[int, int] = (1, 1),
    *,
    unit: str = "mm",
) -> Path:
    """Write a NIfTI file with these forms and codes; None for a form that is not set."""
    image = nib.Nifti1Image(picture(), np.eye(4))
    image.set_qform(qform, 0 if qform is None else codes[1])
    image.set_sform(sform, 0 if sform is None else codes[0])
    if qform is None:
        image.header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0) if sform is not None else 1
    image.header.set_xyzt_units(unit)
    path.write_bytes(image.to_bytes())
    return path


def with_size(path: Path, factor: float) -> Path:
    """A NIfTI file whose header has the size of the second axis times a factor."""
    image = nib.Nifti1Image(picture(), STRAIGHT)
    image.set_qform(STRAIGHT, 1)
    content = bytearray(image.to_bytes())
    content[84:88] = np.float32(0.6 * factor).tobytes()
    return Path(written(path, bytes(content)))


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def as_itk_places(path: Path) -> np.ndarray:
    """Return voxel -> RAS mm as ITK, and so 3D Slicer, reads the file."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "with space.v2.nii.gz"])
def test_nifti_round_trip(tmp_path: Path, name: str) -> None:
    volume = read_image(nifti(tmp_path / name, picture()))
    np.testing.assert_array_equal(volume.data, picture())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_nifti2_and_scaled_values(tmp_path: Path) -> None:
    image = nib.Nifti2Image(picture(), AFFINE)
    image.to_filename(tmp_path / "two.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "two.nii").data, picture())
    scaled = nib.Nifti1Image(picture(np.int16), AFFINE)
    scaled.header.set_slope_inter(0.5, 3)
    scaled.to_filename(tmp_path / "scaled.nii.gz")
    expected = nib.load(tmp_path / "scaled.nii.gz").get_fdata()
    np.testing.assert_allclose(read_image(tmp_path / "scaled.nii.gz").data, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz"])
def test_other_formats_place_voxels_as_simpleitk_does(tmp_path: Path, name: str) -> None:
    source = sitk.ReadImage(str(nifti(tmp_path / "source.nii", picture(), STRAIGHT)))
    sitk.WriteImage(source, str(tmp_path / name))
    volume = read_image(tmp_path / name)
    np.testing.assert_array_equal(volume.data, picture())
    np.testing.assert_allclose(volume.affine, STRAIGHT, atol=1e-5)
    lps = source.TransformIndexToPhysicalPoint((11, 2, 5))
    np.testing.assert_allclose(nib.affines.apply_affine(volume.affine, (11, 2, 5)) * (-1, -1, 1), lps, atol=0.02)


@pytest.mark.parametrize("name", ["out.nii.gz", "out.nii", "out.nrrd"])
def test_written_labels_lie_on_the_grid_of_the_image(tmp_path: Path, name: str) -> None:
    labels = (picture() % 54).astype(np.uint8)
    grid = Grid(SHAPE, STRAIGHT)
    write_volume(tmp_path / name, labels, grid)
    volume = read_labels(tmp_path / name)
    assert volume.data.dtype == np.uint8
    np.testing.assert_array_equal(volume.data, labels)
    assert same_grid(volume.grid, grid)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_is_written_on_a_skewed_grid_is_read_again(tmp_path: Path) -> None:
    """The qform, which cannot store a skew, placed the label elsewhere than the sform."""
    skewed = STRAIGHT + np.array([[0, 0, 0, 0], [0, 0.1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    write_volume(tmp_path / "a.nii.gz", picture(np.uint8), Grid(SHAPE, skewed))
    np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").affine, skewed, atol=1e-5)


def test_a_label_of_a_skewed_image_is_read_as_itk_wrote_it(tmp_path: Path) -> None:
    """ITK put the axes at right angles, so that every NIfTI label of a skewed image was refused."""
    skewed = Grid(SHAPE, STRAIGHT + np.array([[0, 0, 0, 0], [0, 0.2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    labels = picture(np.uint8)
    write_volume(tmp_path / "a.nrrd", labels, skewed)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nrrd")), str(tmp_path / "a.nii.gz"))
    written = read_labels(tmp_path / "a.nii.gz")
    assert not written.grid.is_skewed
    np.testing.assert_array_equal(on_grid(written, skewed).data, labels)
    elsewhere = Volume(written.data, written.affine + np.eye(4, k=3) * 5)
    with pytest.raises(GridError, match=r"18 degrees.*resample_to_output"):
        on_grid(elsewhere, skewed)


@pytest.mark.parametrize(("shear", "qform_code"), [(0.0, 1), (0.00005, 1), (0.1, 0)])
def test_a_label_has_a_qform_unless_that_would_place_it_elsewhere(
    tmp_path: Path, shear: float, qform_code: int
) -> None:
    """Programs that read only the qform showed a label without one beside its image."""
    affine = STRAIGHT + np.array([[0, 0, 0, 0], [0, shear, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    write_volume(tmp_path / "a.nii.gz", picture(np.uint8), Grid(SHAPE, affine))
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, qform_code)
    if qform_code:
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-3)


def test_4d_is_averaged(tmp_path: Path) -> None:
    data = np.stack([picture(np.float32), picture(np.float32) + 2], axis=-1)
    volume = read_image(nifti(tmp_path / "four.nii.gz", data))
    np.testing.assert_allclose(volume.data, data.mean(-1), rtol=1e-6)


CLOSE = STRAIGHT + np.array([[0, 0, 0, 0.2], [0, 0, 0, 0.1], [0, 0, 0, 0.1], [0, 0, 0, 0]])
"""A fraction of a voxel beside STRAIGHT."""
SHEARED = STRAIGHT + np.array([[0, 0, 0, 0], [0, 0.004, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("sform_code", range(5))
@pytest.mark.parametrize("qform_code", range(5))
def test_of_two_forms_the_one_counts_that_itk_follows(tmp_path: Path, sform_code: int, qform_code: int) -> None:
    """The result followed the sform, but 3D Slicer showed the image by the qform."""
    if not sform_code and not qform_code:
        with pytest.raises(ImageError, match="does not say how it lies"):
            read_image(with_forms(tmp_path / "a.nii", None, None))
        return
    path = with_forms(tmp_path / "a.nii", CLOSE, STRAIGHT, (sform_code, qform_code))
    affine = read_image(path).affine
    np.testing.assert_allclose(affine, as_itk_places(path), atol=1e-4)
    assert np.abs(affine - STRAIGHT).max() < 1e-4 or np.abs(affine - CLOSE).max() < 1e-4


@pytest.mark.parametrize("sform", [SHEARED, STRAIGHT @ np.diag([1.01, 1, 1, 1])], ids=["sheared", "other size"])
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
def test_an_sform_that_itk_mends_is_read_as_mended(tmp_path: Path, sform: np.ndarray, codes: tuple[int, int]) -> None:
    path = with_forms(tmp_path / "a.nii", sform, STRAIGHT, codes)
    np.testing.assert_allclose(read_image(path).affine, as_itk_places(path), atol=1e-4)


def turned(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ STRAIGHT


def shifted(*by_mm: float) -> np.ndarray:
    moved = STRAIGHT.copy()
    moved[:3, 3] += by_mm
    return moved


@pytest.mark.parametrize(
    ("sform", "apart"),
    [
        (turned(13), "mm"),
        (shifted(4, -30, 50), r"58\.4 mm"),
        (shifted(0, 0, 0.31), r"0\.3 mm"),
        (shifted(1.8, 0, 0), "1.8 mm"),
    ],
    ids=["turned", "far", "half a pixel", "half a slice"],
)
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 2), (4, 2)], ids=str)
def test_an_image_placed_in_two_ways_is_refused(
    tmp_path: Path, sform: np.ndarray, apart: str, codes: tuple[int, int]
) -> None:
    """The result lay 58 mm beside the scan that 3D Slicer showed, without a word."""
    path = with_forms(tmp_path / "a.nii", sform, STRAIGHT, codes)
    for read in (read_image, read_labels):
        with pytest.raises(ImageError, match=rf"(?s)two ways.*{apart} apart.*3D Slicer"):
            read(path)


def test_an_sform_of_another_voxel_size_than_the_header_is_refused(tmp_path: Path) -> None:
    """ITK uses the sizes in the header, other programs those of the sform."""
    path = with_forms(tmp_path / "a.nii", STRAIGHT, None)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    header["pixdim"][1:4] = 1
    content[:348] = header.binaryblock
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"1 x 1 x 1 mm or .* 0\.6 x 0\.6 x 3\.3 mm"):
        read_image(path)


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
@pytest.mark.parametrize("forms", ["s", "q", "both"])
def test_lengths_are_read_in_the_unit_of_the_header(tmp_path: Path, unit: str, per_mm: float, forms: str) -> None:
    """A scan in meters was as small as a voxel, and one in micrometers as large as a house."""
    affine = np.diag([1 / per_mm, 1 / per_mm, 1 / per_mm, 1]) @ STRAIGHT
    path = with_forms(tmp_path / "a.nii", affine if forms != "q" else None, affine if forms != "s" else None, unit=unit)
    volume = read_image(path)
    np.testing.assert_allclose(volume.affine, STRAIGHT, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(volume.affine, as_itk_places(path), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 14, 12), (14, 2, 12), (12, 14, 2), (12, 14, 2, 3), (12, 14, 1)], ids=str)
def test_fewer_than_three_slices_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Two slices got wrong names with certainty."""
    data = np.random.default_rng(0).random(shape, dtype=np.float32)
    with pytest.raises(ImageError, match=r"at least 3 slices.*whole series"):
        read_image(nifti(tmp_path / "a.nii.gz", data))


def test_a_rotation_that_rounding_made_too_long_is_one(tmp_path: Path) -> None:
    """Other programs read such a file, and its sform is valid."""
    lps = np.diag([-1.0, -1, 1, 1])
    path = with_forms(tmp_path / "a.nii", lps, lps)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]))
    header["quatern_d"] = 1.00001
    content[:348] = header.binaryblock
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).affine, lps)


def dicom_series(folder: Path, *, gaps: list[float] | None = None, flip_last: bool = False, uid: str = "1") -> None:
    folder.mkdir(exist_ok=True)
    data = picture(np.int16)
    z = 0.0
    with itk_slices() as write:
        for k in range(SHAPE[2]):
            piece = sitk.GetImageFromArray(data[:, :, k].T[np.newaxis])
            piece.SetSpacing((0.6, 0.6, 3.3))
            tags = {
                "0008|0060": "MR",
                "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
                "0008|0018": f"1.2.826.0.1.3680043.2.1125.{uid}.{k + 1}",
                "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
                "0020|000e": f"1.2.826.0.1.3680043.2.1125.9.{uid}",
                "0020|0013": str(k + 1),
                "0020|0032": f"{z}\\-50\\60",
                "0020|0037": "1\\0\\0\\0\\1\\0" if flip_last and k == SHAPE[2] - 1 else "0\\1\\0\\0\\0\\-1",
            }
            write(folder / f"{uid}_{k:02d}.dcm", piece, tags)
            z += gaps[k] if gaps else 3.3


def test_dicom_series(tmp_path: Path) -> None:
    dicom_series(tmp_path / "series")
    volume = read_image(tmp_path / "series")
    assert sorted(volume.data.shape) == sorted(SHAPE)
    assert volume.data.sum() == picture().sum()
    assert sorted(round(s, 2) for s in volume.spacing) == [0.6, 0.6, 3.3]
    assert volume.grid.orientation[0] in "AP"
    # The slice axis runs along patient x, LPS 0 -> 16.5, so RAS x falls to -16.5.
    corners = [volume.affine[0, 3], (volume.affine @ [*(n - 1 for n in volume.data.shape), 1])[0]]
    assert sorted(round(c, 1) for c in corners) == [-16.5, 0.0]


@pytest.mark.parametrize(
    ("series", "match"),
    [
        ({"gaps": [3.3, 3.3, 6.6, 3.3, 3.3, 3.3]}, "evenly spaced"),
        ({"flip_last": True}, "not parallel"),
    ],
    ids=["missing slice", "three-plane"],
)
def test_dicom_that_is_not_one_stack(tmp_path: Path, series: dict, match: str) -> None:
    dicom_series(tmp_path / "series", **series)
    with pytest.raises(ImageError, match=match):
        read_image(tmp_path / "series")


def test_two_dicom_series_in_one_folder(tmp_path: Path) -> None:
    dicom_series(tmp_path / "series", uid="1")
    dicom_series(tmp_path / "series", uid="2")
    with pytest.raises(ImageError, match="2 DICOM series"):
        read_image(tmp_path / "series")


def truncated(path: Path) -> Path:
    nifti(path, picture())
    path.write_bytes(path.read_bytes()[:-200])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def nrrd(path: Path, *fields: str) -> Path:
    """A NRRD file with this header."""
    head = ["NRRD0004", "type: int16", "dimension: 3", f"sizes: {SHAPE[0]} {SHAPE[1]} {SHAPE[2]}", "endian: little"]
    content = "\n".join([*head, "encoding: raw", *fields, "", ""]).encode() + picture().tobytes(order="F")
    return written(path, content)


def meta(path: Path, *fields: str) -> Path:
    """A MetaImage file with this header."""
    size = f"DimSize = {SHAPE[0]} {SHAPE[1]} {SHAPE[2]}"
    head = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *fields, size]
    content = "\n".join([*head, "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]).encode()
    return written(path, content + picture().tobytes(order="F"))


DIRECTIONS = ("space directions: (0,1,0) (0,0,1) (3,0,0)", "space origin: (0,0,0)")


@pytest.mark.parametrize("space", ["RAS", "right-anterior-superior", "left-posterior-superior", "LAS"])
def test_nrrd_files_that_name_their_space(tmp_path: Path, space: str) -> None:
    code = "ASR" if space[0].upper() == "R" else "ASL" if space == "LAS" else "PSL"
    volume = read_image(nrrd(tmp_path / "a.nrrd", f"space: {space}", *DIRECTIONS))
    assert volume.grid.orientation == code
    np.testing.assert_array_equal(volume.data, picture())


def test_meta_images_that_name_their_directions(tmp_path: Path) -> None:
    fields = ("TransformMatrix = 0 1 0 0 0 1 1 0 0", "Offset = 0 0 0", "ElementSpacing = 1 1 3")
    assert read_image(meta(tmp_path / "a.mha", *fields)).grid.orientation == "PSL"


def with_voxel(value: float) -> np.ndarray:
    """For a voxel of 1e200, numpy's warnings and an unexpected error were on the console."""
    values = picture(np.float64)
    values[2, 2, 2] = value
    return values


NAN = picture(np.float32)
NAN[3, 3, 3] = np.nan
BAD = {
    "missing": (lambda p: p / "no.nii.gz", "does not exist"),
    "text": (lambda p: written(p / "a.nii.gz", b"hello, this is not an image"), "readable"),
    "text nrrd": (lambda p: written(p / "a.nrrd", b"hello"), "readable"),
    "text without ending": (lambda p: written(p / "a", b"hello"), "readable"),
    "zero bytes": (lambda p: written(p / "a.nii", b""), "readable"),
    "truncated gzip": (lambda p: truncated(p / "a.nii.gz"), "damaged"),
    "truncated plain": (lambda p: truncated(p / "a.nii"), "readable"),
    "all zero": (lambda p: nifti(p / "a.nii.gz", np.zeros(SHAPE, np.int16)), "all zero"),
    "constant": (lambda p: nifti(p / "a.nii.gz", np.full(SHAPE, 7, np.int16)), "contrast"),
    "beyond single precision": (lambda p: nifti(p / "a.nii.gz", with_voxel(1e200)), r"1e\+200, in 1 of .*export"),
    "far below": (lambda p: nifti(p / "a.nii.gz", with_voxel(-1e30)), r"-1e\+30, in 1 of .*export"),
    "nan": (lambda p: nifti(p / "a.nii.gz", NAN), r"NaN or infinite \(1 of"),
    "2D": (lambda p: nifti(p / "a.nii.gz", picture()[:, :, :1]), "at least 3 slices"),
    "2D array": (lambda p: nifti(p / "a.nii.gz", picture()[:, :, 0]), "neither 3D nor 4D"),
    "complex": (lambda p: nifti(p / "a.nii.gz", picture().astype(np.complex64)), "one gray value"),
    "no place in space": (lambda p: with_forms(p / "a.nii", None, None), "does not say how it lies"),
    "contradicting forms": (
        lambda p: with_forms(p / "a.nii", np.eye(4), np.diag([-1, 1, 1, 1])),
        "two ways .*RAS.*LAS.* 22.0 mm apart",
    ),
    "stretched to a template": (
        lambda p: with_forms(p / "a.nii", STRAIGHT * [1.1, 1, 1, 1], STRAIGHT),
        r"two ways .*0.6 x 0.6 x 3.3 mm or .*0.66 x 0.6 x 3.3 mm",
    ),
    "nrrd without directions": (lambda p: nrrd(p / "a.nrrd", "spacings: 1 1 3"), "needs a space such as"),
    "nrrd of no space": (lambda p: nrrd(p / "a.nrrd", "space dimension: 3", *DIRECTIONS), "needs a space such as"),
    "nrrd of the scanner's space": (lambda p: nrrd(p / "a.nrrd", "space: scanner-xyz", *DIRECTIONS), "such as 'left-p"),
    "meta image without directions": (lambda p: meta(p / "a.mha", "ElementSpacing = 1 1 3"), "needs a TransformMatrix"),
    "nrrd with a space alone": (lambda p: nrrd(p / "a.nrrd", "space: LPS"), "and space directions"),
    "negative voxel size": (lambda p: with_size(p / "a.nii", -1), "negative voxel size.*Export"),
    "empty folder": (lambda p: folder(p / "d"), "no DICOM image"),
    "pipe": (lambda p: pipe(p / "a.nii.gz"), "neither a file nor a folder"),
    "link to itself": (lambda p: linked(p / "a.nii.gz", "a.nii.gz"), "correct the link"),
}


@pytest.mark.parametrize("make, match", BAD.values(), ids=BAD.keys())
def test_bad_images_get_one_sentence(tmp_path: Path, make, match: str) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        read_image(make(tmp_path))
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", "/IM0"])
def test_a_name_in_another_encoding_does_not_end_the_program(tmp_path: Path, ending: str) -> None:
    """SimpleITK ended the whole program, a run or a server, at a name that is not UTF-8."""
    plain = tmp_path / f"a{ending}"
    if ending == "/IM0":
        save(plain.parent, slices())
    else:
        sitk.WriteImage(sitk.GetImageFromArray(picture()), str(plain))
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc" + os.fsencode(ending if ending != "/IM0" else "")))
    try:
        (plain.parent if ending == "/IM0" else plain).rename(named)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(ImageError, match="Rename"):
        read_image(named)


def test_corrections_of_a_header_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What nibabel repairs in a header was printed between the lines of a run."""
    path = with_forms(tmp_path / "a.nii", STRAIGHT, STRAIGHT)
    content = bytearray(path.read_bytes())
    content[254:256] = (99).to_bytes(2, "little")
    read_image(written(path, bytes(content)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (picture(np.float32) + 0.5, "whole numbers"),
        (picture(np.int16) + 300, "0 to 255"),
        # The mean of L2 (42) and nothing was T1 (21).
        (np.stack([np.full(SHAPE, 42, np.uint8), np.zeros(SHAPE, np.uint8)], axis=-1), "2 maps"),
    ],
    ids=["fractions", "large", "two in one"],
)
def test_bad_label_maps(tmp_path: Path, data: np.ndarray, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        read_labels(nifti(tmp_path / "a.nii.gz", data))


def test_integers_of_other_tools_are_read_whatever_their_type() -> None:
    affine = np.eye(4)
    for dtype in (bool, np.uint16, np.float32):
        read = as_integers(Volume(np.eye(3, dtype=dtype)[np.newaxis], affine)).data
        assert read.dtype.kind in "iu"
        np.testing.assert_array_equal(read[0], np.eye(3))
    for value in (0.5, np.nan, np.inf, 2.0**40, 1j):
        with pytest.raises(ImageError, match="whole numbers"):
            as_integers(Volume(np.full((2, 2, 2), value), affine))


def test_a_color_image_is_refused(tmp_path: Path) -> None:
    """The first channel would be taken for the gray values."""
    colors = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageError, match="color"):
        read_image(nifti(tmp_path / "a.nii.gz", colors))


def test_numbers_of_another_table_are_not_codes(tmp_path: Path) -> None:
    """A localizer that counts vertebrae from C1 = 1 turned L2 to L5 into T1 to T4, with certainty."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 2, 2] = 41
    np.testing.assert_array_equal(read_codes(nifti(tmp_path / "a.nii.gz", labels)).data, labels)
    labels[3:8, 2, 2] = range(20, 25)
    with pytest.raises(ImageError, match=r"\[20\].*L1 is 41"):
        read_codes(nifti(tmp_path / "a.nii.gz", labels))


def test_float_label_maps_are_understood(tmp_path: Path) -> None:
    labels = (picture() % 54).astype(np.float64)
    np.testing.assert_array_equal(read_labels(nifti(tmp_path / "a.nii.gz", labels)).data, labels)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    """A full disk left half a label map under its final name."""
    target = tmp_path / "out.nii.gz"
    target.write_bytes(b"earlier")

    def fill_the_disk(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    with pytest.raises(StorageError, match="No space left"):
        write_file(target, fill_the_disk)
    assert target.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"]


def test_names() -> None:
    assert stem(Path("sub-01.T2w v2.nii.gz")) == "sub-01.T2w v2"
    assert is_image_name(Path("A.NII.GZ"))
    assert not is_image_name(Path("notes.txt"))
    with pytest.raises(ValueError, match="ending in"):
        write_volume(Path("x.jpg"), np.zeros((2, 2, 2), np.uint8), Grid((2, 2, 2), np.eye(4)))
