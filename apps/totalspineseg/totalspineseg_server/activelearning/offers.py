"""Offer images to readers, and remember the offers, so that two readers do not get the same image."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from monailabel.interfaces.datastore import Datastore

NOTED: Final = "strategy"
"""Key in the information about an image: strategy -> when it last offered the image, and to whom."""
RESERVED_SECONDS: Final = 7200.0
"""How long an image is reserved for the reader to whom it was offered: correcting a whole spine takes an hour."""


@dataclass(frozen=True)
class Offer:
    """The last time an image was offered.

    Attributes:
        time: Time stamp; 0 for never.
        client: The client's name; many clients share a name unless their users change it.
    """

    time: float = 0.0
    client: str = ""


Choose = Callable[[Sequence[str], Mapping[str, float]], str]
"""``choose(images, last)`` returns one of ``images``; ``last`` says when each unfinished image was last offered."""


class Offers:
    """The offers of all strategies.

    They are also kept in memory, because the file of an image is written only after the image was loaded, and not at
    all on a full disk.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, Offer] = {}

    def take(self, request: Mapping[str, Any], datastore: Datastore, choose: Choose) -> str | None:
        """Return an unfinished image, and remember that it was offered.

        Args:
            request: ``client_id`` is the reader's client.
            datastore: The studies.
            choose: Called with the images in the order of their names. Images that were recently offered to another
                client are left out, unless no others are left.

        Returns:
            The image's id; None if every image is finished.
        """
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        # Read this each time, because another server of these studies may have offered an image since.
        notes = {image: last_noted(datastore.get_image_info(image)) for image in images}
        client, now = str(request.get("client_id") or ""), time.time()
        with self._lock:
            for image, offer in notes.items():
                # Another request may have offered the image a moment ago; an older entry in the file must not undo
                # that.
                self._last[image] = max(offer, self._last.get(image, Offer()), key=lambda known: known.time)
            free = [image for image in images if not self._is_reserved(image, client, now)]
            chosen = choose(free or images, {image: self._last[image].time for image in images})
            self._last[chosen] = Offer(now, client)
        return chosen

    def _is_reserved(self, image: str, client: str, now: float) -> bool:
        last = self._last[image]
        return last.client != client and 0 <= now - last.time < RESERVED_SECONDS


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
