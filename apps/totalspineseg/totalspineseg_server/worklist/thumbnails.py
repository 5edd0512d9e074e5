"""Draw a small picture of each scan with the names of its levels, once for each result."""

import hashlib
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import storage_errors, write_file
from totalspineseg_server.geometry import Volume
from totalspineseg_server.preview import mid_sagittal
from totalspineseg_server.preview.plane import Picture
from totalspineseg_server.worklist.rows import Row
from totalspineseg_server.worklist.scans import View, doubtful_of

logger = logging.getLogger(__name__)

HEIGHT_PX: Final = 420
"""Height of a picture on the page: it is not scaled down, so its letters can be read."""
COLORS: Final = 128
"""Number of colors: it takes a third of the bytes of full color, and names and levels look the same."""
MAX_PICTURES: Final = 20_000
"""Largest number of pictures, at most a gigabyte; the oldest are removed."""
SWEEP_EVERY: Final = 500
"""Number of new pictures after which the oldest are removed."""


class Thumbnails:
    """Pictures of scans, stored in a history folder.

    Args:
        root: The history folder.
        read: Reads a scan.
        fingerprint: See ``SpineDatastore.fingerprint``.
    """

    def __init__(self, root: Path, read: Callable[[Row], View], fingerprint: Callable[[str], str]) -> None:
        self._folder = root / "thumbnails"
        self._read, self._fingerprint = read, fingerprint
        self._making = threading.Lock()
        self._made = 0

    def png(self, row: Row) -> bytes:
        """Return the picture of a scan; if it cannot be stored, it is drawn each time.

        Raises:
            UnknownImageError: There is no such image.
            ImageError: The image cannot be read.
        """
        file = self._file(row)
        # One picture at a time, so that a page of pictures leaves processors for readers.
        with self._making:
            try:
                return file.read_bytes()
            except OSError:
                content = picture_png(picture_of(self._read(row)))
            try:
                with storage_errors(self._folder):
                    self._folder.mkdir(parents=True, exist_ok=True)
                write_file(file, lambda temporary: temporary.write_bytes(content))
                self._sweep()
            except StorageError as error:
                logger.warning("A picture could not be stored: %s", error)
        return content

    def _file(self, row: Row) -> Path:
        result = row.date if row.status == "finished" else row.prediction
        about = "\n".join((row.id, self._fingerprint(row.id), result))
        return self._folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.png"

    def _sweep(self) -> None:
        self._made += 1
        if self._made % SWEEP_EVERY:
            return
        files = sorted(self._folder.glob("*.png"), key=lambda file: file.stat().st_mtime)
        for old in files[:-MAX_PICTURES]:
            old.unlink(missing_ok=True)


def picture_of(view: View) -> Picture:
    """Return the mid-sagittal picture of a scan with the names of its levels, in its displayed size."""
    label = view.label
    numbering = (label.record.numbering if label.record else None) or {}
    volume = Volume(view.image.data, view.image.affine)
    codes = label.codes if label.of else None
    return mid_sagittal(volume, codes, doubtful=doubtful_of(numbering), height_px=HEIGHT_PX)


def picture_png(picture: Picture) -> bytes:
    """Return a picture as a small PNG."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    stream = io.BytesIO()
    image.quantize(COLORS, method=Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=True)
    return stream.getvalue()
