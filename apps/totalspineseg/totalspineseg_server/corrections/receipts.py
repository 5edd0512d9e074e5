"""Store submissions as they were sent, before anything is read from them.

``<history>/received/<id>/`` holds ``raw<ending>`` and ``received.json``, and ``failure.json`` if reading it failed.
Once it is read, the folder moves to the corrections of its image (``corrections.correction_store``). A submission
that belongs to no image moves to ``<history>/unfiled/``.
"""

import logging
import math
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.corrections import answers, ids
from totalspineseg_server.errors import MemoryShortageError, StorageError, SubmissionError, TotalSpineSegError
from totalspineseg_server.files import (
    FULL_DISK,
    copy_file,
    from_fields,
    move_folder,
    read_json,
    read_json_if_there,
    sha256_of,
    staged_folder,
    write_json,
)
from totalspineseg_server.locks import file_lock

logger = logging.getLogger(__name__)

RECEIPT_FILE: Final = "received.json"
FAILURE_FILE: Final = "failure.json"
RECEIVED_DIR: Final = "received"
"""Folder of a history with the submissions that wait to be read."""
LOCK_SUFFIX: Final = ".lock"
SEG_SUFFIX: Final = ".dcm"
"""Ending of a DICOM segmentation."""
LABEL_SUFFIXES: Final = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", SEG_SUFFIX)
"""Endings that the raw file keeps; any other ending becomes ".bin"."""
AT_ONCE_SECONDS: Final = 60.0
"""Longest time between the upload of a volume and its label in *Submit Label*: writing and sending a large label takes
this long."""
MAX_UNFILED: Final = 100
"""Largest number of submissions that belong to no image; beyond it, the oldest are deleted."""


@dataclass(frozen=True)
class Sender:
    """Who sent a submission, and from which file.

    Attributes:
        user: Name of the signed-in user; "admin" if the server runs without sign-in.
        client: Id of the client program.
        file_name: Name of the file on the client's machine, without folders.
    """

    user: str
    client: str
    file_name: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which predictions for this sender are recorded."""
        return tuple(name for name in (self.client, self.user) if name)


@dataclass(frozen=True)
class Claims:
    """Other images to which a label may belong.

    Attributes:
        renamed: Images that its client uploaded after the same file had been refused under the name for which the label
            was sent.
        uploaded: The image that its client uploaded just before, if the client never opened the image for which the
            label was sent; otherwise empty.
    """

    renamed: tuple[str, ...] = ()
    uploaded: str = ""


@dataclass
class _Volumes:
    """Uploads and offers of all clients with the same name.

    Attributes:
        last: The image uploaded last; empty after a label was sent or another image was offered.
        since: Time of that upload, monotonic, s.
        opened: Images that these clients uploaded or were offered.
        refused: Name -> hashes of the volumes that were refused under it.
        renamed: Name -> ids of the images that such volumes became later.
    """

    last: str = ""
    since: float = -math.inf
    opened: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    renamed: dict[str, set[str]] = field(default_factory=dict)


class Uploads:
    """The volumes that clients uploaded or tried to upload, and the images that they were offered.

    If a reader renames a volume in 3D Slicer and presses *Submit Label*, the volume is uploaded under the new name, but
    the label is sent for the old name, which may belong to another patient's image. Without sign-in most clients have
    the same name, so the uploads of a client do not prove whose label is sent.

    Args:
        signed_in: Whether users sign in; a client then has the name of its user.
    """

    def __init__(self, *, signed_in: bool = False) -> None:
        self._signed_in = signed_in
        self._lock = threading.Lock()
        self._of: dict[str, _Volumes] = {}

    def name_of(self, sender: Sender) -> str:
        """Return the name of a sender's client."""
        return sender.user if self._signed_in else sender.client or sender.user

    def record_upload(self, client: str, image_id: str, sha256: str) -> None:
        """Record that a client uploaded a volume.

        Args:
            client: Its name.
            image_id: The image that the volume became.
            sha256: Hash of the file.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            known.last, known.since = image_id, time.monotonic()
            known.opened.add(image_id)
            for name, refused in known.refused.items():
                if sha256 in refused and name != image_id:
                    known.renamed.setdefault(name, set()).add(image_id)

    def record_refusal(self, client: str, image_id: str, sha256: str) -> None:
        """Record that a client tried to upload a volume under the name of another image."""
        with self._lock:
            self._of.setdefault(client, _Volumes()).refused.setdefault(image_id, set()).add(sha256)

    def record_offer(self, client: str, image_id: str) -> None:
        """Record that a client was offered an image ("" for none), which clears its scene."""
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            known.last = ""
            known.opened.add(image_id)

    def claims(self, client: str, image_id: str) -> Claims:
        """Return the other images to which a label from a client may belong.

        Args:
            client: Its name.
            image_id: The image for which it is sent.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            recent = time.monotonic() - known.since < AT_ONCE_SECONDS
            uploaded = known.last if recent and image_id not in known.opened else ""
            known.last = ""
            return Claims(tuple(sorted(known.renamed.get(image_id, ()))), uploaded)


@dataclass(frozen=True)
class Receipt:
    """A submission as it was sent.

    Attributes:
        id: An id that sorts by time; the correction that is made from it has the same id.
        image: Image for which it was sent.
        tag: Tag under which it was sent.
        user: See ``Sender``.
        client: See ``Sender``.
        file_name: See ``Sender``.
        raw: Name of the file inside the entry.
        raw_sha256: Its hash.
        received: UTC, ISO 8601.
        params: Parameters sent with it: ``label_info``, ``prediction``, ``unreviewed``.
        info: Other information that is shown with the label.
        renamed: See ``Claims``.
        uploaded: See ``Claims``.
        fault: Why it cannot be used, if that was known before it was read; otherwise empty.
    """

    id: str
    image: str
    tag: str
    user: str
    client: str
    file_name: str
    raw: str
    raw_sha256: str
    received: str
    params: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    renamed: tuple[str, ...] = ()
    uploaded: str = ""
    fault: str = ""

    @property
    def sender(self) -> Sender:
        """Who sent it."""
        return Sender(self.user, self.client, self.file_name)

    @property
    def claims(self) -> Claims:
        """Other images to which it may belong."""
        return Claims(self.renamed, self.uploaded)


def receipt_of(
    image_id: str,
    file: Path,
    *,
    tag: str,
    sender: Sender,
    params: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    fault: str = "",
) -> Receipt:
    """Return a submission that was sent just now. The inbox gives it an id, and knows to which images it may belong.

    Args:
        image_id: Image for which it was sent.
        file: The submitted file; one that ends in .dcm is a DICOM segmentation. Not modified.
        tag: Tag under which it was sent. A step-1 map gets STEP1_TAG instead, or, if it is unfinished, a tag with this
            ending.
        sender: Who sent it.
        params: Parameters sent with it: ``label_info``; ``prediction`` if the client knows it; ``unreviewed``, names of
            structures nobody checked; ``accepted``, names of structures that are right as predicted, or "all".
        info: Other information that is shown with the label.
        fault: Why it cannot be used, if that is known already; otherwise empty.
    """
    return Receipt(
        id="",
        image=image_id,
        tag=tag,
        **asdict(sender),
        raw=f"raw{label_suffix(file.name)}",
        raw_sha256=sha256_of(file),
        received=ids.now_text(),
        params=params,
        info=info or {},
        fault=fault,
    )


@dataclass(frozen=True)
class Waiting:
    """A submission that has not become a correction.

    Attributes:
        receipt: The submission.
        reason: The reason; ``answers.NOT_TRIED`` if reading it was not begun.
    """

    receipt: Receipt
    reason: str


def label_suffix(name: str) -> str:
    """Return the known ending of a label file's name; ".bin" if there is none."""
    return next((suffix for suffix in LABEL_SUFFIXES if name.lower().endswith(suffix)), ".bin")


class Receipts:
    """The submissions below a history folder that have not become corrections yet."""

    def __init__(self, root: Path) -> None:
        self._root = root / RECEIVED_DIR
        self._unfiled = root / "unfiled"

    def new_id(self, earlier: Iterable[str]) -> str:
        """Return an id that sorts after those of all waiting submissions and after ``earlier``."""
        return ids.new_id((*ids.names(self._root), *earlier))

    def keep(self, receipt: Receipt, file: Path) -> None:
        """Store a submission, completely or not at all.

        Args:
            receipt: The submission, with an id that no other one has.
            file: The submitted file. Copied.

        Raises:
            StorageError: It could not be written; nothing is left half-written.
        """
        with staged_folder(self._root / receipt.id) as entry:
            copy_file(file, entry / receipt.raw)
            write_json(entry / RECEIPT_FILE, asdict(receipt))

    def folder(self, receipt: Receipt) -> Path:
        """Return the folder of a submission until it is read."""
        return self._root / receipt.id

    @contextmanager
    def reading(self, receipt: Receipt, *, wait: bool = True) -> Iterator[bool]:
        """Lock a submission while it is read and shown, because another server may serve the same folder.

        Args:
            receipt: The submission.
            wait: Whether to wait until another server has read it.

        Yields:
            Whether it is locked; False if another server reads it and ``wait`` is False.

        Raises:
            StorageError: It cannot be locked.
        """
        file = self._root / f".{receipt.id}{LOCK_SUFFIX}"
        with ExitStack() as held:
            try:
                stream = held.enter_context(file_lock(file, math.inf if wait else 0))
            except StorageError as error:
                raise unread(error, receipt) from error
            try:
                yield stream is not None
            finally:
                if stream is not None and not self.folder(receipt).is_dir():
                    # The submission was read. Others that wait for the lock notice that its folder is gone.
                    with suppress(OSError):
                        file.unlink()

    def remove_old_locks(self) -> None:
        """Remove the locks of submissions that were read by a server that was killed before it could do so."""
        for file in self._root.glob(f".*{LOCK_SUFFIX}"):
            if not (self._root / file.name[1 : -len(LOCK_SUFFIX)]).is_dir():
                with suppress(OSError):
                    file.unlink()

    def waiting(self) -> tuple[Waiting, ...]:
        """Return the submissions that are not read yet, oldest first; log those whose record is damaged."""
        return tuple(_listed(self._root, answers.NOT_TRIED))

    def unfiled(self) -> tuple[Waiting, ...]:
        """Return the latest submissions that belong to no image, oldest first."""
        return tuple(_listed(self._unfiled, ""))

    def fail(self, receipt: Receipt, reason: str) -> None:
        """Record why a submission could not be read; it still waits."""
        try:
            _write_reason(self.folder(receipt), reason)
        except StorageError as error:
            logger.warning("The reason why submission %s could not be read was not recorded: %s", receipt.id, error)

    def set_aside(self, receipt: Receipt, reason: str) -> None:
        """Move a submission that belongs to no image to another folder, with the reason; it stays there for a while.

        Raises:
            StorageError: It could not be written; it still waits.
        """
        _write_reason(self.folder(receipt), reason)
        move_folder(self.folder(receipt), self._unfiled / receipt.id)
        for old in ids.entries(self._unfiled)[:-MAX_UNFILED]:
            shutil.rmtree(old, ignore_errors=True)


def unread(error: Exception, receipt: Receipt) -> TotalSpineSegError:
    """Return the error for a client whose submission could not be read and waits."""
    if isinstance(error, StorageError):
        return type(error)(answers.not_read(str(error), receipt.id))
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return StorageError(answers.not_read(answers.DISK_IS_FULL, receipt.id))
    if isinstance(error, MemoryShortageError | MemoryError):
        return MemoryShortageError(answers.not_read(answers.NO_MEMORY, receipt.id))
    return SubmissionError(answers.not_read(answers.NOT_READABLE, receipt.id))


def _write_reason(folder: Path, reason: str) -> None:
    write_json(folder / FAILURE_FILE, {"reason": reason, "time": ids.now_text()})


def _listed(folder: Path, reason: str) -> Iterator[Waiting]:
    for entry in ids.entries(folder):
        try:
            receipt = from_fields(Receipt, read_json(entry / RECEIPT_FILE), f"of submission {entry.name}")
            failure = read_json_if_there(entry / FAILURE_FILE)
        except StorageError as error:
            if entry.exists():
                logger.warning("A submission cannot be listed and is skipped: %s", error)
        else:
            yield Waiting(receipt, str(failure.get("reason", reason)))
