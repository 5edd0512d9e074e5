"""Read the headers of one image series, from a folder, from files or from a PACS."""

import hashlib
import re
import uuid
import zlib
from collections.abc import Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import pydicom
from pydicom import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import CHUNK_BYTES
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.nifti import MAX_BYTES

Sources: TypeAlias = Path | Sequence[Path | Dataset]
"""A folder of one series, one file, or the files or headers of a series."""

SEG_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, and Label Map Segmentation Storage."""
_DERIVED_CLASSES: Final = (*SEG_CLASSES, "1.2.840.10008.5.1.4.1.1.66.5", "1.2.840.10008.5.1.4.1.1.481.2")
"""Classes that have pixels but are made from images: segmentations, surfaces, dose."""
_IMAGE_CLASSES: Final = (
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
)
"""MR, enhanced MR, legacy converted enhanced MR, CT and enhanced CT; a file of these classes without rows is
truncated."""
_ONE_OWNER: Final = {"PatientID": "patients", "PatientBirthDate": "dates of birth", "StudyInstanceUID": "studies"}
"""Attributes that all files of a series must share, and what to call them if they differ, because some programs give
several series the same UID. Their values identify a patient, so they never appear in a message.
"""
_PLAIN_SYNTAXES: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes of pixels that are not compressed."""
_PREAMBLE: Final = 128
_MAGIC: Final = b"DICM"
_BARE_STARTS: Final = (b"\x02\x00", b"\x08\x00")
"""Possible first bytes of an object without a preamble: its first element belongs to group 2 or 8, little endian."""
_SUFFIXES: Final = (".dcm", ".ima", ".dicom")
"""Endings of DICOM files; a file with one of them that is not DICOM is truncated."""
UNREADABLE: Final = (OSError, EOFError, ValueError, AttributeError, KeyError, NotImplementedError, zlib.error)
"""Errors that reading a damaged file may raise."""
_CAPTURE_ROOT: Final = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary Capture Image Storage and its multi-frame kinds."""
LOCALIZER: Final = re.compile(
    r"(?<![a-z])(loc|locali[sz]ers?|scout|survey|topogram|3[- ]?planes?)(?![a-z])", re.IGNORECASE
)
"""Pattern of the descriptions of localizers, series that only show where the others lie."""
MODALITY: Final = "MR"
"""Modality of the images that the networks are made for."""
MIN_SLICES: Final = 3
"""Smallest number of instances. Fewer are a localizer or a screenshot, unless one instance has many frames."""


def read_headers(sources: Sources) -> tuple[Dataset, ...]:
    """Return the headers of the images of one series, without pixels.

    Segmentations, reports, presentation states and the like are left out, and so are screenshots beside slices.

    Args:
        sources: Folder, file, files, or datasets. Datasets are not modified.

    Returns:
        One header for each image object, in the order given (files of a folder by name); never empty.

    Raises:
        ImageError: There is no DICOM image, or there are images of several series, patients or studies.
    """
    name = sources.name if isinstance(sources, Path) else "the files"
    headers = [header for header in _all_headers(sources) if _is_image(header)]
    if not headers:
        raise ImageError(dicom_messages.NO_IMAGE_FILES.format(name=name))
    headers = [header for header in headers if not is_capture(header)] or headers
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if len(series) > 1:
        raise ImageError(dicom_messages.SEVERAL_SERIES.format(count=len(series), name=name))
    for keyword, owner in _ONE_OWNER.items():
        files: dict[str, str] = {}
        for header in headers:
            if value := str(header.get(keyword) or "").strip():
                files.setdefault(value, Path(str(getattr(header, "filename", None) or "a file")).name)
        if len(files) > 1:
            examples = " and ".join(map(repr, list(files.values())[:3]))
            raise ImageError(
                dicom_messages.SEVERAL_OWNERS.format(name=name, count=len(files), owners=owner, examples=examples)
            )
    return tuple(headers)


def read_header(path: Path) -> Dataset | None:
    """Return the header of a DICOM file, or None for a file that is not DICOM.

    Raises:
        ImageError: The DICOM file is damaged or too large; leaving it out would shorten the scan.
    """
    damaged = ImageError(dicom_messages.DAMAGED.format(name=path.name))
    try:
        header = _parsed(path)
    except ImageError:
        raise
    except UNREADABLE as error:
        raise damaged from error
    cut = path.suffix.lower() in _SUFFIXES if header is None else _is_cut(header, path.stat().st_size)
    if cut:
        raise damaged
    return header


def is_dicom(path: Path) -> bool:
    """Return whether a file is a DICOM object, damaged or not, by its content; False if it cannot be read."""
    try:
        return _is_marked(path) or _parsed(path) is not None
    except UNREADABLE:
        return False


def _parsed(path: Path) -> Dataset | None:
    marked = _is_marked(path)
    if not marked and not _start(path).startswith(_BARE_STARTS):
        return None
    # Some archives write objects without the DICOM preamble.
    require_bounded(path)
    header = pydicom.dcmread(path, stop_before_pixels=True, force=not marked)
    # pydicom does not set the name of a deflated file.
    header.filename = str(path)
    return header if marked or sop_class(header) else None


def _is_marked(path: Path) -> bool:
    """Return whether a file is marked as DICOM (PS3.10)."""
    return _start(path)[_PREAMBLE:] == _MAGIC


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_PREAMBLE + len(_MAGIC))


def _is_cut(header: Dataset, size_bytes: int) -> bool:
    """Return whether an image has no rows, or states more uncompressed pixels than its file can hold."""
    return sop_class(header) in _IMAGE_CLASSES and (not header.get("Rows") or pixel_bytes(header) > size_bytes)


def pixel_bytes(header: Dataset) -> int:
    """Return how many bytes the pixels of an image take according to its header; 0 if they are compressed."""
    meta: Any = getattr(header, "file_meta", None) or {}
    if meta.get("TransferSyntaxUID") not in _PLAIN_SYNTAXES:
        return 0
    counts = [int(header.get(k) or 1) for k in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    return prod(counts) * int(header.get("BitsAllocated") or 0) // 8


def is_deflated(path: Path) -> bool:
    """Return whether a DICOM file is deflated as a whole."""
    with path.open("rb") as file:
        return _is_deflated(file)


def _is_deflated(file: BinaryIO) -> bool:
    """Return whether a file is deflated as a whole; this leaves the reading position after the header."""
    read_preamble(file, force=True)
    # Decide with the function that dcmread uses: another one could come to another result.
    return bool(_read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian)


def require_bounded(source: Path | bytes) -> None:
    """Check that a DICOM file does not unpack to more than fits into memory.

    A file may be deflated as a whole (PS3.5 A.5): pydicom unpacks it at once, however large.

    Args:
        source: The file, or its content.

    Raises:
        ImageError: The file unpacks to more than ``MAX_BYTES``.
        zlib.error: The file is damaged.
    """
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if not _is_deflated(file):
            return
        inflater, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, b""
        while total <= MAX_BYTES and (chunk := rest or file.read(CHUNK_BYTES)):
            total += len(inflater.decompress(chunk, CHUNK_BYTES))
            rest = inflater.unconsumed_tail
    if total > MAX_BYTES:
        raise ImageError(dicom_messages.UNPACKS_TOO_LARGE.format(limit=MAX_BYTES >> 20))


def sop_class(header: Dataset) -> str:
    """Return the UID of the kind of object; "" if it states none."""
    return _uid(header, "SOPClassUID", "MediaStorageSOPClassUID")


def sop_instance(header: Dataset) -> str:
    """Return the UID of the object; "" if it has none."""
    return _uid(header, "SOPInstanceUID", "MediaStorageSOPInstanceUID")


def is_capture(header: Dataset) -> bool:
    """Return whether the object is a secondary capture, such as a screenshot, without a position in the patient."""
    kind = sop_class(header)
    return (kind == _CAPTURE_ROOT or kind.startswith(_CAPTURE_ROOT + ".")) and not header.get("ImagePositionPatient")


def _all_headers(sources: Sources) -> list[Dataset]:
    if isinstance(sources, Path):
        if not sources.is_dir():
            return _require_dicom(sources)
        files = sorted(path for path in sources.iterdir() if path.is_file() and not path.name.startswith("."))
        return [header for path in files if (header := read_header(path)) is not None]
    return [header for item in sources for header in (_require_dicom(item) if isinstance(item, Path) else [item])]


def _require_dicom(path: Path) -> list[Dataset]:
    header = read_header(path)
    if header is None:
        raise ImageError(dicom_messages.UNREADABLE_FILE.format(name=path.name))
    return [header]


def _is_image(header: Dataset) -> bool:
    return bool(header.get("Rows")) and bool(header.get("Columns")) and sop_class(header) not in _DERIVED_CLASSES


def _uid(header: Dataset, keyword: str, meta_keyword: str) -> str:
    meta: Any = getattr(header, "file_meta", None) or {}
    return str(header.get(keyword) or meta.get(meta_keyword, ""))


def uid_from(*parts: str) -> str:
    """Return a DICOM UID that depends only on ``parts``, under 2.25, the root for UUIDs."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"


def is_localizer(description: str) -> bool:
    """Return whether a series is a localizer by its description."""
    return LOCALIZER.search(description) is not None


def may_be_volume(instances: int) -> bool:
    """Return whether a series with this number of instances may be a volume; a single one may hold many frames."""
    return instances <= 1 or instances >= MIN_SLICES
