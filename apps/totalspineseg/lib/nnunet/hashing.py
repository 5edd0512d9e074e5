"""SHA-256 of files and of what a run is about."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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


def content_key(content: Mapping[str, Any]) -> str:
    """Return what identifies a run by its content (parent, settings, cases): only the same one is continued."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
