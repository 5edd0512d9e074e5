"""What is known about a version: parent, labels that made it, settings, the gate's report, software."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from lib.registry.files import write_json
from lib.registry.store import STARTER, ModelStore

RECORD_FILE: Final = "version.json"
PACKAGES: Final = (
    "torch",
    "nnunetv2",
    "dynamic-network-architectures",
    "batchgeneratorsv2",
    "numpy",
    "scipy",
    "nibabel",
)
"""Software whose version may change what a training gives."""


@dataclass(frozen=True)
class VersionRecord:
    """Where a trained version comes from.

    Attributes:
        name: The version.
        created: UTC, ISO 8601.
        steps: Which steps it holds.
        parents: Step ("1", "2") -> ``name`` and ``version`` (name and digest) the training started from.
        models: Step -> version as predictions state it.
        training: One entry per correction it was trained on: image, hashes of image and label, annotator, time.
        replay: One entry per replayed case.
        skipped: Corrections that could not be used, with the reason.
        settings: Of the training.
        gate: The gate's report; None for a version that was imported.
        run: Id of the training run.
        new_weights: Share of the trained weights; the rest are the parents'.
        software: Package -> version.
    """

    name: str
    created: str
    steps: Sequence[int]
    parents: Mapping[str, Mapping[str, str]]
    models: Mapping[str, str]
    training: Sequence[Mapping[str, Any]] = ()
    replay: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    run: str = ""
    new_weights: float = 1.0
    software: Mapping[str, str] = field(default_factory=lambda: software_versions())


def software_versions() -> dict[str, str]:
    """Python and the packages of ``PACKAGES`` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_record(folder: Path, record: VersionRecord) -> None:
    """Write a record into a version's folder that is being filled.

    Raises:
        StorageError: It cannot be written.
    """
    write_json(folder / RECORD_FILE, asdict(record))


def read_record(store: ModelStore, name: str) -> dict[str, Any] | None:
    """The record of a version as plain values; None for versions that were not trained here, and damaged ones."""
    root = store.model_dir / STARTER if name == STARTER else store.versions_dir / name
    try:
        content = json.loads((root / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def lineage(store: ModelStore, name: str) -> tuple[str, ...]:
    """The version and its ancestors, newest first, as far as they are recorded."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        here = waiting.pop(0)
        if here not in found:
            found.append(here)
            record = read_record(store, here) or {}
            waiting += [str(parent["name"]) for parent in record.get("parents", {}).values()]
    return tuple(found)


def trained_on(store: ModelStore, name: str) -> frozenset[str]:
    """Ids of the corrections a version or one of its ancestors was trained on."""
    records = [read_record(store, entry) or {} for entry in lineage(store, name)]
    return frozenset(str(case["correction"]) for record in records for case in record.get("training", ()))
