"""Image ids, which are whatever clients call their images, and the names of the files that hold them."""

import re
from typing import Final
from urllib.parse import quote, unquote

MAX_STEM_CHARACTERS: Final = 200
"""What a person can still read."""
MAX_STEM_BYTES: Final = 240
"""File systems allow 255; the longest file of an image is what is noted about a label, ``.<stem>.nii.gz.json``."""
SPECIAL: Final = re.compile(r'[/\\:*?"<>|]')
"""What names of files cannot have on one system or another."""
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def is_usable_id(image_id: str) -> bool:
    """Whether an image can have this id: any name that a person can read and a file can hold.

    3D Slicer calls a DICOM volume by its series, such as ``5: t2_tse_sag``.
    """
    if not 0 < len(image_id) <= MAX_STEM_CHARACTERS or CONTROL.search(image_id):
        return False
    return _fits_a_name(file_stem(image_id))


def is_plain_stem(stem: str) -> bool:
    """Whether a file's name without its ending is harmless: no folder, no special character, not hidden."""
    bad = stem.startswith(".") or SPECIAL.search(stem) or CONTROL.search(stem)
    return not bad and _fits_a_name(stem)


def file_stem(image_id: str) -> str:
    """The name, without ending, of the file of an image; no two ids have the same one.

    Returns:
        The id itself where that is a plain name; else with its special characters as in an address (``5%3A t2``).
    """
    return _coded(image_id) if _needs_code(image_id) else image_id


def id_of_stem(stem: str) -> str:
    """The id of an image whose file has this name; ``file_stem`` the other way round, for every plain name."""
    return unquote(stem) if _is_code(stem) else stem


def _fits_a_name(stem: str) -> bool:
    """Whether a name is text of a length that a person can read and file systems can hold."""
    try:
        length_bytes = len(stem.encode())
    except UnicodeEncodeError:
        # Half a character, as for a file whose name is in another code page: no index can hold it.
        return False
    return 0 < len(stem) <= MAX_STEM_CHARACTERS and length_bytes <= MAX_STEM_BYTES


def _needs_code(image_id: str) -> bool:
    """Whether an id cannot be a file's name, or would be read as that of another one."""
    special = image_id.startswith(".") or SPECIAL.search(image_id) is not None
    return special or _is_code(image_id)


def _is_code(stem: str) -> bool:
    """Whether a name is what ``file_stem`` makes of some id; one that only looks like it (``100%``) is an id itself."""
    if "%" not in stem:
        return False
    image_id = unquote(stem)
    return _coded(image_id) == stem and _needs_code(image_id)


def _coded(image_id: str) -> str:
    coded = re.sub(r'[%/\\:*?"<>|]', lambda match: quote(match[0], safe=""), image_id)
    return coded.replace(".", "%2E", 1) if coded.startswith(".") else coded
