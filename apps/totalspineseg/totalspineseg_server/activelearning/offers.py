"""Offer images to readers, and remember the offers, so that two readers do not get the same image."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from monailabel.interfaces.datastore import Datastore

from totalspineseg_server.corrections.image_records import Offer, last_noted

RESERVED_SECONDS: Final = 7200.0
"""How long an image is reserved for the reader to whom it was offered: correcting a whole spine takes an hour."""

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
