"""Making room: a version's weights go, its record stays, so that what networks have learned from stays known."""

import shutil
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from lib.errors import WeightsError
from lib.registry.files import locked, storage_errors, sync_folder, write_json
from lib.registry.manage import require_known
from lib.registry.records import lineage, read_record, removed_file, removed_versions
from lib.registry.store import STARTER, ModelStore

LEAVING: Final = ".removed-"
"""A version on its way out; readers skip names with a leading dot."""


def remove_versions(store: ModelStore, names: Collection[str], *, force: bool = False) -> int:
    """Remove the weights of versions for good; killed at any moment, a version is whole or gone, its record readable.

    Args:
        store: Where they are.
        names: Which; one that was removed before is none too many, so that the same call goes on after a kill.
        force: Even those that going back would go back to, or that the gate compares candidates with.

    Returns:
        Bytes freed.

    Raises:
        WeightsError: One is unknown, needed, or ships with the project; nothing is removed.
        StorageError: One cannot be removed.
    """
    with locked(store.model_dir):
        leaving = sorted(set(names) - set(removed_versions(store)))
        for name in leaving:
            _require_removable(store, name, force=force)
        freed = _sweep(store.versions_dir)
        for name in leaving:
            _take_out(store, name)
        return freed + _sweep(store.versions_dir)


def _require_removable(store: ModelStore, name: str, *, force: bool) -> None:
    require_known(store, name)
    reason, cure = "", ""
    if name == STARTER:
        reason, cure = "ships with the project", "leave it"
    elif name in store.active().values():
        reason, cure = "is in use", "put another one into use first"
    elif not force and name in _earlier(store):
        reason, cure = "'models rollback' would go back to", "remove it all the same with --force"
    elif not force and name in _beginnings(store):
        reason, cure = "the trainings of the weights in use began with", "remove it all the same with --force"
    if reason:
        raise WeightsError(f"a version that nothing needs is required, got {name!r}, which {reason}; {cure}")


def _earlier(store: ModelStore) -> Collection[str]:
    with suppress(WeightsError):
        return store.before_last().values()
    return ()


def _beginnings(store: ModelStore) -> Collection[str]:
    """What the gate compares candidates with beside the weights in use."""
    return [lineage(store, name, step)[-1] for step, name in store.active().items()]


def _take_out(store: ModelStore, name: str) -> None:
    """Let a version disappear in one step, after its record is safe."""
    removed = datetime.now(timezone.utc).isoformat(timespec="seconds")
    file = removed_file(store, name)
    with storage_errors(file.parent):
        file.parent.mkdir(exist_ok=True)
    write_json(file, {"name": name, **(read_record(store, name) or {}), "removed": removed})
    with storage_errors(store.versions_dir):
        (store.versions_dir / name).rename(store.versions_dir / f"{LEAVING}{name}")
        sync_folder(store.versions_dir)


def _sweep(versions: Path) -> int:
    """Delete what is on its way out, that of a killed process, too; returns the bytes that held."""
    freed = 0
    for folder in versions.glob(f"{LEAVING}*"):
        with storage_errors(versions):
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
    return freed
