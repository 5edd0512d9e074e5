"""NIfTI files: voxels as far as the header tells of them, and where they lie."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Final

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy

from lib.errors import ImageError
from lib.geometry import Affine, AnyArray, Grid
from lib.unpacking import require_bounded

MIN_COSINE: Final = 0.5
"""An axis by the qform and by the sform of a NIfTI file: further apart than 60 degrees, they contradict each other."""
SIZE_ROUNDING: Final = 0.02
"""How far voxel sizes by qform and sform may differ: beyond it distances are wrong by one of them, below it by less
than discs are measured to."""
ROTATION_ROUNDING: Final = 1e-4
"""How much longer than 1 the square of a qform's quaternion may be: some programs write four digits."""
GZIP_MAGIC: Final = b"\x1f\x8b"
NIFTI2_MAGICS: Final = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
"""How a NIfTI-2 header begins: its size, 540, in either byte order."""


def read_nifti(path: Path) -> tuple[AnyArray, Affine]:
    """Read a NIfTI file, compressed or not.

    Args:
        path: The file. Of what it holds no more is unpacked than its header tells of.

    Returns:
        Voxels of any dimension, scaled where the header says so, and the affine.

    Raises:
        ImageError: It holds more or less than its header says, too much, or does not say where its voxels lie.
    """
    with _opened(path) as file:
        header = _header(file)
        _require_placed(header, path.name)
        shape, offset = header.get_data_shape(), header.get_data_offset()
        if min(shape, default=0) < 1:
            raise ImageError(f"an image with voxels is required, got {path.name!r} of shape {shape}; export it again")
        require_bounded(path, offset + prod(shape) * header.get_data_dtype().itemsize)
        data: AnyArray = np.asanyarray(ArrayProxy(file, header, mmap=False))
        if file.read(1):
            raise ImageError(
                f"a NIfTI file that ends with its last voxel is required, got {path.name!r}, which holds more than its "
                "header tells of; export it again"
            )
    return data, header.get_best_affine()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked as far as it is read."""
    with path.open("rb") as start:
        compressed = start.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    if not compressed:
        with path.open("rb") as file:
            yield file
        return
    try:
        with igzip.open(path, "rb") as file:
            yield file
    except (igzip.BadGzipFile, EOFError, zlib.error, igzip.isal_zlib.error) as error:
        raise ImageError(
            f"a complete NIfTI file is required, got {path.name!r}, whose compression is damaged; copy it again"
        ) from error


def _header(file: IO[bytes]) -> nib.Nifti1Header:
    """The header without its extensions: they may be of any size, and nobody here reads them."""
    kind = nib.Nifti2Header if file.read(4) in NIFTI2_MAGICS else nib.Nifti1Header
    file.seek(0)
    return kind.from_fileobj(BytesIO(file.read(kind.template_dtype.itemsize)))


def _require_placed(header: nib.Nifti1Header, name: str) -> None:
    """Check that a NIfTI header says where its voxels lie, and nothing else in a second place.

    Without a form, and with two that contradict each other, programs differ in which side is left.
    """
    # A rotation that rounding made a little too long is shortened, as NIfTI's own library does; nibabel would raise.
    header.quaternion_threshold = -ROTATION_ROUNDING
    forms = [form for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    if not forms:
        raise ImageError(
            f"a NIfTI file with a qform or sform is required, got {name!r}, which does not say how it lies in the "
            "patient; export it again"
        )
    one, other = forms[0][:3, :3], forms[-1][:3, :3]
    lengths = np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0)
    if ((one * other).sum(axis=0) < MIN_COSINE * lengths).any():
        shape = header.get_data_shape()[:3]
        by_sform, by_qform = (Grid(shape, form).orientation for form in forms)
        raise ImageError(
            f"a NIfTI file whose qform and sform agree is required, got {name!r} with axes "
            f"{by_qform} by the one and {by_sform} by the other; export it again"
        )
    by_sform_mm, by_qform_mm = (np.linalg.norm(form, axis=0) for form in (one, other))
    if (np.abs(by_sform_mm / by_qform_mm - 1) > SIZE_ROUNDING).any():
        raise ImageError(
            f"a NIfTI file whose qform and sform give one voxel size is required, got {name!r} with {_mm(by_qform_mm)} "
            f"by the one and {_mm(by_sform_mm)} by the other, as after a registration to a template; take the image as "
            "it was scanned"
        )


def _mm(sizes: AnyArray) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes) + " mm"
