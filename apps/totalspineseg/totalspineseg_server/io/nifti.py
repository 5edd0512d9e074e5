"""Read NIfTI files: the voxels that the header describes, and their position.

A few kilobytes, or a line of a header, can demand all memory of a machine, so what a file may unpack to is limited.
"""

import logging
import zlib
from io import BytesIO
from itertools import product
from math import prod
from pathlib import Path
from typing import IO, Final

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.affines import apply_affine
from nibabel.arrayproxy import ArrayProxy

from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import CHUNK_BYTES
from totalspineseg_server.geometry import Affine, AnyArray, Grid, Volume
from totalspineseg_server.io import io_messages

MAX_BYTES: Final = 2 << 30
"""Largest decompressed size, unless the file itself is larger. A whole spine at 0.5 mm in 32-bit floats is 1.2 GB."""
MAX_RATIO: Final = 1040
"""Largest number of bytes that one byte of zlib's format can stand for (1032), rounded up."""
MAX_APART_VOX: Final = 0.5
"""Largest distance, in voxels, between the positions of a corner by the two forms of a header. If it is larger, one
form is wrong; rounding moves a corner by less than a tenth.
"""
ITK_SKEW_DEG: Final = 0.012
"""Skew above which ITK ignores an sform if there is a qform (measured with ITK 5.4), degrees from right angles."""
SCANNER: Final = 1
"""Code of a form in the scanner's coordinates."""
UNIT_MASK: Final = 7
"""Bits of the units field for the unit of length."""
UNIT_MM: Final = {1: 1000.0, 3: 0.001}
"""Unit of length -> mm, for meters and micrometers; every other unit is read as mm, as ITK does."""
MAX_TRAILING_CHUNKS: Final = 64
"""How many chunks after the last voxel are unpacked to reach the check sum of a compressed file."""
ROTATION_ROUNDING: Final = 1e-4
"""Rounding by which the square of a qform's quaternion may exceed 1: some programs write four digits."""
GZIP_MAGIC: Final = b"\x1f\x8b"
GZIP_WINDOW: Final = 31
"""Argument of zlib for members of gzip, with their check sums."""
COMPRESSION_ERRORS: Final = (igzip.BadGzipFile, EOFError, zlib.error, igzip.isal_zlib.error)
NIFTI2_MAGICS: Final = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
"""First bytes of a NIfTI-2 header: its size, 540, in either byte order."""
SILENT: Final = logging.Logger("nifti", level=logging.CRITICAL + 1)
"""Suppresses nibabel's log about headers that it corrects."""


def read_nifti(path: Path) -> tuple[AnyArray, Affine]:
    """Read a NIfTI file, compressed or not.

    Args:
        path: The file. Only the voxels that its header describes are kept.

    Returns:
        Voxels of any dimension, scaled if the header says so, and the affine, voxel -> RAS mm.

    Raises:
        ImageError: The file has fewer voxels than its header says, or too many, or does not state their position.
    """
    with path.open("rb") as file:
        if file.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            file.seek(0)
            return _read(file, path)
    try:
        with igzip.open(path, "rb") as unpacked:
            return _read(unpacked, path)
    except COMPRESSION_ERRORS:
        pass
    try:
        with igzip.open(BytesIO(_members(path.read_bytes())), "rb") as unpacked:
            return _read(unpacked, path)
    except COMPRESSION_ERRORS as error:
        raise ImageError(io_messages.DAMAGED_COMPRESSION.format(name=path.name)) from error


def _read(file: IO[bytes], path: Path) -> tuple[AnyArray, Affine]:
    """Return the voxels and the affine of a file from its content, which is unpacked only as far as it is read."""
    header = _header(file, path.name)
    shape, offset = header.get_data_shape(), header.get_data_offset()
    if min(shape, default=0) < 1:
        raise ImageError(io_messages.NO_VOXELS.format(name=path.name, shape=shape))
    require_bounded(path, offset + prod(shape) * header.get_data_dtype().itemsize)
    affine = _affine(header, path.name)
    data: AnyArray = np.asanyarray(ArrayProxy(file, header, mmap=False))
    # Read to the end: some programs pad their files, and only the end of a compressed file shows whether the voxels are
    # right.
    for _ in range(MAX_TRAILING_CHUNKS):
        if not file.read(CHUNK_BYTES):
            break
    return data, affine


def _members(content: bytes) -> bytes:
    """Return a gzip file without the bytes after its last member; gzip ignores them, too.

    Raises:
        EOFError: A member is incomplete, or unpacks to more than is read from any file.
        isal_zlib.error: A member is damaged.
    """
    end, unpacked = 0, 0
    while content.startswith(GZIP_MAGIC, end):
        member = isal_zlib.decompressobj(GZIP_WINDOW)
        rest = b""
        while not member.eof:
            if not rest:
                rest = content[end : end + CHUNK_BYTES]
                end += len(rest)
            unpacked += len(member.decompress(rest, CHUNK_BYTES))
            rest = member.unconsumed_tail
            if (end == len(content) and not rest and not member.eof) or unpacked > max(len(content), MAX_BYTES):
                raise EOFError
        end -= len(member.unused_data)
    return content[:end]


def _header(file: IO[bytes], name: str) -> nib.Nifti1Header:
    """Return the header without its extensions, which may have any size and are not used here.

    Raises:
        ImageError: A voxel size is negative: nibabel ignores the sign, but ITK (and so 3D Slicer) flips the axis.
    """
    kind = nib.Nifti2Header if file.read(4) in NIFTI2_MAGICS else nib.Nifti1Header
    file.seek(0)
    header = kind.from_fileobj(BytesIO(file.read(kind.template_dtype.itemsize)), check=False)
    negative = (header["pixdim"][1:4] < 0).any()
    header.check_fix(SILENT)
    if negative:
        raise ImageError(io_messages.NEGATIVE_SPACING.format(name=name, remedy=io_messages.EXPORT_AGAIN))
    return header


def _affine(header: nib.Nifti1Header, name: str) -> Affine:
    """Return voxel -> RAS mm by the form that ITK uses, and therefore 3D Slicer, which shows the result over the image.

    Raises:
        ImageError: The header has no form, or places the image in two ways, so that programs differ in its position.
    """
    # Shorten a rotation that rounding made a little too long, as NIfTI's own library does; nibabel would raise an
    # error.
    header.quaternion_threshold = -ROTATION_ROUNDING
    # Count a missing size as 1, as NIfTI's library does.
    sizes = [float(size) if size and np.isfinite(size) else 1.0 for size in header["pixdim"][1:4]]
    header["pixdim"][1:4] = sizes
    (sform, by_sform), (qform, by_qform) = header.get_sform(coded=True), header.get_qform(coded=True)
    forms = [form for form in (sform, qform) if form is not None]
    if not forms:
        raise ImageError(io_messages.NO_PLACE.format(name=name))
    unit_mm = UNIT_MM.get(int(header["xyzt_units"]) & UNIT_MASK, 1.0)
    grids = [_grid(header.get_data_shape()[:3], np.diag([unit_mm, unit_mm, unit_mm, 1]) @ form) for form in forms]
    chosen = grids[-1]
    if by_sform and (not by_qform or (by_sform == SCANNER and grids[0].skew_deg <= ITK_SKEW_DEG)):
        # ITK uses the directions of an sform, but the voxel sizes of the header.
        ratios = np.array(sizes) * unit_mm / grids[0].spacing
        chosen = Grid(grids[0].shape, grids[0].affine @ np.diag([*ratios, 1]))
    for grid in grids:
        _require_one_place(chosen, grid, name)
    return chosen.affine


def _grid(shape: tuple[int, ...], affine: Affine) -> Grid:
    x, y, z = (*shape, 1, 1)[:3]
    return Volume(np.broadcast_to(np.uint8(0), (x, y, z)), affine).grid


def _require_one_place(one: Grid, other: Grid, name: str) -> None:
    """Check that no corner of the image moves by ``MAX_APART_VOX`` along an axis from one grid to the other."""
    corners = np.array(list(product(*[(0, count - 1) for count in one.shape])))
    moved_mm = apply_affine(other.affine, corners) - apply_affine(one.affine, corners)
    if np.abs(moved_mm @ np.linalg.inv(one.affine[:3, :3]).T).max() < MAX_APART_VOX:
        return
    apart_mm = np.linalg.norm(moved_mm, axis=1).max()
    first, second = (f"{grid.orientation}, voxels of {_mm(grid.spacing)}" for grid in (one, other))
    ways = "" if first == second else f": {first} or {second}"
    raise ImageError(io_messages.TWO_PLACES.format(name=name, ways=ways, mm=apart_mm, remedy=io_messages.EXPORT_AGAIN))


def _mm(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes) + " mm"


def require_bounded(path: Path, content_bytes: int) -> None:
    """Check that a file can hold as much as it states, and no more than fits into memory.

    Args:
        path: The file.
        content_bytes: Its unpacked size as stated in the header.

    Raises:
        ImageError: It cannot contain that much, or that is too much.
    """
    size = path.stat().st_size
    if content_bytes > size * MAX_RATIO:
        raise ImageError(io_messages.INCOMPLETE.format(name=path.name, size=size, described=content_bytes))
    if content_bytes > max(size, MAX_BYTES):
        raise ImageError(
            io_messages.UNPACKS_TOO_LARGE.format(name=path.name, mib=content_bytes >> 20, limit=MAX_BYTES >> 20)
        )
