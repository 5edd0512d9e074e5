"""Say why the content of a file is not here, and write its path as libraries need it."""

import os
from pathlib import Path
from typing import Final

from totalspineseg_server.errors import ImageError
from totalspineseg_server.io import io_messages

MAX_POINTER_BYTES: Final = 1024
"""Largest size of a pointer; both kinds are a few lines."""
LFS_START: Final = b"version https://git-lfs.github.com/spec/"
ANNEX_START: Final = b"/annex/objects/"
ANNEX_TARGET: Final = ".git/annex/objects"


def missing_content(path: Path) -> str:
    """Return why the content of a file is not here, and how to fetch it.

    Args:
        path: A file or a link.

    Returns:
        A sentence that says what the file is and what to do, without its name; "" if the content is here, or if the
        file does not exist.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink() and not path.exists():
        if ANNEX_TARGET in path.readlink().as_posix():
            return io_messages.GIT_ANNEX_LINK
        return io_messages.BROKEN_LINK
    if path.exists() and not path.is_file() and not path.is_dir():
        # Reading a pipe would never end.
        return io_messages.NO_REGULAR_FILE
    if not path.is_file() or path.stat().st_size > MAX_POINTER_BYTES:
        return ""
    content = path.read_bytes()
    if content.startswith(LFS_START):
        return io_messages.GIT_LFS_POINTER
    if content.startswith(ANNEX_START):
        return io_messages.GIT_ANNEX_POINTER
    return ""


def real_path(path: Path) -> Path:
    """Return the absolute path of a file with links resolved; a link that leads back to itself stays as it is."""
    return Path(os.path.realpath(path))


def itk_name(path: Path) -> str:
    """Return a path in the form that SimpleITK accepts.

    Raises:
        ImageError: It is not Unicode text; SimpleITK would end the whole program.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(io_messages.BAD_FILE_NAME.format(name=path.name)) from error
    return name
