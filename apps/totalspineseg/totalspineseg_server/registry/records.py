"""Record how a version was made: parent, labels, settings, the gate's report, software."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.files import read_json_or, write_json
from totalspineseg_server.registry.model_store import NAME, STARTER, ModelStore
from totalspineseg_server.version import installed_versions

RECORD_FILE: Final = "version.json"
REMOVED_DIR: Final = "removed"
"""Folder inside the model folder with the records of versions whose weights were removed."""
PACKAGES: Final = (
    "torch",
    "nnunetv2",
    "dynamic-network-architectures",
    "batchgeneratorsv2",
    "numpy",
    "scipy",
    "nibabel",
)
"""Software whose version may change the result of a training."""


@dataclass(frozen=True)
class VersionRecord:
    """How a trained version was made.

    Attributes:
        name: The version.
        created: UTC, ISO 8601.
        steps: Steps it holds.
        parents: Step ("1", "2") -> ``name`` and ``version`` (name and digest) the training started from; for an
            imported version, the version here with the same network.
        models: Step -> version as predictions state it.
        training: One entry for each correction it was trained on: image, hashes of image and label, annotator, time;
            "taught" lists the steps that learned from it.
        replay: One entry for each replayed case, also with "taught".
        skipped: Cases that could not be used: "case", "reason", and under "left_out_of" the steps, or the gate.
        settings: Settings of the training.
        gate: The gate's report. None for an imported version, unless it was made here or the gate had refused it.
        not_served: Why a version that passed was not put into use when it was made; empty if it was.
        run: Id of the training run.
        new_weights: Share of the trained weights; the rest is from the parents.
        digests: Step -> SHA-256 of the model, which identifies it under another name.
        releases: Step -> official release that the network was trained from, for steps that come from one.
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
    not_served: str = ""
    run: str = ""
    new_weights: float = 1.0
    digests: Mapping[str, str] = field(default_factory=dict)
    releases: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=lambda: installed_versions(PACKAGES))


def write_record(folder: Path, record: VersionRecord) -> None:
    """Write a record into the folder of a version that is being made.

    Raises:
        StorageError: It cannot be written.
    """
    write_json(folder / RECORD_FILE, asdict(record))


def read_record(store: ModelStore, name: str) -> dict[str, Any] | None:
    """Return the record of a version, existing or removed, as plain values; None if it is missing or damaged."""
    root = store.starter_dir if name == STARTER else store.versions_dir / name
    record = read_json_or(root / RECORD_FILE, None)
    # This comes last, because the version may be removed in the meantime.
    return read_json_or(removed_file(store, name), None) if record is None and not root.is_dir() else record


def removed_file(store: ModelStore, name: str) -> Path:
    """Return the file for the record of a removed version; the record of an existing version is in its folder."""
    return store.model_dir / REMOVED_DIR / f"{name}.json"


def removed_versions(store: ModelStore) -> tuple[str, ...]:
    """Return the sorted names of the versions that have nothing left but their record."""
    known = {file.stem for file in (store.model_dir / REMOVED_DIR).glob("*.json") if NAME.fullmatch(file.stem)}
    return tuple(sorted(known - set(store.versions())))


def holder(store: ModelStore, step: int, digest: str) -> str | None:
    """Return an existing or removed version that has exactly the same network; None if no record names one."""
    for name in (*store.versions(), *removed_versions(store)):
        if (read_record(store, name) or {}).get("digests", {}).get(str(step)) == digest:
            return name
    return None


def lineage(store: ModelStore, name: str, step: int | None = None) -> tuple[str, ...]:
    """Return a version and its recorded ancestors, newest first, for one step or for both."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        here = waiting.pop(0)
        if here not in found:
            found.append(here)
            parents = (read_record(store, here) or {}).get("parents", {})
            waiting += [str(parent["name"]) for key, parent in parents.items() if step is None or key == str(step)]
    return tuple(found)


def trained_on(store: ModelStore, name: str, step: int) -> frozenset[str]:
    """Return the ids of the corrections from which a network of a version or of its ancestors has learned."""
    records = [read_record(store, entry) or {} for entry in lineage(store, name, step)]
    return frozenset(str(c["correction"]) for r in records for c in r.get("training", ()) if step in _steps_of(r, c))


def images_trained_on(store: ModelStore, name: str) -> frozenset[str]:
    """Return the SHA-256 of the images from which any network of a version or of its ancestors has learned.

    The record that came with imported weights is trusted here, because it can only exclude an image from a comparison.
    """
    records = [read_record(store, entry) or {} for entry in lineage(store, name)]
    return frozenset(
        str(case["image_sha256"])
        for record in records
        for case in (*record.get("training", ()), *_claimed(record))
        if "image_sha256" in case
    )


def _claimed(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the training cases in the record that came with imported weights, as far as it can be read."""
    claim = record.get("settings", {}).get("imported", {}).get("record")
    cases = claim.get("training") if isinstance(claim, dict) else None
    return [case for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []


def _steps_of(record: Mapping[str, Any], case: Mapping[str, Any]) -> Sequence[int]:
    """Return the steps that learned from a case; for older records, which do not state this, all steps."""
    steps: Sequence[int] = case.get("taught", record.get("steps", ()))
    return steps
