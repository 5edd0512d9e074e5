"""What is known about a label, kept beside its file: the index forgets it while the image is gone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.corrections import history
from lib.errors import StorageError
from lib.volume_io import write_atomic


def write_note(label: Path, source: Path, info: Mapping[str, Any]) -> None:
    """Keep what is known about a label that is about to be copied to its place.

    Args:
        label: Its place.
        source: The file that is copied there.
        info: As the index has it. Not modified.

    Raises:
        StorageError: It could not be written.
    """
    text = json.dumps({"label_sha256": history.sha256_of(source), "info": info}, ensure_ascii=False, default=str)
    write_atomic(note_of(label), lambda temporary: _write(temporary, text))


def read_note(label: Path) -> dict[str, Any]:
    """What is known about a label; nothing where its file is another one by now, as one copied there by hand."""
    try:
        note = history.read_json(note_of(label))
        return dict(note["info"]) if note["label_sha256"] == history.sha256_of(label) else {}
    except (StorageError, OSError, KeyError, TypeError, ValueError):
        return {}


def note_of(label: Path) -> Path:
    """Where that is kept, beside the label's file; it names a reader, so that it has to go with that."""
    return label.with_name(f".{label.name}.json")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
