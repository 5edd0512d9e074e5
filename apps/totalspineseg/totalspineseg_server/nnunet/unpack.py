"""Extract a model from a zip that may be hostile: only the files of a model, and never outside the folder."""

import re
from pathlib import Path, PurePosixPath
from typing import Final

from totalspineseg_server.errors import ArchiveError, WeightsError
from totalspineseg_server.files import storage_errors
from totalspineseg_server.io.zips import MAX_RATIO, open_archive

WANTED: Final = re.compile(r"plans\.json|dataset\.json|trust\.json|fold_(?:\d+|all)/checkpoint_(?:final|best)\.pth")
"""Files of a model folder; all others are not extracted."""
MAX_TOTAL_BYTES: Final = 8 << 30
"""Largest size of all extracted files together; two official checkpoints with their optimizer's state are well
below."""


def unpack_model(archive: Path, target: Path) -> None:
    """Extract the model files of a zip.

    Args:
        archive: The zip.
        target: Existing folder to extract into.

    Raises:
        WeightsError: The zip is not readable, has no model, or has a link, a zip bomb, or an entry outside its folder.
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
