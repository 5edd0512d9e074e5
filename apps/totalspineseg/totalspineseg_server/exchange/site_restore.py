"""Restore a backup into empty folders, after comparing every file with its hash."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from totalspineseg_server.errors import ArchiveError, StorageError
from totalspineseg_server.exchange import exchange_messages
from totalspineseg_server.exchange.site_archive import (
    MANIFEST,
    MAX_FILES,
    MODELS,
    SETTINGS,
    SITE,
    Manifest,
    no_backup,
)
from totalspineseg_server.files import partial_folder, storage_errors, sync_folder, sync_tree
from totalspineseg_server.io.zips import Archive, open_archive
from totalspineseg_server.locks import LOCK_FILE
from totalspineseg_server.registry.model_store import ModelStore

MAX_MANIFEST_BYTES: Final = 1 << 30
"""Largest manifest; two million files are about 400 MB."""


def read_backup(file: Path) -> Manifest:
    """Compare every file of a backup with its hash; nothing is written.

    Returns:
        The list of its files.

    Raises:
        ArchiveError: The file is not a backup, is unsafe or damaged.
    """
    with _opened(file, file.parent) as (archive, manifest):
        for path in manifest.files:
            _require(archive, manifest, path, None)
        return manifest


def restore(file: Path, site: Path, models: ModelStore) -> Manifest:
    """Restore a backup.

    Args:
        file: The backup.
        site: Folder for the studies or the work folder, which may have images, but no corrections; it is made if it is
            missing.
        models: The model folder to restore versions into; it must have none yet.

    Returns:
        The list of the restored files.

    Raises:
        ArchiveError: The file is not a backup, is unsafe or damaged; nothing was changed.
        StorageError: Something exists where it would write, or the disk is full; nothing was changed.
    """
    if site.exists() and not site.is_dir():
        raise StorageError(exchange_messages.NO_FOLDER.format(path=str(site)))
    with partial_folder(site) as staged, _opened(file, staged) as (archive, manifest):
        settings = manifest.settings_folder(Path())
        _require_free(site, _tops(manifest, SITE) | ({settings.parts[0]} if manifest.part(SETTINGS) else set()))
        has_models = bool(manifest.part(MODELS))
        if has_models:
            _require_free(models.model_dir, _tops(manifest, MODELS), remedy=exchange_messages.OTHER_MODELS)
        for part, folder in ((SITE, staged), (SETTINGS, staged / settings)):
            for path in manifest.part(part):
                _require(archive, manifest, f"{part}/{path}", folder / path)
        if not has_models:
            _move(staged, site)
            return manifest
        with partial_folder(models.model_dir) as staged_models:
            for path in manifest.part(MODELS):
                _require(archive, manifest, f"{MODELS}/{path}", staged_models / path)
            _move(staged_models, models.model_dir)
            _move(staged, site)
    return manifest


@contextmanager
def _opened(file: Path, folder: Path) -> Iterator[tuple[Archive, Manifest]]:
    """Open a backup and read its manifest."""
    try:
        with file.open("rb") as stream:
            # Nothing in it is compressed, so its content cannot be larger than the file.
            size = file.stat().st_size
            with open_archive(
                stream, folder, is_wanted=lambda name: True, max_bytes=size, max_ratio=1, max_entries=MAX_FILES
            ) as archive:
                entry = archive.by_name.get(MANIFEST)
                if entry is None or entry.file_size > MAX_MANIFEST_BYTES:
                    raise no_backup()
                pieces: list[bytes] = []
                archive.copy(entry, pieces.append)
                yield archive, Manifest.from_text(b"".join(pieces))
    except ArchiveError as error:
        raise ArchiveError(exchange_messages.NOT_RESTORED.format(name=file.name, error=error)) from error


def _tops(manifest: Manifest, part: str) -> set[str]:
    """Return the names in the target folder that a part of a backup fills."""
    return {path.split("/")[0] for path in manifest.part(part)}


def _require_free(folder: Path, names: set[str], remedy: str = exchange_messages.OTHER_FOLDER) -> None:
    """Check that nothing exists where something will be restored; empty folders do not count."""
    there = [name for name in sorted(names) if _is_taken(folder / name)]
    if there:
        listed = ", ".join(map(repr, there))
        raise StorageError(exchange_messages.NOT_EMPTY.format(folder=str(folder), names=listed, remedy=remedy))


def _is_taken(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return any(below.name != LOCK_FILE for below in path.iterdir())
    return path.exists() or path.is_symlink()


def _require(archive: Archive, manifest: Manifest, path: str, target: Path | None) -> None:
    """Compare a file with its hash, and write it if there is a target.

    Raises:
        ArchiveError: The file is missing, or has other content.
    """
    entry = archive.by_name.get(path)
    digest = hashlib.sha256()
    if entry is not None and target is None:
        archive.copy(entry, digest.update)
    elif entry is not None and target is not None:
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:

                def write(piece: bytes) -> None:
                    digest.update(piece)
                    stream.write(piece)

                archive.copy(entry, write)
    if entry is None or digest.hexdigest() != manifest.files[path].sha256:
        raise ArchiveError(exchange_messages.DAMAGED_BACKUP.format(name=path))


def _move(staged: Path, folder: Path) -> None:
    """Move the staged files and folders to their places, each in one step."""
    with storage_errors(folder):
        sync_tree(staged)
        for path in sorted(staged.iterdir()):
            target = folder / path.name
            if target.is_dir():
                (target / LOCK_FILE).unlink(missing_ok=True)
                target.rmdir()
            path.rename(target)
        sync_folder(folder)
