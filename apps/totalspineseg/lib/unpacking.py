"""What a file may unpack to: a few kilobytes, or one line of a header, can ask for all the memory of a machine."""

from pathlib import Path
from typing import Final

from lib.errors import ImageError

MAX_BYTES: Final = 2 << 30
"""Of a file that is not as large itself. A whole spine at 0.5 mm in 32-bit floats is 1.2 GB."""
MAX_RATIO: Final = 1040
"""How many bytes a byte of zlib's can hold, rounded up: its format allows no more than 1032."""


def require_bounded(path: Path, content_bytes: int) -> None:
    """Check that a file can hold as much as it says, and no more than fits into the memory.

    Args:
        path: The file.
        content_bytes: What it says that it holds, unpacked.

    Raises:
        ImageError: It cannot, or that is too much.
    """
    size = path.stat().st_size
    if content_bytes > size * MAX_RATIO:
        raise ImageError(
            f"a complete image file is required, got {path.name!r} of {size} bytes, whose header tells of "
            f"{content_bytes} bytes of voxels; copy it again"
        )
    if content_bytes > max(size, MAX_BYTES):
        raise ImageError(
            f"a compressed image of at most {MAX_BYTES >> 20} MiB of voxels is required, got {path.name!r} with "
            f"{content_bytes >> 20} MiB; send one volume of it, or a file that is not compressed"
        )
