"""Take a model out of a zip that may be hostile: only what a model needs, never outside the folder."""

import re
from pathlib import Path, PurePosixPath
from typing import Final

from lib.errors import ArchiveError, WeightsError
from lib.files import storage_errors
from lib.zips import MAX_RATIO, open_archive

WANTED: Final = re.compile(r"plans\.json|dataset\.json|trust\.json|fold_(?:\d+|all)/checkpoint_(?:final|best)\.pth")
"""What a model folder needs; everything else in the zip stays there."""
MAX_TOTAL_BYTES: Final = 8 << 30
"""Bytes after unpacking what is wanted; two official checkpoints with their optimizer's state stay well below."""


def unpack_model(archive: Path, target: Path) -> None:
    """Extract the model files of a zip.

    Args:
        archive: The zip.
        target: Existing folder to extract into.

    Raises:
        WeightsError: No readable zip, an entry that leaves the folder, a link, a bomb, or no model inside.
        StorageError: The files cannot be written.
    """
    try:
        with (
            archive.open("rb") as file,
            storage_errors(target),
            open_archive(file, target, is_wanted=_is_wanted, max_bytes=MAX_TOTAL_BYTES, max_ratio=MAX_RATIO) as content,
        ):
            for entry in content.entries:
                path = target.joinpath(*PurePosixPath(entry.filename).parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                content.extract(entry, path)
    except (ArchiveError, FileNotFoundError) as error:
        raise WeightsError(f"No model could be taken out of {archive.name!r}. {error}") from error


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" not in parts and any(WANTED.fullmatch("/".join(parts[-n:])) for n in (1, 2))
