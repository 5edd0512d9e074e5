"""SHA-256 of files."""

import hashlib
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 1 << 20
"""Read size: large enough that the loop costs nothing."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as lower-case hex.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
