"""Remove a version's weights to free disk space. Its record stays, because it lists the training data."""

import shutil
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import move_folder, read_json_if_there, storage_errors, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.registry import registry_messages
from totalspineseg_server.registry.manage import require_known
from totalspineseg_server.registry.model_store import STARTER, ModelStore
from totalspineseg_server.registry.records import RECORD_FILE, lineage, removed_file, removed_versions

LEAVING: Final = ".removed-"
"""Prefix of a version that is being removed; readers skip names with a leading dot."""


def remove_versions(store: ModelStore, names: Collection[str], *, force: bool = False) -> int:
    """Delete the weights of versions. If the process is killed, each version is either complete or removed.

    Args:
        store: Holds the versions.
        names: Versions to remove. Already removed names are ignored, so that an interrupted call can be repeated.
        force: Whether to remove even versions that a rollback would return to, or with which the gate compares
            candidates.

    Returns:
        Bytes freed.

    Raises:
        WeightsError: A version is unknown, needed, or ships with the project; nothing is removed.
        StorageError: A version cannot be removed.
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
    reason, remedy = "", ""
    if name == STARTER:
        reason, remedy = registry_messages.SHIPPED, registry_messages.OTHERS_ONLY
    elif name in store.active().values():
        reason, remedy = registry_messages.IN_USE, registry_messages.ACTIVATE_ANOTHER
    elif not force and name in _earlier(store):
        reason, remedy = registry_messages.BEFORE_THIS, registry_messages.FORCE
    elif not force and name in _beginnings(store):
        reason, remedy = registry_messages.ORIGIN, registry_messages.FORCE
    if reason:
        raise WeightsError(registry_messages.NOT_REMOVABLE.format(name=name, reason=reason, remedy=remedy))


def _earlier(store: ModelStore) -> Collection[str]:
    with suppress(WeightsError):
        return store.before_last().values()
    return ()


def _beginnings(store: ModelStore) -> Collection[str]:
    """Return the versions with which the gate compares candidates, besides those in use."""
    return [lineage(store, name, step)[-1] for step, name in store.active().items()]


def _take_out(store: ModelStore, name: str) -> None:
    """Make a version disappear in one step, after its record is safe."""
    removed = datetime.now(timezone.utc).isoformat(timespec="seconds")
    file, own = removed_file(store, name), store.versions_dir / name / RECORD_FILE
    record = read_json_if_there(own, registry_messages.LOST_RECORD)
    with storage_errors(file.parent):
        file.parent.mkdir(exist_ok=True)
    write_json(file, {"name": name, **record, "removed": removed})
    move_folder(store.versions_dir / name, store.versions_dir / f"{LEAVING}{name}")


def _sweep(versions: Path) -> int:
    """Delete versions marked as removed, including those that a killed process left; return the bytes freed."""
    freed = 0
    for folder in versions.glob(f"{LEAVING}*"):
        with storage_errors(versions):
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
    return freed
