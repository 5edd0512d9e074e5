"""Keep information about a label beside its file, because the index drops it while the image is missing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.corrections import history
from lib.errors import StorageError
from lib.volume_io import write_atomic


def write_note(label: Path, source: Path, info: Mapping[str, Any]) -> None:
    """Write the information about a label that is about to be copied to its place.

    Args:
        label: The label's future file.
        source: The file that will be copied there.
        info: The information in the index. Not modified.

    Raises:
        StorageError: It could not be written.
    """
    text = json.dumps({"label_sha256": history.sha256_of(source), "info": info}, ensure_ascii=False, default=str)
    write_atomic(note_of(label), lambda temporary: _write(temporary, text))


def read_note(label: Path) -> dict[str, Any]:
    """Return the information about a label; empty if its file was replaced since, for instance by hand."""
    try:
        note = history.read_json(note_of(label))
        return dict(note["info"]) if note["label_sha256"] == history.sha256_of(label) else {}
    except (StorageError, OSError, KeyError, TypeError, ValueError):
        return {}


def note_of(label: Path) -> Path:
    """Return the path of a label's note, beside the label's file. The note names a reader, so remove both together."""
    return label.with_name(f".{label.name}.json")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
