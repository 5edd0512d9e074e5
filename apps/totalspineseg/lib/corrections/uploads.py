"""What each client uploaded last: 3D Slicer goes on calling a volume as it was called when it was opened."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class _Volumes:
    """Of one client: the image it uploaded last, with its hash; name it was refused -> hash of what it sent."""

    last: str = ""
    last_sha256: str = ""
    refused: dict[str, str] = field(default_factory=dict)


class Uploads:
    """Volumes that clients uploaded, or tried to, since they were last given an image.

    Whoever renames a volume in 3D Slicer and presses *Submit Label* uploads it under the new name, but the label is
    sent for the old one, which may be that of another patient's image.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[tuple[str, ...], _Volumes] = {}

    def came(self, names: tuple[str, ...], image_id: str, sha256: str) -> None:
        """A client uploaded a volume.

        Args:
            names: What the client goes by (``Sender.names``).
            image_id: The image it is now.
            sha256: Hash of the file.
        """
        with self._lock:
            known = self._of.setdefault(names, _Volumes())
            known.last, known.last_sha256 = image_id, sha256

    def refused(self, names: tuple[str, ...], image_id: str, sha256: str) -> None:
        """A client tried to upload a volume under the name of another image."""
        with self._lock:
            self._of.setdefault(names, _Volumes()).refused[image_id] = sha256

    def forget(self, name: str) -> None:
        """A client of this name is given another image: its scene is cleared."""
        with self._lock:
            for names in [names for names in self._of if name in names]:
                del self._of[names]

    def meant(self, names: tuple[str, ...], image_id: str, fits: Callable[[str], bool]) -> str:
        """The image that a label belongs to.

        Args:
            names: What the client goes by.
            image_id: The image it sent the label for.
            fits: Whether the label lies on the grid of an image, which need not exist.

        Returns:
            The volume the client uploaded last, where the label fits that alone or the same volume was refused the name
            that the client still uses; else the image it says.
        """
        with self._lock:
            known = self._of.get(names, _Volumes())
            last, was_refused = known.last, known.refused.get(image_id) == known.last_sha256
        if last in ("", image_id) or not fits(last):
            return image_id
        return last if was_refused or not fits(image_id) else image_id
