"""Which image a label belongs to: 3D Slicer goes on calling a volume as it was called when it was opened."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lib.errors import LabelError, UnknownImageError

AT_ONCE_SECONDS: Final = 60.0
"""*Submit Label* uploads a volume and then sends its label; to write and send a large one takes so long."""


@dataclass(frozen=True)
class Claims:
    """Images that a label may belong to beside the one it was sent for.

    Attributes:
        renamed: Images that its client uploaded after the same bytes had been refused the name it was sent for.
        uploaded: The image that its client uploaded a moment ago, if the client has never had the one it was sent for;
            empty for none.
    """

    renamed: tuple[str, ...] = ()
    uploaded: str = ""


@dataclass
class _Volumes:
    """What all clients of one name did.

    Attributes:
        last: The image uploaded last; empty once a label was sent or another image was offered.
        since: When, on a clock that is never set.
        opened: Images that were uploaded by one of them, or offered to one.
        refused: Name -> hashes of the volumes that were refused it.
        renamed: Name -> images that such a volume has become.
    """

    last: str = ""
    since: float = -math.inf
    opened: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    renamed: dict[str, set[str]] = field(default_factory=dict)


class Uploads:
    """Volumes that clients uploaded, or tried to, and images they were offered.

    Whoever renames a volume in 3D Slicer and presses *Submit Label* uploads it under the new name, but the label is
    sent for the old one, which may be that of another patient's image. Without authentication most clients go by one
    name, so nothing that one of them does settles whose label is sent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, _Volumes] = {}

    def record_upload(self, client: str, image_id: str, sha256: str) -> None:
        """Note that a client uploaded a volume.

        Args:
            client: Its name.
            image_id: The image that the volume is now.
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
        """Note that a client tried to upload a volume under the name of another image."""
        with self._lock:
            self._of.setdefault(client, _Volumes()).refused.setdefault(image_id, set()).add(sha256)

    def record_offer(self, client: str, image_id: str) -> None:
        """Note that a client was offered an image, which clears its scene; "" for none."""
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            known.last = ""
            known.opened.add(image_id)

    def claims(self, client: str, image_id: str) -> Claims:
        """Return which other images a label that a client sends now may belong to.

        Args:
            client: Its name.
            image_id: The image it is sent for.
        """
        with self._lock:
            known = self._of.setdefault(client, _Volumes())
            recent = time.monotonic() - known.since < AT_ONCE_SECONDS
            uploaded = known.last if recent and image_id not in known.opened else ""
            known.last = ""
            return Claims(tuple(sorted(known.renamed.get(image_id, ()))), uploaded)


def resolve_image(image_id: str, claims: Claims, exists: Callable[[str], bool], fits: Callable[[str], bool]) -> str:
    """Return the image that a label belongs to.

    It is never filed under another image than the one it was sent for, unless this very client was refused that name,
    and the label lies on the grid of what it uploaded instead.

    Args:
        image_id: The image it was sent for.
        claims: Others it may belong to.
        exists: Whether there is an image.
        fits: Whether the label lies on the grid of an image, which need not exist.

    Raises:
        UnknownImageError: There is no image that it may belong to.
        LabelError: It may belong to several.
    """
    others = {*claims.renamed, claims.uploaded} - {"", image_id}
    fitting = sorted(filter(fits, others))
    is_known = exists(image_id)
    if len(fitting) == 1 and fitting[0] in claims.renamed and (fitting[0] == claims.uploaded or not fits(image_id)):
        return fitting[0]
    if not is_known:
        raise UnknownImageError(image_id)
    if fitting:
        listed = " or ".join(map(repr, fitting))
        raise LabelError(
            f"This label was sent for {image_id!r}, but it may be one of {listed}. If you renamed the volume, press "
            "'Upload Volume' and then 'Submit Label' in 3D Slicer. If it is a label of "
            f"{image_id!r}, set a Client/User-ID of your own in the settings of MONAI Label and submit it again."
        )
    return image_id
