"""Unpack the files of a series from a .zip that may be hostile, all into one folder."""

from pathlib import Path, PureWindowsPath
from typing import IO

from totalspineseg_server.front.received_files import plain_name
from totalspineseg_server.zips import open_archive


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
