"""What a folder of studies holds that is not offered as an image, and what would make it one."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from lib.corrections.image_ids import is_plain_stem
from lib.pointers import missing_content, real_path
from lib.volume_io import WRITTEN_SUFFIXES, is_image_name, is_other_name, stem

OFFERED_ENDINGS: Final = WRITTEN_SUFFIXES
"""Endings, in any case, of files that are offered as images."""
MAX_LOOKED_AT: Final = 2000
"""Entries below one folder after which nothing more is looked for in it."""
LOOSE_IMAGES: Final = "only files directly in the folder of studies are offered: link or copy the images there"
DICOM: Final = "convert the series to NIfTI, or serve a DICOMweb server: from a folder no DICOM files are offered"


def is_offered(path: Path) -> bool:
    """Return whether a file of the studies folder is an image to offer: by its name, and if its content is here."""
    if not path.name.lower().endswith(OFFERED_ENDINGS) or not is_plain_stem(stem(path)):
        return False
    try:
        return path.is_file() and not missing_content(path)
    except OSError:
        return False


def not_offered(folder: Path, *, labels: Path) -> dict[str, str]:
    """Return what lies in a folder of studies and is not offered.

    Args:
        folder: The folder. Hidden entries do not count, nor files that look like neither an image nor DICOM.
        labels: The server's own folder of labels, which is passed over.

    Returns:
        Name, with a "/" behind that of a folder -> why it is not offered, and what to do.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or real_path(path) == real_path(labels):
            continue
        is_folder = path.is_dir()
        try:
            reason = _reason_of_folder(path) if is_folder else _reason_of_file(path)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}): grant the server access to it"
        if reason:
            found[f"{path.name}/" if is_folder else path.name] = reason
    return found


def _reason_of_file(path: Path) -> str:
    if is_offered(path):
        return ""
    if reason := missing_content(path) if is_image_name(path) or path.is_symlink() else "":
        return reason
    if path.name.lower().endswith(OFFERED_ENDINGS):
        if not is_plain_stem(stem(path)):
            return "has a name that is too long, or with characters that not every system can hold: rename it"
        # Opening it says why it is no file that can be read.
        path.open("rb").close()
        return ""
    if is_image_name(path) or is_other_name(path):
        return f"is of a kind that is not offered: convert it to {', '.join(OFFERED_ENDINGS)}, or unpack it"
    return f"is a DICOM file; {DICOM}" if _is_dicom(path) else ""


def _reason_of_folder(folder: Path) -> str:
    """What is in a folder, by the first image or DICOM file below it."""
    with os.scandir(folder):
        pass  # It raises what walking through it would pass over.
    for path in islice(_below(folder), MAX_LOOKED_AT):
        way = path.relative_to(folder.parent).as_posix()
        if is_image_name(path) or is_other_name(path):
            return f"holds files of images ({way!r}); {LOOSE_IMAGES}"
        if _is_dicom(path):
            return f"holds DICOM files ({way!r}); {DICOM}"
    return ""


def _below(folder: Path) -> Iterator[Path]:
    """Files below a folder, those of a folder before those of its subfolders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place) / name


def _is_dicom(path: Path) -> bool:
    # Here because importing pydicom takes longer than finding the images of a folder without DICOM.
    from lib.dicom.headers import is_dicom

    return path.is_file() and is_dicom(path)
