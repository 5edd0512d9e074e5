"""Make ids, and the names of files and folders that belong to an id; read the entries of the history by their ids."""

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from stat import S_ISREG
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import from_fields, read_json
from totalspineseg_server.io.file_content import MAX_POINTER_BYTES, missing_content
from totalspineseg_server.io.volumes import WRITTEN_SUFFIXES, stem

logger = logging.getLogger(__name__)

T = TypeVar("T")

HISTORY_DIR: Final = ".totalspineseg"
"""Folder inside the studies folder; hidden, so that the datastore does not list its files as images."""
PACS_DIR: Final = "pacs"
"""Folder for a PACS, below the history: fetched series and the labels shown to clients."""
STUDIES_DIR: Final = "studies"
"""Folder for images that are only read, below the history: the index and the labels shown to clients."""
MAX_FOLDER_NAME: Final = 200
"""Largest length of a folder name, bytes; file systems allow 255, and endings need some room."""
ID_TIME: Final = re.compile(r"(\d{4}[01]\d[0-3]\dT[0-2]\d[0-5]\d[0-5]\d)(\.\d{6})?Z-[0-9a-f]+")
"""Pattern of ids; ids of trainings, which people type, have no fraction of a second."""
RECORD_FILE: Final = "record.json"
"""File with the record of an entry."""
OFFERED_ENDINGS: Final = WRITTEN_SUFFIXES
"""Endings, in any case, of files that are offered as images."""
EXAMINATION: Final = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?_")
"""Beginning of a BIDS name. Series of one session share the scanner's coordinates; those of two sessions do not."""
MAX_STEM_CHARACTERS: Final = 200
"""Longest name that can be read at a glance."""
MAX_STEM_BYTES: Final = 240
"""File systems allow 255; the longest name of a file is that of a label's note, ``.<stem>.nii.gz.json``."""
SPECIAL: Final = re.compile(r'[/\\:*?"<>|]')
"""Characters that some systems do not allow in names of files."""
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def new_id(earlier: Iterable[str] = ()) -> str:
    """Return an id that sorts by time and never repeats: ``20260131T120000.123456Z-1a2b3c4d``.

    Args:
        earlier: Existing ids, perhaps among other names. The new id sorts after these ids, even if the clock was ahead
            when they were made.
    """
    return f"{time_after(earlier, timedelta(microseconds=1)):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"


def time_after(earlier: Iterable[str], step: timedelta) -> datetime:
    """Return the time in UTC; if it is not later than the latest earlier id, return that id's time plus a step.

    Args:
        earlier: Ids, perhaps among other names, which are ignored.
        step: Smallest difference between two ids of a format.
    """
    now = datetime.now(timezone.utc)
    latest = max((match.groups(".0") for match in map(ID_TIME.fullmatch, earlier) if match), default=None)
    if latest is None:
        return now
    return max(now, datetime.strptime("".join(latest), "%Y%m%dT%H%M%S.%f").replace(tzinfo=timezone.utc) + step)


def now_text() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def text_of_time(seconds: float) -> str:
    """Return a time in the form of ``now_text``: UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def folder_name(image_id: str) -> str:
    """Return a safe and unique folder name for an image id, whatever characters the id has.

    Raises:
        ValueError: The id is empty.
    """
    if not image_id:
        raise ValueError("expected an image id, got ''")
    name = quote(image_id, safe=" ,+=@()")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    if len(name) > MAX_FOLDER_NAME:
        name = f"{name[: MAX_FOLDER_NAME - 17]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
    return name


def names(parent: Path) -> tuple[str, ...]:
    """Return the names of the entries of a folder, oldest first."""
    return tuple(entry.name for entry in entries(parent))


def entries(parent: Path) -> tuple[Path, ...]:
    """Return the complete entries of a folder, oldest first; empty if there is no folder."""
    if not parent.is_dir():
        return ()
    return tuple(sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")))


def read_record(kind: type[T], entry: Path, name: str) -> T:
    """Return the record of an entry.

    Args:
        kind: Dataclass of the record.
        entry: Folder of the entry.
        name: What the entry is, for messages, such as "prediction".

    Raises:
        StorageError: It cannot be read.
    """
    return from_fields(kind, read_json(entry / RECORD_FILE), f"of {name} {entry.name} in {entry.parent}")


def records(
    kind: type[T], found: Iterable[Path], name: str, on_damaged: Callable[[Path, StorageError], object] | None = None
) -> Iterator[T]:
    """Yield the records of some entries; one that cannot be read is logged, or reported, and skipped.

    Args:
        kind: Dataclass of the records.
        found: Folders of the entries.
        name: What an entry is, see ``read_record``.
        on_damaged: Called with a damaged entry and the reason; None to log it.
    """
    for entry in found:
        try:
            record = read_record(kind, entry, name)
        except StorageError as error:
            if on_damaged is None:
                logger.warning("A %s cannot be read and is skipped: %s", name, error)
            else:
                on_damaged(entry, error)
        else:
            yield record


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


def split_name(name: str) -> tuple[str, str]:
    """Return the image id that a file's name stands for, and the file's ending."""
    for ending in OFFERED_ENDINGS:
        if name.lower().endswith(ending):
            return id_of_stem(name[: -len(ending)]), name[-len(ending) :]
    path = Path(name)
    return id_of_stem(path.stem), path.suffix


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


def image_files(folder: Path) -> list[str]:
    """Return the names of the image files of a folder, in the order of their endings in ``OFFERED_ENDINGS``.

    Files that are being written and files without a plain name are skipped.

    Raises:
        OSError: The folder cannot be read.
    """
    plain = [file.name for file in folder.iterdir() if is_offered(file)]
    return sorted(plain, key=lambda name: (OFFERED_ENDINGS.index(split_name(name)[1].lower()), name))


def by_image(names: Iterable[str]) -> dict[str, list[str]]:
    """Return image id -> its files, as names or as paths with "/", in the same order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_name(name.rpartition("/")[2])[0], []).append(name)
    return found


def bids_folder(image_id: str) -> Path | None:
    """Return the folder of an image in a BIDS tree, such as sub-01/ses-02/anat; None for another name."""
    found = EXAMINATION.match(image_id)
    return None if found is None else Path(*filter(None, found.groups()), "anat")


def same_examination(one: str, other: str) -> bool:
    """Return whether two image ids belong to one examination: they begin with the same BIDS ``sub-`` and ``ses-``."""
    first, second = (EXAMINATION.match(image_id) for image_id in (one, other))
    return first is not None and second is not None and first.groups() == second.groups()


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
