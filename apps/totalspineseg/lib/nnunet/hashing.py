"""SHA-256 of files, and keys that identify a run by its content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

CHUNK_BYTES: Final = 1 << 20
"""Size of a read, large enough that the loop takes no time."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def content_key(content: Mapping[str, Any]) -> str:
    """Return a key of a run's content (parent, settings, cases); only a run with the same key is continued."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
