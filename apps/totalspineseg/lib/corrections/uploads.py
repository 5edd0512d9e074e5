"""What clients uploaded and were given: 3D Slicer goes on calling a volume as it was called when it was opened."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lib.errors import LabelError

AT_ONCE_SECONDS: Final = 60.0
"""So long after *Submit Label* has uploaded a volume its label may come: to write and send a large one takes that."""


@dataclass
class _Volumes:
    """Of the clients of one name.

    Attributes:
        last: The image uploaded last; empty once a label came under its name, or another image was given.
        since: When, on a clock that is never set.
        labeled: A label came since, of whatever image.
        open: Images that were uploaded or given, and have no label yet.
        refused: Name -> hashes of the volumes that were refused it.
        renamed: Name -> images that may still be called so by whoever uploaded them.
    """

    last: str = ""
    since: float = -math.inf
    labeled: bool = False
    open: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    renamed: dict[str, set[str]] = field(default_factory=dict)


class Uploads:
    """Volumes that clients uploaded, or tried to, and images they were given.

    Whoever renames a volume in 3D Slicer and presses *Submit Label* uploads it under the new name, but the label is
    sent for the old one, which may be that of another patient's image. Without authentication most clients go by one
    name: what one of them does neither ends what another one does, nor settles whose label comes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, _Volumes] = {}

    def came(self, client: str, image_id: str, sha256: str) -> None:
        """A client uploaded a volume.

        Args:
            client: What it goes by.
            image_id: The image it is now.
            sha256: Hash of the file.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            known.last, known.since, known.labeled = image_id, time.monotonic(), False
            known.open.add(image_id)
            for name, refused in known.refused.items():
                if sha256 in refused and name != image_id:
                    known.renamed.setdefault(name, set()).add(image_id)

    def refused(self, client: str, image_id: str, sha256: str) -> None:
        """A client tried to upload a volume under the name of another image."""
        with self._lock:
            self._of.setdefault(client, _Volumes()).refused.setdefault(image_id, set()).add(sha256)

    def given(self, client: str, image_id: str, *, is_user: bool) -> None:
        """A client is given another image: its scene is cleared.

        Args:
            client: What it goes by.
            image_id: The image; empty for none.
            is_user: Nobody else goes by that name.
        """
        with self._lock:
            if is_user:
                self._of.pop(client, None)
            known = self._of.setdefault(client, _Volumes())
            known.last = ""
            known.open.add(image_id)

    def meant(
        self,
        client: str,
        image_id: str,
        fits: Callable[[str], bool],
        shown: Callable[[tuple[str, ...]], str],
    ) -> str:
        """The image that a label belongs to.

        Args:
            client: What its sender goes by.
            image_id: The image it was sent for.
            fits: Whether the label lies on the grid of an image, which need not exist.
            shown: Of several images the one whose prediction the label shows for certain; empty where none is known.

        Returns:
            The image it was sent for, or one that may still be called so: the only one it fits; of several the one
            whose prediction it shows, else one that was just uploaded when nobody has the other open.

        Raises:
            LabelError: It may belong to several.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            renamed, last = set(known.renamed.get(image_id, ())), known.last
            recent = time.monotonic() - known.since < AT_ONCE_SECONDS
            first, known.labeled = not known.labeled, True
            is_open = image_id in known.open
            if last in ("", image_id):
                known.open.discard(image_id)
                # Whoever uses its new name does not go on with an old one.
                known.last = ""
        others = tuple(other for other in sorted({*renamed, last} - {"", image_id}) if fits(other))
        if not others:
            return image_id
        fitting = (image_id, *others) if fits(image_id) else others
        if len(fitting) == 1:
            found = fitting[0]
        elif not (found := shown(fitting)):
            # Who uploads many and then submits the labels of all has each of them open.
            if not renamed and (is_open or not recent):
                found = image_id
            elif recent and first and not is_open and last in renamed and last in others:
                found = last
        if found != image_id:
            with self._lock:
                known.renamed.setdefault(image_id, set()).update({found} if found else others)
        if not found:
            raise LabelError(_unclear(image_id, others))
        return found


def _unclear(image_id: str, others: tuple[str, ...]) -> str:
    return (
        f"a label that can belong to one image alone is required, got one for {image_id!r} which may be that of "
        f"{' or '.join(repr(other) for other in others)}; if you renamed the volume, press 'Upload Volume' and then "
        f"'Submit Label' in 3D Slicer; if it is a label of {image_id!r}, set a Client/User-ID of your own in the "
        "settings of MONAI Label and submit it again"
    )
