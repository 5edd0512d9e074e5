"""Store the gate's judgments of existing versions, in addition to the report with which a version was published."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import from_fields, load_json, storage_errors, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.registry.model_store import NAME, ModelStore

JUDGMENTS_DIR: Final = "judgments"
"""Folder inside the model folder, because versions and the supplied starter weights are never changed."""


@dataclass(frozen=True)
class Judgment:
    """One judgment of the gate on a version.

    Attributes:
        time: UTC, ISO 8601.
        site: Folder of the corrections whose hold-out was used in addition to the reference set; empty if none was.
        passed: Whether no measure fell by more than is allowed.
        verdict: One sentence.
        report: The gate's report.
    """

    time: str
    site: str
    passed: bool
    verdict: str
    report: Mapping[str, Any]


def judgments(store: ModelStore, name: str) -> tuple[Judgment, ...]:
    """Return the judgments of a version, oldest first.

    Raises:
        StorageError: They cannot be read.
    """
    return tuple(from_fields(Judgment, entry, f"of a judgment of {name}") for entry in _entries(store, name))


def judged_names(store: ModelStore) -> tuple[str, ...]:
    """Return the versions, existing or removed, that the gate has judged since they were made, sorted."""
    found = (file.stem for file in (store.model_dir / JUDGMENTS_DIR).glob("*.json"))
    return tuple(sorted(name for name in found if NAME.fullmatch(name)))


def keep_judgment(store: ModelStore, name: str, judgment: Judgment) -> None:
    """Add a judgment to those of a version.

    Raises:
        StorageError: It cannot be written.
    """
    file = _file(store, name)
    with locked(store.model_dir):
        with storage_errors(file.parent):
            file.parent.mkdir(exist_ok=True)
        write_json(file, [*_entries(store, name), asdict(judgment)])


def _entries(store: ModelStore, name: str) -> list[Any]:
    file = _file(store, name)
    remedy = "Remove it, and judge the version again."
    content = load_json(file, remedy) if file.exists() else []
    if not isinstance(content, list):
        raise StorageError(f"The file {str(file)!r} is damaged. {remedy}")
    return content


def _file(store: ModelStore, name: str) -> Path:
    return store.model_dir / JUDGMENTS_DIR / f"{name}.json"
