"""What is known about a label, kept beside its file: the index forgets it while the image is gone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.errors import StorageError
from lib.files import read_json, sha256_of, write_json


def write_note(label: Path, source: Path, info: Mapping[str, Any]) -> None:
    """Keep what is known about a label that is about to be copied to its place.

    Args:
        label: Its place.
        source: The file that is copied there.
        info: As the index has it. Not modified.

    Raises:
        StorageError: It could not be written.
    """
    write_json(note_of(label), {"label_sha256": sha256_of(source), "info": info}, default=str)


def read_note(label: Path) -> dict[str, Any]:
    """What is known about a label; nothing where its file is another one by now, as one copied there by hand."""
    try:
        note = read_json(note_of(label))
        return dict(note["info"]) if note["label_sha256"] == sha256_of(label) else {}
    except (StorageError, OSError, KeyError, TypeError, ValueError):
        return {}


def note_of(label: Path) -> Path:
    """Where that is kept, beside the label's file; it names a reader, so that it has to go with that."""
    return label.with_name(f".{label.name}.json")
