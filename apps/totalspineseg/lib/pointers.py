"""Recognize files whose content is elsewhere: links without a target, and pointers of git-annex and Git LFS."""

from pathlib import Path
from typing import Final

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
    if not path.is_file() or path.stat().st_size > MAX_POINTER_BYTES:
        return ""
    content = path.read_bytes()
    if content.startswith(LFS_START):
        return "is a pointer of Git LFS, not the file itself: fetch it with 'git lfs pull'"
    if content.startswith(ANNEX_START):
        return "is a pointer of git-annex, not the file itself: fetch it with 'datalad get' or 'git annex get'"
    return ""
