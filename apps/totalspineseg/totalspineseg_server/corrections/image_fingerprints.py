"""Check whether an image is still the one that a label was drawn on, without reading the image each time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.files import sha256_of
from totalspineseg_server.locks import NamedLocks

DRAWN_ON: Final = "image_sha256"
"""Field of a label's information: hash of the image it was drawn on. Labels that were copied by hand have none."""
IMPRINT: Final = "image_imprint"
"""Field of a label's information: size and time of that image's file."""

Imprint = list[int]
"""Size in bytes and time of the last change in ns, as a list for JSON."""


def imprint_of(image: Path) -> Imprint:
    """Return a value that changes whenever a file is replaced, written or copied.

    Raises:
        OSError: There is no such file.
    """
    stat = image.stat()
    return [stat.st_size, stat.st_mtime_ns]


class ImageCheck:
    """Checks whether images are unchanged; the content of an image whose file was touched is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Imprint, str]] = {}
        self._reading = NamedLocks()

    def check(self, image: Path, label_info: Mapping[str, Any]) -> Imprint | None:
        """Check whether an image is the one that a label was drawn on.

        Args:
            image: The image's file.
            label_info: Information about the label, with ``DRAWN_ON``. Not modified.

        Returns:
            The image's present imprint, to be kept with the label so that the image is not read again; None for another
            image.

        Raises:
            OSError: It cannot be read.
        """
        before, now = label_info.get(IMPRINT), imprint_of(image)
        if now == before:
            return now
        # A file of another size has other content.
        same = (not before or now[0] == before[0]) and self._sha256(image, now) == label_info[DRAWN_ON]
        return now if same else None

    def _sha256(self, image: Path, now: Imprint) -> str:
        # Many may ask at once; who waited finds what the first one has read.
        with self._reading.of(str(image)):
            imprint, sha256 = self._known.get(image, (None, ""))
            if imprint != now:
                sha256 = sha256_of(image)
                self._known[image] = now, sha256
            return sha256
