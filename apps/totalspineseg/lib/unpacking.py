"""Limit what a file may unpack to: a few kilobytes, or one line of a header, can ask for all memory of a machine."""

from pathlib import Path
from typing import Final

from lib.errors import ImageError

MAX_BYTES: Final = 2 << 30
"""Maximum decompressed size, unless the file itself is larger. A whole spine at 0.5 mm in 32-bit floats is 1.2 GB."""
MAX_RATIO: Final = 1040
"""Maximum bytes that one byte of zlib can hold, rounded up: its format allows no more than 1032."""


def require_bounded(path: Path, content_bytes: int) -> None:
    """Check that a file can hold as much as it states, and no more than fits into memory.

    Args:
        path: The file.
        content_bytes: Its unpacked size as stated in the header.

    Raises:
        ImageError: It cannot hold that much, or that is too much.
    """
    size = path.stat().st_size
    if content_bytes > size * MAX_RATIO:
        raise ImageError(
            f"The image file {path.name!r} is incomplete: it has {size} bytes, but its header describes "
            f"{content_bytes} bytes of voxels. Copy it again."
        )
    if content_bytes > max(size, MAX_BYTES):
        raise ImageError(
            f"The compressed image {path.name!r} unpacks to {content_bytes >> 20} MiB of voxels (limit "
            f"{MAX_BYTES >> 20} MiB). Send one volume of it, or a file that is not compressed."
        )
