"""Read the objects that a viewer stores in the PACS: a segmentation is an annotator's submission."""

import logging
import mmap
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from anyio import to_thread
from fastapi import Request
from monailabel.interfaces.utils.app import app_instance

from totalspineseg_server.corrections.receipts import SEG_SUFFIX, Sender
from totalspineseg_server.errors import TotalSpineSegError
from totalspineseg_server.front import front_messages
from totalspineseg_server.io.dicom.seg_object import SegReference, is_seg, seg_reference
from totalspineseg_server.pacs.outcomes import Outcome

logger = logging.getLogger(__name__)

DICOM_TYPE: Final = "application/dicom"
BOUNDARY: Final = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)
PIECE_BYTES: Final = 1 << 20
"""Size of the pieces that are written; bodies arrive in far smaller ones."""
HEADER_END: Final = b"\r\n\r\n"
CLIENT: Final = "ohif"


@dataclass(frozen=True)
class Upload:
    """A request body on disk.

    Attributes:
        file: The body.
        content_type: Type as declared.
    """

    file: IO[bytes]
    content_type: str

    def stream(self) -> IO[bytes]:
        """Return the body from its beginning."""
        self.file.seek(0)
        return self.file


@asynccontextmanager
async def received_body(request: Request) -> AsyncIterator[Upload]:
    """Receive the body of a request into a temporary file, written in threads because the disk may be slow."""
    with tempfile.TemporaryFile(prefix="totalspineseg-stow-") as file:
        pieces = bytearray()
        async for piece in request.stream():
            pieces += piece
            if len(pieces) >= PIECE_BYTES:
                await to_thread.run_sync(file.write, bytes(pieces))
                pieces.clear()
        await to_thread.run_sync(file.write, bytes(pieces))
        await to_thread.run_sync(file.flush)
        yield Upload(file, request.headers.get("content-type", ""))


def instances(upload: Upload) -> Iterator[bytes]:
    """Yield the DICOM files of a STOW request, one after the other.

    Args:
        upload: ``multipart/related`` or a single file; metadata in JSON or XML holds no file.
    """
    kind = upload.content_type.split(";")[0].strip().lower()
    upload.stream().seek(0, 2)
    if not upload.file.tell():
        return
    with mmap.mmap(upload.file.fileno(), 0, access=mmap.ACCESS_READ) as body:
        if kind == DICOM_TYPE:
            yield body[:]
        boundary = BOUNDARY.search(upload.content_type)
        if kind == "multipart/related" and boundary:
            yield from _parts(body, b"--" + boundary[1].strip().encode("latin-1"))


def _parts(body: mmap.mmap, mark: bytes) -> Iterator[bytes]:
    start = body.find(mark)
    while start >= 0:
        start += len(mark)
        end = body.find(b"\r\n" + mark, start)
        if end < 0:
            return
        header = body.find(HEADER_END, start, end)
        if header >= 0 and _is_dicom(body[start:header]):
            yield body[header + len(HEADER_END) : end]
        start = end + 2


def _is_dicom(header: bytes) -> bool:
    """Return whether a part may be a DICOM file; a part without a type counts as one, as on other servers."""
    types = [line.split(b":", 1)[1] for line in header.lower().split(b"\r\n") if line.startswith(b"content-type:")]
    return not types or types[0].split(b";")[0].strip() == DICOM_TYPE.encode()


def take_submissions(upload: Upload, is_stored: Callable[[str], bool], user: str) -> None:
    """Count the segmentations of a stored request as submissions.

    A segmentation that cannot be used is kept with its reason. Nothing here fails the request, because the PACS already
    has the file.

    Args:
        upload: The request.
        is_stored: Returns whether the PACS holds an instance.
        user: User who sent it.
    """
    for file in instances(upload):
        try:
            if not is_seg(file):
                # Offer the new series at once.
                app_instance().datastore().changed()
                continue
            reference = seg_reference(file)
            if is_stored(reference.instance):
                _take(file, reference, user)
        except TotalSpineSegError as error:
            logger.warning("A stored segmentation could not be read: %s", error)
        except Exception:
            # The PACS has the file: whatever fails here, the viewer must not report a failed store.
            logger.exception("A stored segmentation was not counted")


def _take(file: bytes, reference: SegReference, user: str) -> None:
    app = app_instance()
    sender = Sender(user, CLIENT, f"{reference.instance}{SEG_SUFFIX}")
    app.outcomes.keep(Outcome(reference.instance, "refused", front_messages.FAILED_TO_COUNT))
    with tempfile.TemporaryDirectory(prefix="totalspineseg-seg-") as folder:
        path = Path(folder) / f"label{SEG_SUFFIX}"
        path.write_bytes(file)
        app.outcomes.keep(app.submit_segmentation(path, reference, sender))
