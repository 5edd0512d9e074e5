"""Files that clients send, on disk under names of our own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

from fastapi import UploadFile

from lib.corrections.history import CHUNK_BYTES
from lib.corrections.receipts import label_suffix
from lib.infers.sessions import META_FILE
from lib.infers.settings import SettingError
from lib.volume_io import IMAGE_SUFFIXES

MAX_FILE_NAME: Final = 200
"""Bytes. File systems allow 255, and a number may be put before the name."""


def client_name(upload: UploadFile) -> str:
    """The file's name as the client called it, without folders of whatever system."""
    return plain_name(upload.filename or "")


def plain_name(path: str) -> str:
    """Return the end of the last part of a path of whatever system, as a file can be called; "" where there is none."""
    name = PurePosixPath(PureWindowsPath(path).as_posix()).name
    letters = "".join(c for c in name if ord(c) >= 32)
    # Half characters, as of a name in another code page, and the half of one that is cut in two are left out.
    plain = letters.encode(errors="ignore")[-MAX_FILE_NAME:].decode(errors="ignore")
    return "" if plain in (".", "..") else plain


def image_suffix(name: str) -> str:
    """The image ending of a name; ".dcm" when there is none, for DICOM files often have none."""
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
        The file, or the folder when there are several.
    """
    if len(uploads) == 1:
        name = client_name(uploads[0])
        # The host notes what it knows of a session beside its image.
        return _save(uploads[0], folder / (f"image-{name}" if name in ("", META_FILE) else name))
    for number, upload in enumerate(uploads):
        _save(upload, folder / f"{number:05d}-{client_name(upload)}")
    return folder


def _save(upload: UploadFile, path: Path) -> Path:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, CHUNK_BYTES)
    return path


def read_params(text: str) -> dict[str, Any]:
    """The JSON object that came as ``params``.

    Raises:
        SettingError: Not a JSON object.
    """
    try:
        params = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise SettingError(f"'params' must be a JSON object, got {text[:80]!r}; correct it") from error
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise SettingError(f"'params' must be a JSON object, got {text[:80]!r}; correct it")
    return params
