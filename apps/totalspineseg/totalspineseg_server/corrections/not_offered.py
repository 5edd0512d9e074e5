"""Find the files of a studies folder that are not offered as images, and say how to offer them."""

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from totalspineseg_server.corrections.image_ids import OFFERED_ENDINGS, is_offered, is_plain_stem
from totalspineseg_server.io.unpacking import missing_content, real_path
from totalspineseg_server.io.volumes import is_image_name, is_other_name, stem

MAX_LOOKED_AT: Final = 2000
"""Largest number of entries of a folder that are examined."""
LOOSE_IMAGES: Final = (
    "only files directly in the studies folder and those of a BIDS tree (sub-01/anat/sub-01_T2w.nii.gz) are offered. "
    "Link or copy the images there, or serve the folder that has the sub- folders"
)
DICOM: Final = (
    "only MR series that have a folder of their own below the studies are offered, if they are volumes and no "
    "localizers. Give each series a folder, convert it to NIfTI, or serve a DICOMweb server"
)


def not_offered(folder: Path, *, labels: Path, offered: Collection[str] = ()) -> dict[str, str]:
    """Return the contents of a studies folder that are not offered.

    Args:
        folder: The folder. Hidden entries are skipped, and files that look like neither an image nor DICOM.
        labels: The server's own folder of labels, which is skipped.
        offered: Paths below the folder of the images and series that are offered. Folders with some of these are
            skipped.

    Returns:
        Name (of a folder, with a "/" behind it) -> why it is not offered, and what to do.
    """
    found, with_images = {}, {way.partition("/")[0] for way in offered}
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir()
        has_images = is_folder and path.name in with_images
        if path.name.startswith(".") or has_images or real_path(path) == real_path(labels):
            continue
        try:
            reason = _reason_of_folder(path) if is_folder else _reason_of_file(path)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}). Grant the server access to it"
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
            return "has a name that is too long or has characters that some systems do not allow. Rename it"
        # Opening it raises the reason why it cannot be read.
        path.open("rb").close()
        return ""
    if is_image_name(path) or is_other_name(path):
        return f"is in a format that is not offered. Convert it to {', '.join(OFFERED_ENDINGS)}, or unpack it"
    return f"is a DICOM file; {DICOM}" if _is_dicom(path) else ""


def _reason_of_folder(folder: Path) -> str:
    """Return why a folder is not offered, by the first image or DICOM file below it."""
    with os.scandir(folder):
        pass  # Raise what ``os.walk`` would ignore.
    for path in islice(_below(folder), MAX_LOOKED_AT):
        way = path.relative_to(folder.parent).as_posix()
        if is_image_name(path) and (missing := missing_content(path)):
            return f"holds {way!r}, which {missing}"
        if is_image_name(path) or is_other_name(path):
            return f"contains image files ({way!r}); {LOOSE_IMAGES}"
        if _is_dicom(path):
            return f"holds DICOM files ({way!r}); {DICOM}"
    return ""


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those of a folder before those of its subfolders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place) / name


def _is_dicom(path: Path) -> bool:
    # Import here, because importing pydicom takes longer than listing a folder without DICOM.
    from totalspineseg_server.io.dicom.headers import is_dicom

    return path.is_file() and is_dicom(path)
