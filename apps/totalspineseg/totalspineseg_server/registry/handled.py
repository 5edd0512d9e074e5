"""Record how well pairs of networks did on a few synthetic spines before they were trained further."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from totalspineseg_server.files import read_json_or, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.registry.model_store import ModelStore

HANDLED_FILE: Final = "synthetic.json"
"""File in the model folder (versions themselves never change): names of both networks with digits of their hashes ->
scan -> measures."""

Measured = Mapping[str, Mapping[str, float | None]]
"""Scan -> measure -> value, or None if it does not apply."""


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
