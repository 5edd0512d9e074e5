"""Store information about images that their files do not have: who uploaded one, and to whom it was offered.

Each image has a record of its own, ``images/<image>.json``. Earlier versions kept all of it in the index of MONAI
Label's own datastore, ``datastore_v2.json``, which is still read and never written.
"""

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.corrections import ids
from totalspineseg_server.corrections.file_contents import Remembered
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import read_json, read_json_or, storage_errors, write_json

logger = logging.getLogger(__name__)

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

    def of(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image; empty if there is none."""
        file = self._file(image_id)
        return dict(self._remembered.value(image_id, [file], lambda: self._read(image_id, file)))

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
        if not file.is_file():
            return self._older.image(image_id)
        try:
            return read_json(file)
        except StorageError as error:
            logger.warning("The record of an image cannot be read: %s", error)
            return {}


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
