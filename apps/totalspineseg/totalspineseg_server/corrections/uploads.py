"""Find the image that a label belongs to, because 3D Slicer keeps the name that a volume had when it was opened."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from totalspineseg_server.corrections import answers
from totalspineseg_server.errors import LabelError, UnknownImageError

AT_ONCE_SECONDS: Final = 60.0
"""Time between a volume's upload and its label in *Submit Label*; writing and sending a large label takes this long."""


@dataclass(frozen=True)
class Claims:
    """Other images that a label may belong to.

    Attributes:
        renamed: Images that its client uploaded after the same file was refused under the name the label was sent for.
        uploaded: The image that its client uploaded just before, if the client never opened the image the label was
            sent for; else empty.
    """

    renamed: tuple[str, ...] = ()
    uploaded: str = ""


@dataclass
class _Volumes:
    """Uploads and offers of all clients of one name.

    Attributes:
        last: The image uploaded last; empty after a label was sent or another image was offered.
        since: Time of that upload, monotonic, s.
        opened: Images that these clients uploaded or were offered.
        refused: Name -> hashes of the volumes refused under it.
        renamed: Name -> images that such volumes were uploaded as later.
    """

    last: str = ""
    since: float = -math.inf
    opened: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    renamed: dict[str, set[str]] = field(default_factory=dict)


class Uploads:
    """The volumes that clients uploaded or tried to upload, and the images that they were offered.

    If a reader renames a volume in 3D Slicer and presses *Submit Label*, the volume is uploaded under the new name, but
    the label is sent for the old name, which may belong to another patient's image. Without authentication most clients
    have one name, so the uploads of a client do not show for certain whose label is sent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, _Volumes] = {}

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
        """Return the other images that a label which a client sends now may belong to.

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

    A label is filed under another image than the one it was sent for only if the upload of this very client was refused
    under that name, and the label is on the grid of what the client uploaded instead.

    Args:
        image_id: The image it was sent for.
        claims: Other images that it may belong to.
        exists: Whether an image exists.
        fits: Whether the label is on the grid of an image, which need not exist.

    Raises:
        UnknownImageError: It belongs to no existing image.
        LabelError: It may belong to several images.
    """
    others = {*claims.renamed, claims.uploaded} - {"", image_id}
    fitting = sorted(filter(fits, others))
    is_known = exists(image_id)
    if len(fitting) == 1 and fitting[0] in claims.renamed and (fitting[0] == claims.uploaded or not fits(image_id)):
        return fitting[0]
    if not is_known:
        raise UnknownImageError(image_id)
    if fitting:
        raise LabelError(answers.which_image(image_id, fitting))
    return image_id
