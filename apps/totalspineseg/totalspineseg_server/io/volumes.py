"""Read and write volumes: NIfTI, NRRD (and other formats of SimpleITK), DICOM series.

No file is ever incomplete under its final name: a result is written beside its place, synced, and renamed.
"""

from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, L1, NUMBER_TABLES, OWN_NUMBERS
from totalspineseg_server.errors import ImageError, MemoryShortageError, StorageError
from totalspineseg_server.files import write_file
from totalspineseg_server.geometry import AnyArray, Grid, Volume, to_ras
from totalspineseg_server.image import Image
from totalspineseg_server.io import io_messages
from totalspineseg_server.io.file_content import itk_name, missing_content
from totalspineseg_server.io.nifti import ITK_SKEW_DEG, read_nifti, require_bounded
from totalspineseg_server.numbering.linter import is_upside_down

NIFTI_SUFFIXES = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
"""File name endings of images that are read, longest first."""
WRITTEN_SUFFIXES: Final = (*NIFTI_SUFFIXES, ".nrrd")
"""File name endings with which label maps are written, longest first."""
OTHER_SUFFIXES: Final = (
    *(".img", ".img.gz", ".hdr", ".hdr.gz", ".mgz", ".mgh", ".mnc", ".par", ".rec", ".vti", ".gipl", ".gipl.gz"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".zip", ".tar", ".tar.gz", ".tgz"),
)
"""File name endings of images, and of archives, that are not read."""
NAMED_FILES: Final = 5
"""Largest number of files that a sentence names."""
NRRD_SUFFIXES: Final = (".nrrd", ".nhdr")
HEADER_SUFFIXES: Final = (".nhdr", ".mhd")
"""Endings of headers whose voxels are in another file."""
NRRD_SPACE: Final = "NRRD_space"
"""ITK's name for the field that states the space of a NRRD file's directions."""
NRRD_DIRECTIONS: Final = (b"space directions",)
"""Name of the field of a NRRD header that states the direction of its axes."""
META_DIRECTIONS: Final = (b"TransformMatrix", b"Rotation", b"Orientation")
"""Names of the field of a MetaImage header that states the direction of its axes."""
HEADER_BYTES: Final = 8192
"""Bytes at the start of a NRRD or MetaImage file that contain the fields of its geometry, which are short lines."""
MIN_SLICES: Final = 3
"""Smallest number of slices: one of two sagittal slices may miss the canal, and then levels get wrong names that seem
    certain.
"""
LARGEST_VALUE: Final = 1e18
"""Largest value, up or down, of which networks can compute: the square of a larger one may have no place in single
precision. Scanners stay far below it."""
GZIP_LEVEL = 1
"""Compression level of isal, 0..3. Label maps shrink a hundredfold at any level from 1 on, and 1 is the fastest."""

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
DICOM_INDEX: Final = "DICOMDIR"
"""Name of the index at the top of a disc; it is written as DICOM, but is not an image."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stem(path: Path) -> str:
    """Return the file name without its image ending ("sub-01.T2w.nii.gz" -> "sub-01.T2w")."""
    for suffix in IMAGE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_image_name(path: Path) -> bool:
    """Return whether a file name has the ending of an image that this project reads."""
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def is_other_name(path: Path) -> bool:
    """Return whether the file name ends like an image, or an archive of images, that this project does not read."""
    return path.name.lower().endswith(OTHER_SUFFIXES)


def may_be_dicom(path: Path) -> bool:
    """Return whether a file may be a DICOM image by its name: it may have any, or none, but not that of another
    image, or of the index of a disc."""
    return not is_image_name(path) and path.name.upper() != DICOM_INDEX


def not_read_sentence(names: Collection[str], endings: tuple[str, ...] = IMAGE_SUFFIXES) -> str:
    """Return a sentence about files that are not read because of their kind.

    Args:
        names: How to name them.
        endings: Endings of the kinds that are read.

    Returns:
        What to do with them; "" for none.
    """
    if not names:
        return ""
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    return io_messages.OTHER_KINDS.format(
        names=", ".join(map(repr, sorted(names)[:NAMED_FILES])),
        more=more,
        endings=", ".join(endings[:-1]),
        last=endings[-1],
    )


def images_in(folder: Path, pattern: str, endings: tuple[str, ...] = IMAGE_SUFFIXES) -> tuple[Path, ...]:
    """Return the image files of a folder, their endings in upper or lower case.

    Args:
        folder: The folder; it need not exist.
        pattern: Pattern of the places to look in, as for ``Path.glob``: "*" for the folder itself.
        endings: Endings in lower case.

    Returns:
        The files in alphabetical order, without those whose name begins with a dot.
    """
    found = (path for path in folder.glob(pattern) if path.name.lower().endswith(endings))
    return tuple(sorted(path for path in found if not path.name.startswith(".") and not path.is_dir()))


def image_named(folder: Path, name: str) -> Path | None:
    """Return the image file of a name in a folder, whatever the case of its ending.

    Args:
        folder: The folder; it need not exist.
        name: The file's name without its ending.

    Returns:
        The file whose ending is first in ``IMAGE_SUFFIXES``; None if there is none.
    """
    plain = (folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    if found := next((path for path in plain if path.is_file()), None):
        return found
    files = [path for path in folder.iterdir() if is_image_name(path)] if folder.is_dir() else []
    return min((p for p in files if stem(p) == name and p.is_file()), key=_rank, default=None)


def _rank(path: Path) -> int:
    return next(k for k, suffix in enumerate(IMAGE_SUFFIXES) if path.name.lower().endswith(suffix))


def read_image(path: Path) -> Image:
    """Read an image to be segmented.

    Args:
        path: NIfTI, NRRD or MetaImage file, or a folder (or one file) of a DICOM series.

    Returns:
        The image as stored (any orientation), with warnings. 4D is averaged over the last axis, as float32.

    Raises:
        ImageError: The file is not readable, not an image, not 3D or 4D, empty, not finite, or constant.
    """
    image = _read(path, average=True)
    require_usable(image)
    return image


def read_labels(path: Path) -> Volume:
    """Read a label map; like ``read_image``, but only whole numbers 0..255 are allowed, and an empty map is allowed.

    Returns:
        uint8 volume.

    Raises:
        ImageError: The file is not readable, 4D, or has values that are not whole numbers 0..255.
    """
    return as_labels(read_integers(path))


def as_labels(volume: Volume) -> Volume:
    """Return a map of whole numbers as one of uint8.

    Raises:
        ImageError: It has values outside 0..255.
    """
    if volume.data.min() < 0 or volume.data.max() > np.iinfo(np.uint8).max:
        raise ImageError(io_messages.OUT_OF_RANGE)
    return Volume(volume.data.astype(np.uint8, copy=False), volume.affine)


def read_integers(path: Path) -> Volume:
    """Read a label map of any whole numbers, as other tools write them.

    Returns:
        Volume of an integer type.

    Raises:
        ImageError: The file is not readable, 4D, or has values that are not whole numbers.
    """
    return as_integers(_read(path, average=False))


def as_integers(volume: Volume) -> Volume:
    """Return a label map with values of an integer type.

    Raises:
        ImageError: It has values that are not whole numbers.
    """
    if volume.data.dtype.kind == "b":
        return Volume(volume.data.astype(np.uint8), volume.affine)
    if volume.data.dtype.kind in "iu":
        return volume
    if volume.data.dtype.kind != "f" or not np.isfinite(volume.data).all():
        raise ImageError(io_messages.NOT_WHOLE)
    if (np.abs(volume.data) > np.iinfo(np.int32).max).any() or not np.array_equal(np.rint(volume.data), volume.data):
        raise ImageError(io_messages.FRACTIONS)
    return Volume(volume.data.astype(np.int32), volume.affine)


def read_codes(path: Path, numbers: str = OWN_NUMBERS) -> Volume:
    """Read a label map of levels, such as a localizer; like ``read_labels``.

    Args:
        path: The file.
        numbers: The numbers in it: ``OWN_NUMBERS``, or the name of a table in ``NUMBER_TABLES``.

    Returns:
        uint8 volume of codes.

    Raises:
        ImageError: As in ``read_labels``; also for values that are not codes, or levels that run upward: in another
            table, 22 is L3 and not T2.
    """
    volume = read_labels(path) if numbers == OWN_NUMBERS else read_numbered(path, numbers)
    return as_codes(volume, repr(path.name), io_messages.NAME_PROGRAM)


def as_codes(volume: Volume, name: str, hint: str = "") -> Volume:
    """Return a label map whose values are output codes, as it is.

    Args:
        volume: uint8. Not modified.
        name: How to name it in a message.
        hint: Another remedy, for the message.

    Raises:
        ImageError: See ``read_codes``.
    """
    hint = f" {hint}" if hint else ""
    counts = np.bincount(volume.data.ravel(order="K"), minlength=256)
    if strangers := [int(v) for v in np.flatnonzero(counts) if v != BACKGROUND and v not in BY_CODE]:
        raise ImageError(io_messages.OTHER_CODES.format(name=name, strangers=strangers[:5], l1=L1, hint=hint))
    if is_upside_down(to_ras(volume).data):
        raise ImageError(io_messages.UPSIDE_DOWN.format(name=name, hint=hint))
    return volume


def read_numbered(path: Path, numbers: str) -> Volume:
    """Read a label map in another program's numbers as one in output codes.

    Args:
        path: As for ``read_labels``.
        numbers: Name of a table in ``NUMBER_TABLES``.

    Returns:
        uint8 volume of codes; numbers without a structure in this project become background.

    Raises:
        ImageError: As in ``read_integers``; also for values that the table does not have.
    """
    volume = read_integers(path)
    present = [int(value) for value in np.unique(volume.data) if value != BACKGROUND]
    codes = NUMBER_TABLES[numbers].codes_of(present)
    if strangers := [value for value in present if value not in codes]:
        raise ImageError(io_messages.OTHER_NUMBERS.format(name=path.name, strangers=strangers[:5], numbers=numbers))
    order = np.array(sorted({BACKGROUND, *present}))
    targets = np.array([codes.get(int(value), BACKGROUND) for value in order], dtype=np.uint8)
    return Volume(targets[np.searchsorted(order, volume.data)], volume.affine)


def as_image(source: Any, affine: Any = None, *, usable: bool = True) -> Image:
    """Return an image of another library, or an array, as one to be segmented.

    Args:
        source: nibabel or SimpleITK image, or array (X, Y, Z) or (X, Y, Z, T). Not modified.
        affine: (4, 4), voxel index -> RAS mm, of an array.
        usable: Whether it must be usable as an image, see ``require_usable``; 4D is then averaged over the last axis.

    Raises:
        ImageError: It is neither; an array comes without its affine; or it is not usable.
    """
    if isinstance(source, sitk.Image):
        image = _from_sitk(source, average=usable)
    elif isinstance(source, nib.spatialimages.SpatialImage):
        image = Image(_to_3d(np.asanyarray(source.dataobj), average=usable), source.affine)
    elif affine is None:
        raise ImageError(
            f"expected a path, a nibabel or SimpleITK image, or an array with its affine, got {type(source).__name__}"
        )
    else:
        image = Image(_to_3d(np.asarray(source), average=usable), np.asarray(affine))
    if usable:
        require_usable(image)
    return image


def require_usable(volume: Volume) -> None:
    """Check that an image can show a spine at all.

    Raises:
        ImageError: 2D, complex or color values, NaN or infinity, values beyond ``LARGEST_VALUE``, or the same value
            everywhere.
    """
    data = volume.data
    if min(data.shape) < MIN_SLICES:
        raise ImageError(io_messages.TOO_FEW_SLICES.format(slices=min(data.shape), shape=data.shape, needed=MIN_SLICES))
    if data.dtype.kind not in "fiub":
        raise ImageError(io_messages.NOT_GRAY.format(kind=data.dtype))
    low, high = data.min(), data.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(data.size - np.isfinite(data).sum())
        raise ImageError(io_messages.NOT_FINITE.format(bad=bad, size=data.size))
    if max(-float(low), float(high)) > LARGEST_VALUE:
        bad, value = int(np.count_nonzero((data < -LARGEST_VALUE) | (data > LARGEST_VALUE))), max(low, high, key=abs)
        raise ImageError(io_messages.TOO_LARGE_VALUES.format(value=value, bad=bad, size=data.size))
    if low == high:
        kind = "all zero" if low == 0 else f"all {low!r}"
        raise ImageError(io_messages.NO_CONTRAST.format(kind=kind))


def _read(path: Path, *, average: bool) -> Image:
    if not path.is_file() and not path.is_dir():
        raise ImageError(_elsewhere(path) or io_messages.NO_FILE.format(name=path.name))
    try:
        if path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES):
            data, affine = read_nifti(path)
            return Image(_to_3d(data, average=average), affine)
        if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
            image = open_itk(path)
            _require_oriented(image, path)
            return _from_sitk(image, average=average)
        return _read_dicom(path)
    except StorageError:
        raise
    except MemoryError as error:
        raise MemoryShortageError(io_messages.NO_MEMORY.format(name=path.name)) from error
    except _UNREADABLE as error:
        if where := _elsewhere(path):
            raise ImageError(where) from error
        if isinstance(error, ImageError):
            raise
        raise ImageError(io_messages.UNREADABLE.format(name=path.name, reason=_reason(error))) from error


def _elsewhere(path: Path) -> str:
    """Return a sentence that says where the content of a file is; "" if it is here, or if there is no file."""
    try:
        why = missing_content(path)
    except OSError:
        return ""
    return f"{path.name!r} {why}." if why else ""


def open_itk(path: Path) -> sitk.Image:
    """Read a NRRD or MetaImage file whose header describes no more voxels than the file can hold.

    Raises:
        ImageError: The header describes more, or too many.
        RuntimeError: The file cannot be read.
    """
    reader = sitk.ImageFileReader()
    # ITK by itself finds no reader for a MetaImage whose ending is in capitals.
    reader.SetImageIO("NrrdImageIO" if path.name.lower().endswith(NRRD_SUFFIXES) else "MetaImageIO")
    reader.SetFileName(itk_name(path))
    reader.ReadImageInformation()
    one = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    if not path.name.lower().endswith(HEADER_SUFFIXES):
        voxels = prod(reader.GetSize()) * reader.GetNumberOfComponents()
        require_bounded(path, voxels * one.GetSizeOfPixelComponent())
    return reader.Execute()


def _reason(error: Exception) -> str:
    """Return the last line of a library's message, without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return type(error).__name__ if "/" in text else text[:160]


def _to_3d(data: AnyArray, *, average: bool) -> AnyArray:
    """Return 3D data unchanged; average 4D (and 5D with a last axis of one) over the last axis if ``average`` is
    set."""
    while data.ndim > 4 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.dtype.names is not None:
        raise ImageError(io_messages.COLOR_IMAGE)
    if data.ndim == 4:
        if data.shape[-1] == 1:
            return data[..., 0]
        if not average:
            raise ImageError(io_messages.SEVERAL_MAPS.format(count=data.shape[-1]))
        mean: AnyArray = data.mean(axis=-1, dtype=np.float32)
        return mean
    if data.ndim != 3:
        raise ImageError(io_messages.NOT_3D.format(shape=data.shape))
    return data


def _read_dicom(path: Path) -> Image:
    # Import here, because importing pydicom takes longer than reading a NIfTI image.
    from totalspineseg_server.io.dicom.series import read_series

    return read_series(path)


def _require_oriented(image: sitk.Image, path: Path) -> None:
    """Check that a NRRD or MetaImage header states the direction of its axes; ITK assumes one if it does not."""
    if path.name.lower().endswith(NRRD_SUFFIXES):
        # ITK converts known spaces to LPS, and writes no space for more than three dimensions.
        known = image.GetDimension() != 3 or (
            image.HasMetaDataKey(NRRD_SPACE) and image.GetMetaData(NRRD_SPACE) == "left-posterior-superior"
        )
        known = known and _has_field(path, b":", NRRD_DIRECTIONS)
        field = io_messages.SPACE_FIELDS
    else:
        known, field = _has_field(path, b"=", META_DIRECTIONS), "a TransformMatrix"
    if not known:
        raise ImageError(io_messages.NO_SPACE.format(name=path.name, field=field))


def _has_field(path: Path, separator: bytes, names: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    return any(line.split(separator)[0].strip() in names for line in head.splitlines())


def _from_sitk(image: sitk.Image, *, average: bool) -> Image:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(io_messages.SEVERAL_VALUES.format(count=image.GetNumberOfComponentsPerPixel()))
    data = _to_3d(sitk.GetArrayViewFromImage(image).transpose().copy(), average=average)
    affine = np.eye(4)
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return Image(data, _LPS_TO_RAS @ affine)


def write_volume(path: Path, data: AnyArray, grid: Grid) -> None:
    """Write an array as NIfTI or NRRD, depending on the ending of ``path``; it appears complete or not at all.

    Args:
        path: Final name, ending in .nii, .nii.gz or .nrrd; its folder exists.
        data: (X, Y, Z), dtype kept (bool as uint8). Not modified.
        grid: Grid of the voxels.

    Raises:
        ValueError: Another ending.
        StorageError: The file could not be written; nothing is left under ``path``.
    """
    data = data.astype(np.uint8) if data.dtype == bool else data
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        write_file(path, lambda temporary: _write_nifti(temporary, data, grid, path.name.lower().endswith(".gz")))
    elif path.name.lower().endswith(".nrrd"):
        write_file(path, lambda temporary: _write_nrrd(temporary, data, grid))
    else:
        raise ValueError(f"expected an output name ending in .nii, .nii.gz or .nrrd, got {path.name!r}")


def _write_nifti(path: Path, data: AnyArray, grid: Grid, compress: bool) -> None:
    image = nib.Nifti1Image(data, grid.affine)
    # A qform cannot store a skew: beside the sform it would place the image in a second way.
    image.set_qform(grid.affine, code=0 if grid.skew_deg > ITK_SKEW_DEG else 1)
    image.set_sform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    path.write_bytes(igzip.compress(content, GZIP_LEVEL, mtime=0) if compress else content)


def _write_nrrd(path: Path, data: AnyArray, grid: Grid) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose()))
    lps = _LPS_TO_RAS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.array(grid.spacing)).ravel().tolist())
    sitk.WriteImage(image, itk_name(path), useCompression=True)
