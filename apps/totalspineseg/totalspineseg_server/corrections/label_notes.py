"""Keep information about a label beside its file, because the index drops it while the image is missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import read_json, sha256_of, write_json


def write_note(label: Path, source: Path, info: Mapping[str, Any]) -> None:
    """Write the information about a label that is about to be copied to its place.

    Args:
        label: The label's future file.
        source: The file that will be copied there.
        info: The information in the index. Not modified.

    Raises:
        StorageError: It could not be written.
    """
    write_json(note_of(label), {"label_sha256": sha256_of(source), "info": info}, default=str)


def read_note(label: Path) -> dict[str, Any]:
    """Return the information about a label; empty if its file was replaced since, for instance by hand."""
    try:
        note = read_json(note_of(label))
        return dict(note["info"]) if note["label_sha256"] == sha256_of(label) else {}
    except (StorageError, OSError, KeyError, TypeError, ValueError):
        return {}


def note_of(label: Path) -> Path:
    """Return the path of a label's note, beside the label's file. The note names a reader, so remove both together."""
    return label.with_name(f".{label.name}.json")
