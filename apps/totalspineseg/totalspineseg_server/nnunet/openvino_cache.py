"""Keep converted networks on disk: beside their weights if that is allowed, else in the user's cache.

An entry is a folder whose name is the hash of its sources. It appears complete or not at all, and the hashes of its
files are checked before it is used.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from totalspineseg_server import places
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import read_json_or, sha256_of, staged_folder, storage_errors, write_json

logger = logging.getLogger(__name__)

FOLDER: Final = "openvino"
MODEL, WEIGHTS, RECORD = "model.xml", "model.bin", "sha256.json"


def cached(beside: Path, key: str) -> Path | None:
    """Return the model file of a complete and undamaged entry; remove damaged ones.

    Args:
        beside: The model's folder.
        key: Hash of the sources of the entry.
    """
    for place in _places(beside):
        entry = place / key
        if not entry.is_dir():
            continue
        if _is_sound(entry):
            return entry / MODEL
        logger.warning("The converted network %s is damaged and will be made again", entry)
        discard(entry)
    return None


def keep(beside: Path, key: str, save: Callable[[Path], None]) -> Path | None:
    """Add an entry in the first folder that is writable.

    Args:
        beside: The model's folder.
        key: Name of the entry.
        save: Writes ``MODEL`` (its argument) and ``WEIGHTS`` beside it.

    Returns:
        The model file; None if no folder is writable.
    """
    for place in _places(beside):
        try:
            with storage_errors(place), staged_folder(place / key) as staging:
                save(staging / MODEL)
                write_json(staging / RECORD, {name: sha256_of(staging / name) for name in (MODEL, WEIGHTS)})
        except StorageError as error:
            # Another process may have been faster; its entry is just as good.
            if _is_sound(place / key):
                return place / key / MODEL
            logger.info("The converted network cannot be stored in %s: %s", place, error)
        else:
            return place / key / MODEL
    logger.warning("No folder for converted networks is writable, so the next start converts them again")
    return None


def discard(entry: Path) -> None:
    """Remove an entry as far as permissions allow."""
    shutil.rmtree(entry, ignore_errors=True)


def entry_key(digest: str, release: str, *, int8: bool = False) -> str:
    """Return the name of a network's entry.

    Args:
        digest: ``ModelFolder.digest``.
        release: Release of OpenVINO, such as "2026.4.1".
        int8: Whether the network computes in whole numbers.
    """
    return f"{digest[:32]}-{release}{'-int8' if int8 else ''}"


def _places(beside: Path) -> tuple[Path, Path]:
    return beside / FOLDER, places.cache_dir() / FOLDER


def _is_sound(entry: Path) -> bool:
    hashes = read_json_or(entry / RECORD, {})
    try:
        return all(hashes[name] == sha256_of(entry / name) for name in (MODEL, WEIGHTS))
    except (OSError, KeyError):
        return False
