"""Write files that clients send to disk, under names of our own; unpack archives of them that may be hostile."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Final

from fastapi import UploadFile

from totalspineseg_server.corrections.receipts import label_suffix
from totalspineseg_server.errors import SettingError
from totalspineseg_server.files import CHUNK_BYTES
from totalspineseg_server.infers.sessions import META_FILE
from totalspineseg_server.io.volumes import IMAGE_SUFFIXES
from totalspineseg_server.io.zips import open_archive

MAX_FILE_NAME: Final = 200
"""Longest name, in bytes. File systems allow 255, and a number may be put before the name."""


def client_name(upload: UploadFile) -> str:
    """Return the file's name from the client, without folders of any operating system."""
    return plain_name(upload.filename or "")


def plain_name(path: str) -> str:
    """Return the last part of a path of any operating system, shortened to a valid file name; "" if there is none."""
    name = PurePosixPath(PureWindowsPath(path).as_posix()).name
    letters = "".join(c for c in name if ord(c) >= 32)
    # Leave out broken characters: those of another code page, and one that was split when the name was shortened.
    plain = letters.encode(errors="ignore")[-MAX_FILE_NAME:].decode(errors="ignore")
    return "" if plain in (".", "..") else plain


def image_suffix(name: str) -> str:
    """Return the image ending of a name; ".dcm" if there is none, because DICOM files often have none."""
    return next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), ".dcm")


def save_image(upload: UploadFile, folder: Path) -> Path:
    """Write an uploaded image into a folder."""
    return _save(upload, folder / f"image{image_suffix(client_name(upload))}")


def save_label(upload: UploadFile, folder: Path) -> Path:
    """Write an uploaded label into a folder."""
    return _save(upload, folder / f"label{label_suffix(client_name(upload))}")


def save_all(uploads: Sequence[UploadFile], folder: Path) -> Path:
    """Write the files of one series.

    Returns:
        The file, or the folder if there are several.
    """
    if len(uploads) == 1:
        name = client_name(uploads[0])
        # MONAI Label writes its own notes about a session beside the session's image.
        return _save(uploads[0], folder / (f"image-{name}" if name in ("", META_FILE) else name))
    for number, upload in enumerate(uploads):
        _save(upload, folder / f"{number:05d}-{client_name(upload)}")
    return folder


def _save(upload: UploadFile, path: Path) -> Path:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, CHUNK_BYTES)
    return path


def read_params(text: str) -> dict[str, Any]:
    """Return the JSON object in ``params``.

    Raises:
        SettingError: The text is not a JSON object.
    """
    try:
        params = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise SettingError(f"'params' must be a JSON object, got {text[:80]!r}") from error
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise SettingError(f"'params' must be a JSON object, got {text[:80]!r}")
    return params


def unpack_series(archive: IO[bytes], folder: Path, *, max_bytes: int) -> Path:
    """Write the files of an archive into a folder, without the archive's own folders and hidden files.

    Args:
        archive: The .zip; it must be seekable.
        folder: Empty folder. If an archive is refused, the caller removes its content.
        max_bytes: Largest size of all files together.

    Returns:
        The file, or the folder if there are several.

    Raises:
        ArchiveError: See ``open_archive``, also for the others.
    """
    with open_archive(archive, folder, is_wanted=_is_wanted, max_bytes=max_bytes) as content:
        for number, entry in enumerate(content.entries):
            name = plain_name(entry.filename) or "image"
            path = folder / (name if len(content.entries) == 1 else f"{number:05d}-{name}")
            content.extract(entry, path)
        return path if len(content.entries) == 1 else folder


def _is_wanted(name: str) -> bool:
    """Return whether an entry is a file of the series, not a hidden file of an operating system."""
    return not PureWindowsPath(name).name.startswith(".")
