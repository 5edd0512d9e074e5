"""Write a site's corrections, models and settings into one file, which is checked before it appears."""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final, cast

from totalspineseg_server.corrections.ids import now_text
from totalspineseg_server.corrections.receipts import RECEIVED_DIR
from totalspineseg_server.errors import StorageError
from totalspineseg_server.exchange import exchange_messages
from totalspineseg_server.exchange.site_archive import (
    FORMAT,
    MANIFEST,
    MODELS,
    SETTINGS,
    SITE,
    Entry,
    Manifest,
    history_of,
    kind_of,
    model_files,
    site_files,
)
from totalspineseg_server.files import CHUNK_BYTES, storage_errors, write_file
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.version import VERSION

PRIVATE: Final = 0o600
"""Permissions of an archive: only its owner may read it, because it names readers and may have passwords in files of
settings."""


def write_backup(
    site: Path, models: ModelStore, target: Path, *, settings: Sequence[Path] = (), images: bool = False
) -> Manifest:
    """Write a backup; a server may be running.

    Args:
        site: Studies with a hidden history, or the ``--work`` folder of a server.
        models: The versions.
        target: The file to write; it must not exist.
        settings: Settings files to add.
        images: Whether to add the images.

    Returns:
        The list of its files.

    Raises:
        StorageError: ``target`` exists, two settings files have one name, something cannot be read or written, or
            the archive differs from the files that were read. No file is left.
    """
    if target.exists():
        raise StorageError(exchange_messages.BACKUP_EXISTS.format(file=str(target)))
    twice = [name for name, count in Counter(path.name for path in settings).items() if count > 1]
    if twice:
        raise StorageError(exchange_messages.TWO_SETTINGS_FILES.format(name=twice[0]))
    manifest = Manifest(FORMAT, VERSION, now_text(), kind_of(site), images)

    def write(path: Path) -> None:
        nonlocal manifest
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            files = _written(archive, site, models, settings, images=images)
            manifest = replace(manifest, files=files)
            archive.writestr(MANIFEST, manifest.as_text())
        _require_same(path, manifest)

    write_file(target, write)
    with storage_errors(target):
        target.chmod(PRIVATE)
    return manifest


def _written(
    archive: zipfile.ZipFile, site: Path, models: ModelStore, settings: Sequence[Path], *, images: bool
) -> dict[str, Entry]:
    """Write all files; return path in the archive -> entry."""
    files: dict[str, Entry] = {}

    def add(part: str, root: Path, paths: Iterator[PurePosixPath]) -> None:
        for path in paths:
            entry = _add(archive, f"{part}/{path}", root / path)
            if entry is not None:
                files[f"{part}/{path}"] = entry

    add(SITE, site, site_files(site, images=images))
    add(MODELS, models.model_dir, model_files(models))
    for file in settings:
        add(SETTINGS, file.parent, iter([PurePosixPath(file.name)]))
    read_since = _read_since(files, site)
    return {path: entry for path, entry in files.items() if path not in read_since}


def _add(archive: zipfile.ZipFile, name: str, file: Path) -> Entry | None:
    """Write a file; return None if it is gone, because the server moved or removed it."""
    digest, size = hashlib.sha256(), 0
    try:
        source = file.open("rb")
    except FileNotFoundError:
        return None
    with source, archive.open(name, "w", force_zip64=True) as target:
        while piece := source.read(CHUNK_BYTES):
            digest.update(piece)
            target.write(piece)
            size += len(piece)
    return Entry(digest.hexdigest(), size)


def _read_since(files: Mapping[str, Entry], site: Path) -> frozenset[str]:
    """Return the files of submissions that waited at first and were filed while the archive was written."""
    history = PurePosixPath(SITE, history_of(site).relative_to(site).as_posix())
    inside = {path: PurePosixPath(path).relative_to(history).parts for path in files if path.startswith(f"{history}/")}
    filed = {parts[_DEPTH[parts[0]]] for parts in inside.values() if len(parts) > _DEPTH.get(parts[0], len(parts))}
    return frozenset(p for p, parts in inside.items() if parts[0] == RECEIVED_DIR and filed.intersection(parts[1:2]))


_DEPTH: Final = {"corrections": 2, "unfiled": 1}
"""Folder of a history -> place of a submission's id in a path below it."""


def _require_same(path: Path, manifest: Manifest) -> None:
    """Check that an archive has the contents listed in its manifest."""
    with zipfile.ZipFile(path) as archive:
        for name, entry in manifest.files.items():
            with archive.open(name) as source:
                digest = hashlib.file_digest(cast(io.BufferedIOBase, source), "sha256").hexdigest()
            if digest != entry.sha256:
                raise StorageError(exchange_messages.COPY_DIFFERS.format(name=name))
