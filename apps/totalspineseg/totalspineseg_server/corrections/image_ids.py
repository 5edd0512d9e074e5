"""Convert image ids, the names that clients use, to names of files and back, and list the image files of a folder."""

import re
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG
from typing import Final
from urllib.parse import quote, unquote

from totalspineseg_server.io.unpacking import MAX_POINTER_BYTES, missing_content
from totalspineseg_server.io.volumes import WRITTEN_SUFFIXES, image_named, stem

OFFERED_ENDINGS: Final = WRITTEN_SUFFIXES
"""Endings, in any case, of files that are offered as images."""
EXAMINATION: Final = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?_")
"""Beginning of a BIDS name. Series of one session share the scanner's coordinates; those of two sessions do not."""
BIDS_FOLDERS: Final = ("sub-*/anat", "sub-*/ses-*/anat")
MAX_STEM_CHARACTERS: Final = 200
"""Longest name that can be read at a glance."""
MAX_STEM_BYTES: Final = 240
"""File systems allow 255; the longest name of a file is that of a label's note, ``.<stem>.nii.gz.json``."""
SPECIAL: Final = re.compile(r'[/\\:*?"<>|]')
"""Characters that some systems do not allow in names of files."""
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def is_usable_id(image_id: str) -> bool:
    """Return whether an image can have this id: any name that a person can read and a file can have.

    3D Slicer names a DICOM volume after its series, such as ``5: t2_tse_sag``.
    """
    if not 0 < len(image_id) <= MAX_STEM_CHARACTERS or CONTROL.search(image_id):
        return False
    return _fits_a_name(file_stem(image_id))


def is_plain_stem(stem: str) -> bool:
    """Return whether a file's name without its ending is harmless: no folder, no special character, not hidden."""
    bad = stem.startswith(".") or SPECIAL.search(stem) or CONTROL.search(stem)
    return not bad and _fits_a_name(stem)


def file_stem(image_id: str) -> str:
    """Return the name, without ending, of the file of an image; no two ids share a name.

    Returns:
        The id itself if that is a plain name; else the id with its special characters percent-encoded (``5%3A t2``).
    """
    return _coded(image_id) if _needs_code(image_id) else image_id


def id_of_stem(stem: str) -> str:
    """Return the id of the image whose file has this name, the inverse of ``file_stem`` for every plain name."""
    return unquote(stem) if _is_code(stem) else stem


def is_offered(path: Path) -> bool:
    """Return whether a file of the studies folder is offered as an image: by its name, and if its content is here."""
    if not path.name.lower().endswith(OFFERED_ENDINGS) or not is_plain_stem(stem(path)):
        return False
    try:
        stat = path.stat()
        # Ask once of each file: thousands are listed, perhaps over a network.
        return S_ISREG(stat.st_mode) and (stat.st_size > MAX_POINTER_BYTES or not missing_content(path))
    except (OSError, ValueError):
        return False


def split_name(name: str) -> tuple[str, str]:
    """Return the image id that a file's name stands for, and the file's ending."""
    for ending in OFFERED_ENDINGS:
        if name.lower().endswith(ending):
            return id_of_stem(name[: -len(ending)]), name[-len(ending) :]
    path = Path(name)
    return id_of_stem(path.stem), path.suffix


def image_files(folder: Path) -> list[str]:
    """Return the names of the image files of a folder, in the order of their endings in ``OFFERED_ENDINGS``.

    Files that are being written and files without a plain name are skipped.

    Raises:
        OSError: The folder cannot be read.
    """
    plain = [file.name for file in folder.iterdir() if is_offered(file)]
    return sorted(plain, key=lambda name: (OFFERED_ENDINGS.index(split_name(name)[1].lower()), name))


def bids_folder(image_id: str) -> Path | None:
    """Return the folder of an image in a BIDS tree, such as sub-01/ses-02/anat; None for another name."""
    found = EXAMINATION.match(image_id)
    return None if found is None else Path(*filter(None, found.groups()), "anat")


def same_examination(one: str, other: str) -> bool:
    """Return whether two image ids belong to one examination: they begin with the same BIDS ``sub-`` and ``ses-``."""
    first, second = (EXAMINATION.match(image_id) for image_id in (one, other))
    return first is not None and second is not None and first.groups() == second.groups()


def studies_files(folder: Path) -> list[str]:
    """Return the image files of a studies folder: those directly in it, and those of a BIDS tree in their folders.

    Returns:
        Their paths below the folder, in the order of ``image_files``, those of a BIDS tree last.

    Raises:
        OSError: A folder cannot be read.
    """
    found = image_files(folder) if folder.is_dir() else []
    for place in sorted(path.relative_to(folder) for pattern in BIDS_FOLDERS for path in folder.glob(pattern)):
        # A file whose name does not say where it belongs would share its id with another one.
        found += [(place / name).as_posix() for name in image_files(folder / place) if bids_folder(name) == place]
    return found


def image_in_studies(folder: Path, image_id: str) -> Path | None:
    """Return the file of an image of a studies folder; None if there is none."""
    place = bids_folder(image_id)
    places = (folder,) if place is None else (folder, folder / place)
    return next(filter(None, (image_named(each, file_stem(image_id)) for each in places)), None)


def by_image(names: Iterable[str]) -> dict[str, list[str]]:
    """Return image id -> its files, as names or as paths with "/", in the same order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_name(name.rpartition("/")[2])[0], []).append(name)
    return found


def _fits_a_name(stem: str) -> bool:
    """Return whether a name is text of a length that a person can read and file systems can hold."""
    try:
        length_bytes = len(stem.encode())
    except UnicodeEncodeError:
        # A lone surrogate, as in a file name in another code page: no index can hold it.
        return False
    return 0 < len(stem) <= MAX_STEM_CHARACTERS and length_bytes <= MAX_STEM_BYTES


def _needs_code(image_id: str) -> bool:
    """Return whether an id cannot be a file's name, or would be read as another id."""
    special = image_id.startswith(".") or SPECIAL.search(image_id) is not None
    return special or _is_code(image_id)


def _is_code(stem: str) -> bool:
    """Return whether a name is a result of ``file_stem``; one that only looks like it (``100%``) is an id itself."""
    if "%" not in stem:
        return False
    image_id = unquote(stem)
    return _coded(image_id) == stem and _needs_code(image_id)


def _coded(image_id: str) -> str:
    coded = re.sub(r'[%/\\:*?"<>|]', lambda match: quote(match[0], safe=""), image_id)
    return coded.replace(".", "%2E", 1) if coded.startswith(".") else coded
