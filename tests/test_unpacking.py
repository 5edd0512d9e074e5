"""Tests that small files cannot fill the memory: unpacking is bounded, and the answer is one sentence."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MRImageStorage

from totalspineseg_server.corrections.submission import read_submission
from totalspineseg_server.errors import ImageError, LabelError, MemoryShortageError
from totalspineseg_server.io import nifti as nifti_files
from totalspineseg_server.io import volumes
from totalspineseg_server.io.dicom import headers
from totalspineseg_server.io.dicom.headers import read_header
from totalspineseg_server.io.dicom.seg_object import is_seg, open_seg
from totalspineseg_server.io.volumes import read_image, read_labels

SHAPE = (12, 14, 6)
HUGE = (30000, 30000, 30000)
MIB = 1 << 20


def picture() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)


def nifti(*, shape: tuple[int, ...] = SHAPE, more: int = 0, kind: type = nib.Nifti1Image) -> bytes:
    """A NIfTI file whose header states ``shape``, with so many bytes more or less than it should have."""
    content = bytearray(kind(picture(), np.eye(4)).to_bytes())
    header = kind.header_class(bytes(content[: kind.header_class.template_dtype.itemsize]))
    header.set_data_shape(shape)
    content[: len(header.binaryblock)] = header.binaryblock
    return bytes(content) + bytes(more) if more >= 0 else bytes(content[:more])


def nrrd(shape: tuple[int, ...], encoding: str, content: bytes) -> bytes:
    head = ["NRRD0004", "type: unsigned char", "dimension: 3", "space: left-posterior-superior"]
    head += [f"sizes: {shape[0]} {shape[1]} {shape[2]}", "space directions: (1,0,0) (0,1,0) (0,0,1)"]
    return "\n".join([*head, "space origin: (0,0,0)", f"encoding: {encoding}", "", ""]).encode() + content


def meta(shape: tuple[int, ...]) -> bytes:
    content = zlib.compress(bytes(1000))
    head = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "CompressedData = True"]
    head += [f"CompressedDataSize = {len(content)}", "TransformMatrix = 1 0 0 0 1 0 0 0 1"]
    head += [f"DimSize = {shape[0]} {shape[1]} {shape[2]}", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL", ""]
    return "\n".join(head).encode() + content


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_no_more_is_unpacked_than_the_header_describes(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A label of 2.6 MB, whose header stated 64 voxels, took 5 GB of the server's memory."""
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(more=64 * MIB)))
    with little_memory():
        read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize(("more", "match"), [(1, ""), (1000, ""), (-1, "readable NIfTI"), (0, "")])
def test_a_nifti_file_holds_what_its_header_describes(
    tmp_path: Path, kind: type, ending: str, more: int, match: str
) -> None:
    content, path = nifti(more=more, kind=kind), tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(content) if ending == "nii.gz" else content)
    if not match:
        np.testing.assert_array_equal(read_image(path).data, picture())
        return
    with pytest.raises(ImageError, match=match):
        read_image(path)


def test_a_damaged_end_of_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    """All voxels are read by then, but the check sum shows that some are wrong."""
    content = bytearray(gzip.compress(nifti()))
    content[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ImageError, match="is damaged or incomplete"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    "junk", [b"junk", b"junk" * 1000, bytes(5) + b"junk", b"\x1f"], ids=["4", "4000", "after 0", "1"]
)
def test_what_lies_behind_a_compressed_file_is_ignored(tmp_path: Path, junk: bytes) -> None:
    """The file was called damaged, although gzip unpacks it."""
    halves = nifti()[:500], nifti()[500:]
    for content in (gzip.compress(nifti()), b"".join(map(gzip.compress, halves))):
        (tmp_path / "a.nii.gz").write_bytes(content + junk)
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").data, picture())


def test_a_damaged_file_with_something_behind_it_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(nifti()) + b"junk")
    content[-12] ^= 1
    for damaged in (content, gzip.compress(nifti())[:-9], gzip.compress(nifti())[:-1]):
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        with pytest.raises(ImageError, match="is damaged or incomplete"):
            read_image(tmp_path / "a.nii.gz")


def test_what_is_ignored_behind_a_file_fills_no_memory(tmp_path: Path) -> None:
    """A member behind the voxels, before the junk, unpacks to many times what is read of any file here."""
    content = gzip.compress(nifti()) + gzip.compress(bytes(64 * MIB)) + b"junk"
    (tmp_path / "a.nii.gz").write_bytes(content)
    with little_memory():
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").data, picture())


def test_extensions_of_a_header_are_passed_over(tmp_path: Path) -> None:
    """An extension with a negative length, or one of 2 GiB, was unpacked to its end."""
    image = nib.Nifti1Image(picture(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"by hand"))
    content = bytearray(image.to_bytes())
    content[352:356] = np.int32(-32).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").data, picture())


@pytest.mark.parametrize("shape", [(1300, 1300, 1300), HUGE], ids=str)
@pytest.mark.parametrize(
    "name",
    ["a.nii", "a.nii.gz", "a.nrrd", "raw.nrrd", "a.mha"],
)
def test_a_header_that_describes_more_than_the_file_can_hold_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    """2 GB of memory were used for a NRRD file of one kilobyte; for a MetaImage they were read as voxels."""
    content = {
        "a.nii": nifti(shape=shape),
        "a.nii.gz": gzip.compress(nifti(shape=shape)),
        "a.nrrd": nrrd(shape, "gzip", gzip.compress(bytes(1000))),
        "raw.nrrd": nrrd(shape, "raw", bytes(1000)),
        "a.mha": meta(shape),
    }[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_labels):
        with pytest.raises(ImageError, match=r"bytes of voxels"):
            read(tmp_path / name)
    if name.endswith(".nrrd"):
        with pytest.raises(ImageError, match="is incomplete"):
            read_submission(tmp_path / name, None)


@pytest.mark.parametrize("shape", [(0, 14, 6), (-12, -14, 6)], ids=str)
def test_a_header_of_no_voxels_is_one_sentence(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """As a label, it was an error of the server itself."""
    content = bytearray(nifti())
    content[42:48] = np.array(shape, np.int16).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ImageError, match=r"no voxels|readable NIfTI"):
        read_labels(tmp_path / "a.nii")


def test_a_compressed_file_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti_files, "MAX_BYTES", 1000)
    content = nifti()
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").data, picture())
    with pytest.raises(ImageError, match=r"0 MiB of voxels"):
        read_image(tmp_path / "a.nii.gz")


def dicom(*, deflated: bool, damaged: bool = False, uid: str = "1.2.3") -> bytes:
    """An MR object, or one that claims to be one, with 64 KiB of zeros."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, uid
    item = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    item.is_little_endian, item.is_implicit_VR = True, False
    item.SOPClassUID, item.Rows, item.Columns = MRImageStorage, 256, 256
    item.BitsAllocated, item.PixelData = 8, bytes(1 << 16)
    file = BytesIO()
    item.save_as(file, write_like_original=False)
    return file.getvalue()[: -20 if damaged else None]


@pytest.mark.filterwarnings("ignore:The value length .* exceeds the maximum length")
def test_a_deflated_dicom_file_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 2 MB could take 2 GB, and a damaged one was an error of the server itself."""
    for deflated in (True, False):
        (tmp_path / "a.dcm").write_bytes(dicom(deflated=deflated))
        header = read_header(tmp_path / "a.dcm")
        assert header is not None
        assert header.Rows == 256
    monkeypatch.setattr(headers, "MAX_BYTES", 1 << 15)
    assert read_header(tmp_path / "a.dcm") is not None, "what is not deflated is as large as its file"
    (tmp_path / "a.dcm").write_bytes(dicom(deflated=True))
    with pytest.raises(ImageError, match="unpacks to more than"):
        read_header(tmp_path / "a.dcm")
    # With an element so long that the one about the deflated rest comes far behind.
    for uid in ("1.2.3", "1.2" * 2000):
        with pytest.raises(LabelError, match="unpacks to more than"):
            open_seg(dicom(deflated=True, uid=uid))
    monkeypatch.undo()
    (tmp_path / "a.dcm").write_bytes(dicom(deflated=True, damaged=True))
    with pytest.raises(ImageError, match="damaged"):
        read_header(tmp_path / "a.dcm")
    assert not is_seg(dicom(deflated=True, damaged=True))


def test_too_little_memory_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(volumes, "read_nifti", full)
    (tmp_path / "a.nii").write_bytes(nifti())
    with pytest.raises(MemoryShortageError, match=r"memory .*'a.nii'"):
        read_image(tmp_path / "a.nii")
