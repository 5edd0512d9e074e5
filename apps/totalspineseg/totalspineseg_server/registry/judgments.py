"""Store what was measured of existing versions: judgments of the gate, and results on a few synthetic spines.

A judgment comes in addition to the report with which a version was published.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import from_fields, load_json, read_json_or, storage_errors, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.registry import registry_messages
from totalspineseg_server.registry.model_store import NAME, ModelStore

JUDGMENTS_DIR: Final = "judgments"
"""Folder inside the model folder, because versions and the supplied starter weights are never changed."""
HANDLED_FILE: Final = "synthetic.json"
"""File in the model folder (versions themselves never change): names of both networks with digits of their hashes ->
scan -> measures."""

Measured = Mapping[str, Mapping[str, float | None]]
"""Scan -> measure -> value, or None if it does not apply."""


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
    remedy = registry_messages.JUDGE_AGAIN
    content = load_json(file, remedy) if file.exists() else []
    if not isinstance(content, list):
        raise StorageError(registry_messages.DAMAGED_FILE.format(file=str(file), remedy=remedy))
    return content


def _file(store: ModelStore, name: str) -> Path:
    return store.model_dir / JUDGMENTS_DIR / f"{name}.json"


def measured_once(store: ModelStore, versions: Mapping[int, str], measure: Callable[[], Measured]) -> Measured:
    """Return the measures of a pair of networks; if there are none, measure and record them first.

    Args:
        store: The store that holds the record.
        versions: Step -> version, as predictions state it.
        measure: Runs the networks.

    Raises:
        StorageError: The record cannot be written.
    """
    name = "+".join(versions[step] for step in sorted(versions))
    known: Measured | None = recorded(store).get(name)
    if known is not None:
        return known
    found = measure()
    with locked(store.model_dir):
        write_json(store.model_dir / HANDLED_FILE, {**recorded(store), name: found})
    return found


def recorded(store: ModelStore) -> dict[str, Any]:
    """Return all records; none if the file is missing or damaged, because everything can be measured again."""
    return read_json_or(store.model_dir / HANDLED_FILE, {})


def handled_by(store: ModelStore, name: str) -> dict[str, Measured]:
    """Return the measures of each pair that a version is part of: names of both networks -> scan -> measures.

    Args:
        store: The store that holds the record.
        name: The version.
    """
    pairs = recorded(store).items()
    return {pair: found for pair, found in pairs if name in {part.rpartition("-")[0] for part in pair.split("+")}}
