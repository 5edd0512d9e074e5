"""Whether an image is still the one that a label was drawn on, without reading it each time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lib.files import sha256_of
from lib.locks import NamedLocks

DRAWN_ON: Final = "image_sha256"
"""What is known about a label: hash of the image it was drawn on; labels that were copied by hand have none."""
IMPRINT: Final = "image_imprint"
"""What is known about a label: size and time of that image's file."""

Imprint = list[int]
"""Size in bytes and time of the last change in ns, as JSON holds them."""


def imprint_of(image: Path) -> Imprint:
    """What changes whenever a file is replaced or written, and also when it is merely copied.

    Raises:
        OSError: There is no such file.
    """
    stat = image.stat()
    return [stat.st_size, stat.st_mtime_ns]


class Imprints:
    """Tells whether images are what they were; the content of one that was touched is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Imprint, str]] = {}
        self._reading = NamedLocks()

    def check(self, image: Path, label_info: Mapping[str, Any]) -> Imprint | None:
        """Whether the image is the one that a label was drawn on.

        Args:
            image: The image's file.
            label_info: What is known about the label, with ``DRAWN_ON``. Not modified.

        Returns:
            The image's imprint now, to be kept with the label, so that it is not read again; None for another image.

        Raises:
            OSError: It cannot be read.
        """
        then, now = label_info.get(IMPRINT), imprint_of(image)
        if now == then:
            return now
        # Another size is another content.
        same = (not then or now[0] == then[0]) and self._sha256(image, now) == label_info[DRAWN_ON]
        return now if same else None

    def _sha256(self, image: Path, now: Imprint) -> str:
        # Many may ask at once; who waited finds what the first one has read.
        with self._reading.of(str(image)):
            imprint, sha256 = self._known.get(image, (None, ""))
            if imprint != now:
                sha256 = sha256_of(image)
                self._known[image] = now, sha256
            return sha256
