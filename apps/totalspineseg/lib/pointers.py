"""Recognize files that cannot be read as they are: links without a target, pointers of git-annex and Git LFS, pipes."""

import os
from pathlib import Path
from typing import Final

from lib.errors import ImageError

MAX_POINTER_BYTES: Final = 1024
"""Maximum size of a pointer; both kinds are a few lines."""
LFS_START: Final = b"version https://git-lfs.github.com/spec/"
ANNEX_START: Final = b"/annex/objects/"
ANNEX_TARGET: Final = ".git/annex/objects"


def missing_content(path: Path) -> str:
    """Return why the content of a file is not here, and how to fetch it.

    Args:
        path: A file or a link.

    Returns:
        What the file is and what to do, without its name; "" where the content is here, or the file does not exist.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink() and not path.exists():
        if ANNEX_TARGET in path.readlink().as_posix():
            return "is a link of git-annex whose content is not here: fetch it with 'datalad get' or 'git annex get'"
        return "is a link to a file that does not exist: restore the file, or correct the link"
    if path.exists() and not path.is_file() and not path.is_dir():
        # Reading a pipe would wait for ever.
        return "is neither a file nor a folder, but a pipe or a device: remove it, or copy its content into a file"
    if not path.is_file() or path.stat().st_size > MAX_POINTER_BYTES:
        return ""
    content = path.read_bytes()
    if content.startswith(LFS_START):
        return "is a pointer of Git LFS, not the file itself: fetch it with 'git lfs pull'"
    if content.startswith(ANNEX_START):
        return "is a pointer of git-annex, not the file itself: fetch it with 'datalad get' or 'git annex get'"
    return ""


def real_path(path: Path) -> Path:
    """Return the absolute path of a file without links; a link that leads back to itself stays as it is."""
    return Path(os.path.realpath(path))


def itk_name(path: Path) -> str:
    """Return a path as SimpleITK takes it.

    Raises:
        ImageError: It is not Unicode text; SimpleITK would end the whole program.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"The name of {path.name!r} or of one of its folders is not written in UTF-8. Rename it."
        ) from error
    return name
