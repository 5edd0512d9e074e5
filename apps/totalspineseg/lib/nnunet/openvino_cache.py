"""Converted networks on disk: beside their weights where that is allowed, else in the user's cache.

An entry is a folder named by the hash of what it was made from; it appears whole, and its files' hashes are
compared before it is used.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lib.errors import StorageError
from lib.files import read_json_or, sha256_of, staged_folder, storage_errors, write_json

logger = logging.getLogger(__name__)

FOLDER: Final = "openvino"
MODEL, WEIGHTS, RECORD = "model.xml", "model.bin", "sha256.json"


def cached(beside: Path, key: str) -> Path | None:
    """The model file of a complete and undamaged entry; damaged ones are removed.

    Args:
        beside: The model's folder.
        key: Hash of what the entry must have been made from.
    """
    for place in _places(beside):
        entry = place / key
        if not entry.is_dir():
            continue
        if _is_sound(entry):
            return entry / MODEL
        logger.warning("the converted network %s is damaged and is made again", entry)
        discard(entry)
    return None


def keep(beside: Path, key: str, save: Callable[[Path], None]) -> Path | None:
    """Add an entry at the first place that can be written.

    Args:
        beside: The model's folder.
        key: Name of the entry.
        save: Writes ``MODEL`` (the path it is given) and ``WEIGHTS`` beside it.

    Returns:
        The model file; None when no place can be written.
    """
    for place in _places(beside):
        try:
            with storage_errors(place), staged_folder(place / key) as staging:
                save(staging / MODEL)
                write_json(staging / RECORD, {name: sha256_of(staging / name) for name in (MODEL, WEIGHTS)})
        except StorageError as error:
            # Another process may have been faster; what it made is as good.
            if _is_sound(place / key):
                return place / key / MODEL
            logger.info("the converted network is not kept in %s: %s", place, error)
        else:
            return place / key / MODEL
    logger.warning("no folder for converted networks can be written, so the next start converts again")
    return None


def discard(entry: Path) -> None:
    """Remove an entry, as far as that is allowed."""
    shutil.rmtree(entry, ignore_errors=True)


def _places(beside: Path) -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return beside / FOLDER, cache / "totalspineseg" / FOLDER


def _is_sound(entry: Path) -> bool:
    hashes = read_json_or(entry / RECORD, {})
    try:
        return all(hashes[name] == sha256_of(entry / name) for name in (MODEL, WEIGHTS))
    except (OSError, KeyError):
        return False
