"""How well pairs of networks did on the synthetic spines they were tried on once, before they were trained further."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from totalspineseg_server.files import read_json_or, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.registry.model_store import ModelStore

HANDLED_FILE: Final = "synthetic.json"
"""In the model folder, since versions stay as they are: what both networks are called, with digits of their weights, ->
scan -> measures."""

Measured = Mapping[str, Mapping[str, float | None]]
"""Scan -> measure -> value, None where it does not apply."""


def measured_once(store: ModelStore, versions: Mapping[int, str], measure: Callable[[], Measured]) -> Measured:
    """Return the record of a pair of networks; if there is none, measure and write it first.

    Args:
        store: Where the record is.
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
    """Return all that is recorded; nothing where the file is missing or damaged, since it can be measured again."""
    return read_json_or(store.model_dir / HANDLED_FILE, {})


def handled_by(store: ModelStore, name: str) -> dict[str, Measured]:
    """Return what is recorded of the pairs that a version is part of: names of both networks -> scan -> measures.

    Args:
        store: Where the record is.
        name: The version.
    """
    pairs = recorded(store).items()
    return {pair: found for pair, found in pairs if name in {part.rpartition("-")[0] for part in pair.split("+")}}
