"""Remember what is known of the files of the studies: hashes, who uploaded an image, to whom it was offered.

Each image has a record of its own, ``images/<image>.json``. Earlier versions kept all of it in the index of MONAI
Label's own datastore, ``datastore_v2.json``, which is still read and never written. A file is read again only if it has
changed.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from totalspineseg_server.corrections import answers, ids
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import read_json, read_json_or, sha256_of, storage_errors, write_json
from totalspineseg_server.locks import NamedLocks

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[int, int, int]

IMAGES_DIR: Final = "images"
IMAGES_FILE: Final = "images.json"
"""File in a folder of labels that says where the images are, if they are in another folder."""
PATIENT: Final = "patient"
"""Field of an image's record: an anonymous id of its patient. All images of a patient are used for training, or all for
comparing models."""
INDEX_FILE: Final = "datastore_v2.json"
"""MONAI Label's name for the index of studies."""
NOTED: Final = "strategy"
"""Field of an image's record: strategy -> the time and client of its last offer of the image."""
SETTLED_NS: Final = 2_000_000_000
"""If the last change of a file is at least this old, ns, another change would give the file another time. File
systems count in milliseconds, some in seconds."""
SAVE_SECONDS: Final = 60.0
"""Shortest time between two writes of the hashes, because the file has a line for every image."""


def stamp_of(path: Path) -> Stamp | None:
    """Return a value that changes with a file, or with the names in a folder; zeros if there is nothing.

    Returns:
        None if the last change is so recent that another one might not be noticed.
    """
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    is_settled = time.time_ns() - stat.st_mtime_ns > SETTLED_NS
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if is_settled else None


class Remembered(Generic[T]):
    """Values that were read from files or folders; a value is read again if one of these has changed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[tuple[Stamp | None, ...], T]] = {}

    def value(self, key: Hashable, paths: Sequence[Path], read: Callable[[], T]) -> T:
        """Return the value of a key.

        Args:
            key: Its key.
            paths: The files and folders that it depends on; they need not exist.
            read: Called if the value is not known, or if one of the files has changed.
        """
        states = tuple(stamp_of(path) for path in paths)
        known = self._known.get(key)
        if known is not None and known[0] == states and None not in states:
            return known[1]
        value = read()
        self._known[key] = states, value
        return value

    def forget(self, key: Hashable) -> None:
        """Forget the value of a key, so that it is read again."""
        self._known.pop(key, None)


class ContentHashes:
    """The SHA-256 of files; a file is read only if its size or time has changed.

    Args:
        file: File that stores the hashes for the next start; it may be deleted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[int, int, str]] = {}
        self._reading = NamedLocks()
        self._saved_at = -SAVE_SECONDS
        for path, known in read_json_or(file, {}).items():
            with suppress(TypeError, ValueError):
                size, time_ns, sha256 = known
                self._known[path] = int(size), int(time_ns), str(sha256)

    def learn(self, path: Path, size: int, time_ns: int, sha256: str) -> None:
        """Store the hash that a file had at a time, unless a hash is known already."""
        self._known.setdefault(str(path), (size, time_ns, sha256))

    def is_content(self, path: Path, sha256: str) -> bool:
        """Return whether a file has this content.

        Raises:
            OSError: It cannot be read.
        """
        stat, known = path.stat(), self._known.get(str(path))
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2] == sha256
        # A file of another size has other content.
        if known is not None and known[2] == sha256 and known[0] != stat.st_size:
            return False
        return self.of(path) == sha256

    def of(self, path: Path) -> str:
        """Return the hash of a file's content.

        Raises:
            OSError: It cannot be read.
        """
        # Many requests may ask at once; those that waited find what the first one has read.
        with self._reading.of(str(path)):
            stat = path.stat()
            size, time_ns, sha256 = self._known.get(str(path), (-1, 0, ""))
            if (size, time_ns) != (stat.st_size, stat.st_mtime_ns):
                sha256 = sha256_of(path)
                self._known[str(path)] = stat.st_size, stat.st_mtime_ns, sha256
                self._save()
        return sha256

    def _save(self) -> None:
        now = time.monotonic()
        if now - self._saved_at < SAVE_SECONDS or not self._file.parent.is_dir():
            return
        self._saved_at = now
        try:
            write_json(self._file, dict(self._known))
        except StorageError as error:
            logger.warning("The server will read the images again after its next start: %s", error)


@dataclass(frozen=True)
class OlderIndex:
    """The index that an earlier version of this software wrote.

    Attributes:
        objects: Image id -> information about it and its labels.
        changed_ns: Time of its last change, ns.
    """

    objects: Mapping[str, Any] | None = None
    changed_ns: int = 0

    def image(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image."""
        return _info(_field(self._entry(image_id), "image"))

    def label(self, image_id: str, tag: str) -> dict[str, Any]:
        """Return the information about the label of an image under a tag."""
        return _info(_field(_field(self._entry(image_id), "labels"), tag))

    def hashes(self) -> Iterator[tuple[str, int, int, str]]:
        """Yield the name of an image's file with the size, time (ns) and hash of the content its label was drawn on."""
        for image_id, entry in (self.objects or {}).items():
            labels, name = _field(entry, "labels"), self.image(image_id).get("name")
            for tag in labels if isinstance(labels, Mapping) else ():
                info = self.label(image_id, tag)
                with suppress(TypeError, ValueError, KeyError):
                    size, time_ns = info["image_imprint"]
                    yield str(name), int(size), int(time_ns), str(info["image_sha256"])

    def _entry(self, image_id: str) -> object:
        return (self.objects or {}).get(image_id)


def older_index(folder: Path) -> OlderIndex:
    """Return the index in a folder; an empty one if there is none, or none that can be read."""
    file = folder / INDEX_FILE
    try:
        if not file.is_file():
            return OlderIndex()
        content = read_json(file)
        objects = content.get("objects")
        known = objects if isinstance(objects, dict) else {}
        return OlderIndex(known, file.stat().st_mtime_ns)
    except (StorageError, OSError) as error:
        logger.warning("The index of an earlier version is not used: %s", error)
        return OlderIndex()


def anonymous(patient: str) -> str:
    """Return an id of a patient that does not reveal who it is."""
    return f"patient-{hashlib.sha256(patient.encode(errors='backslashreplace')).hexdigest()[:16]}"


def images_folder(labels: Path) -> Path | None:
    """Return the folder of the images whose labels are in another folder; None if there is no such folder."""
    for name in (IMAGES_FILE, INDEX_FILE):
        known = read_json_or(labels / name, {}).get("images_dir")
        if isinstance(known, str) and known != ".":
            return Path(known)
    return None


class ImageRecords:
    """The records of the images in a folder.

    Args:
        folder: Folder of the records; it is made when the first one is written.
        older: The information of an earlier version.
    """

    def __init__(self, folder: Path, older: OlderIndex) -> None:
        self._folder = folder
        self._older = older
        self._remembered: Remembered[dict[str, Any]] = Remembered()
        self._reported: set[str] = set()

    def of(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image; empty if there is none, or if its record cannot be read now."""
        try:
            return self.read(image_id)
        except StorageError as error:
            if image_id not in self._reported:
                self._reported.add(image_id)
                logger.warning("The record of an image cannot be read and is not changed: %s", error)
            return {}

    def read(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image; empty if there is none.

        Raises:
            StorageError: Its record cannot be read.
        """
        file = self._file(image_id)
        return dict(self._remembered.value(image_id, [file], lambda: self._read(image_id, file)))

    def add(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Add to the information about an image.

        Raises:
            StorageError: Its record cannot be read or written; it stays as it is.
        """
        self.write(image_id, {**self.read(image_id), **info})

    def write(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Replace the information about an image.

        Raises:
            StorageError: It could not be written; the old record is still there.
        """
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(image_id), dict(info), default=str)

    def remove(self, image_id: str) -> None:
        """Forget an image.

        Raises:
            StorageError: It could not be written.
        """
        if self._older.image(image_id):
            # Otherwise the older index would be asked again.
            self.write(image_id, {})
            return
        file = self._file(image_id)
        with storage_errors(file):
            file.unlink(missing_ok=True)

    def _file(self, image_id: str) -> Path:
        return self._folder / f"{ids.folder_name(image_id)}.json"

    def _read(self, image_id: str, file: Path) -> dict[str, Any]:
        # The file of an image that was forgotten is there, and has no fields.
        return read_json(file, answers.LOST_RECORD) if file.is_file() else self._older.image(image_id)


@dataclass(frozen=True)
class Offer:
    """The last time an image was offered.

    Attributes:
        time: Time stamp; 0 for never.
        client: The client's name; many clients share a name unless their users change it.
    """

    time: float = 0.0
    client: str = ""


def noted(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return strategy -> its last offer of an image; unreadable entries are left out."""
    known = info.get(NOTED)
    return {name: offer for name, offer in known.items() if isinstance(offer, dict)} if isinstance(known, dict) else {}


def noted_for(info: Mapping[str, Any], clients: Collection[str]) -> dict[str, Any] | None:
    """Return the last offer of an image to one of these clients, with its ``strategy``, or None."""
    found = [{"strategy": name, **offer} for name, offer in noted(info).items() if offer.get("client_id") in clients]
    timed = [offer for offer in found if isinstance(offer.get("ts"), int | float)]
    return max(timed, key=lambda offer: float(offer["ts"]), default=None)


def last_noted(info: Mapping[str, Any]) -> Offer:
    """Return the last offer of an image by any strategy."""
    found = [
        Offer(float(offer["ts"]), str(offer.get("client_id") or ""))
        for offer in noted(info).values()
        if isinstance(offer.get("ts"), int | float)
    ]
    return max(found, key=lambda offer: offer.time, default=Offer())


def _field(content: object, name: str) -> object:
    return content.get(name) if isinstance(content, Mapping) else None


def _info(content: object) -> dict[str, Any]:
    info = _field(content, "info")
    return dict(info) if isinstance(info, Mapping) else {}
