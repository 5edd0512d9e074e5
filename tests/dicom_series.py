"""Make small DICOM series for tests: one stack of slices, whole or with a fault."""

import locale
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from mr_object import mr_slices
from pydicom import Dataset
from pydicom.dataset import FileDataset

from totalspineseg_server.io.dicom.headers import uid_from

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SIZE = (13, 11, 5)
"""Columns, rows, slices: all different, and a slice is not a whole number of bytes."""


def turned(degrees: float, axis: int) -> np.ndarray:
    angle = np.deg2rad(degrees)
    i, j = [k for k in range(3) if k != axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turn


def placed(directions: list[list[float]], spacing: tuple[float, float, float], turn: np.ndarray) -> np.ndarray:
    """Return the affine of (column, row, slice) from RAS directions (as columns of a matrix, slice = column x row)."""
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array(directions, dtype=float).T * spacing
    affine[:3, 3] = (-5, 40, 60)
    return affine


SAGITTAL = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
AXIAL = [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]
CORONAL = [[-1, 0, 0], [0, 0, -1], [0, -1, 0]]
STACKS = {
    "sagittal oblique": placed(SAGITTAL, (0.7, 0.9, 3.3), turned(8, 2)),
    "axial": placed(AXIAL, (0.5, 0.5, 4.0), np.eye(3)),
    "coronal double oblique": placed(CORONAL, (1.1, 0.8, 2.0), turned(-12, 0) @ turned(5, 2)),
}
OBLIQUE = STACKS["sagittal oblique"]


@contextmanager
def itk_slices() -> Iterator[Callable[[Path, sitk.Image, Mapping[str, str]], None]]:
    """Yield a function that writes one slice as ITK does, whose writer leaves the process in the locale "C"."""
    writer, before = sitk.ImageFileWriter(), locale.setlocale(locale.LC_ALL)
    writer.KeepOriginalImageUIDOn()

    def write(file: Path, piece: sitk.Image, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(file))
        writer.Execute(piece)

    try:
        yield write
    finally:
        locale.setlocale(locale.LC_ALL, before)


def picture(size: tuple[int, int, int] = SIZE) -> np.ndarray:
    return (np.random.default_rng(0).random(size) * 1000 + 1).astype(np.uint16)


def slices(
    affine: np.ndarray = OBLIQUE,
    size: tuple[int, int, int] = SIZE,
    *,
    pixels: np.ndarray | None = None,
    **tags: Any,
) -> list[FileDataset]:
    """Return the slices of one series in the order of the stack; ``tags`` replace the usual ones."""
    pixels = picture(size) if pixels is None else pixels
    usual = {
        "PatientName": "SYNTHETIC^SMALL",
        "PatientID": "S1",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": uid_from("s"),
        "SeriesInstanceUID": uid_from("e"),
        "FrameOfReferenceUID": uid_from("f"),
        "StudyID": "1",
        "StudyDate": "20260101",
        "StudyTime": "080000",
        "AccessionNumber": "",
        "SeriesNumber": 1,
        "SeriesDescription": "T2",
    }
    usual |= tags
    instances = [
        uid_from("i" if usual["SeriesInstanceUID"] == uid_from("e") else "j", str(k)) for k in range(pixels.shape[2])
    ]
    return list(mr_slices(pixels, affine, instances, usual))


def save(folder: Path, objects: list[FileDataset], change: Callable[[Dataset, int], None] | None = None) -> Path:
    """Write objects into a folder, with file names that are not in the order of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, item in enumerate(objects):
        if change:
            change(item, k)
        item.save_as(folder / f"{(k * 7) % 31:02d}_{len(list(folder.iterdir())):02d}", write_like_original=False)
    return folder


def enhanced(objects: list[FileDataset], instance: str = uid_from("enhanced"), *, shared: bool = True) -> FileDataset:
    """Return the same slices as frames of one enhanced MR object, in their order."""
    first = objects[0]
    image = FileDataset(None, {}, file_meta=first.file_meta, preamble=b"\0" * 128)
    image.is_little_endian, image.is_implicit_VR = True, False
    image.update(first)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
    ):
        delattr(image, keyword)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = instance
    image.NumberOfFrames = len(objects)
    image.PixelData = b"".join(item.PixelData for item in objects)
    image.SharedFunctionalGroupsSequence = [_groups(first, place=False)] if shared else [Dataset()]
    image.PerFrameFunctionalGroupsSequence = [_groups(item, place=True, rest=not shared) for item in objects]
    return image


def _groups(item: Dataset, *, place: bool, rest: bool = True) -> Dataset:
    groups = Dataset()
    if place:
        position = Dataset()
        position.ImagePositionPatient = item.ImagePositionPatient
        groups.PlanePositionSequence = [position]
    if rest or not place:
        orientation, measures = Dataset(), Dataset()
        orientation.ImageOrientationPatient = item.ImageOrientationPatient
        measures.PixelSpacing = item.PixelSpacing
        measures.SliceThickness = item.SliceThickness
        groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = [orientation], [measures]
    return groups


def at(affine: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    """Return the RAS mm of a voxel."""
    return np.asarray(affine @ [*voxel, 1])[:3]
