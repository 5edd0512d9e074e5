"""Limit DICOM files that are deflated as a whole (PS3.5 A.5): pydicom unpacks them at once, however large."""

import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import CHUNK_BYTES
from totalspineseg_server.unpacking import MAX_BYTES


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
        raise ImageError(f"The DICOM file unpacks to more than {MAX_BYTES >> 20} MiB. Send fewer frames.")
