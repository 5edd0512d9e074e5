"""Which image was offered to whom and when: so that readers do not get the same one, and each can be skipped."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from monailabel.interfaces.datastore import Datastore

NOTED: Final = "strategy"
"""What is known about an image: strategy -> when it offered the image last, and to whom."""
RESERVED_SECONDS: Final = 7200.0
"""So long an image is another reader's: a whole spine takes an hour to correct."""


@dataclass(frozen=True)
class Offer:
    """The last time an image was offered.

    Attributes:
        time: As time stamp; 0 for never.
        client: To whom; many clients go by the same name unless their users change it.
    """

    time: float = 0.0
    client: str = ""


Choose = Callable[[Sequence[str], Mapping[str, float]], str]
"""``choose(images, last)``: one of some images; ``last`` is when each image that is not finished was offered last."""


class Offers:
    """What was offered, shared by all strategies.

    It is remembered here, too: what is noted with an image is written only after the image is at hand, and not at all
    on a full disk.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, Offer] = {}

    def take(self, request: Mapping[str, Any], datastore: Datastore, choose: Choose) -> str | None:
        """Choose an image that is not finished.

        Args:
            request: ``client_id``: who asks.
            datastore: The studies.
            choose: Given the images in order of their names, without those that were offered to another client lately,
                unless no other is left.

        Returns:
            Its id; None when every image is finished.
        """
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        # Each time: another server of these studies may have offered an image since.
        notes = {image: last_noted(datastore.get_image_info(image)) for image in images}
        client, now = str(request.get("client_id") or ""), time.time()
        with self._lock:
            for image, offer in notes.items():
                # Whoever asked meanwhile may have been given it: what was noted before then does not undo that.
                self._last[image] = max(offer, self._last.get(image, Offer()), key=lambda known: known.time)
            free = [image for image in images if not self._is_reserved(image, client, now)]
            chosen = choose(free or images, {image: self._last[image].time for image in images})
            self._last[chosen] = Offer(now, client)
        return chosen

    def _is_reserved(self, image: str, client: str, now: float) -> bool:
        last = self._last[image]
        return last.client != client and 0 <= now - last.time < RESERVED_SECONDS


def noted(info: Mapping[str, Any]) -> dict[str, Any]:
    """Strategy -> its last offer, as noted with an image; what cannot be read is left out."""
    known = info.get(NOTED)
    return {name: offer for name, offer in known.items() if isinstance(offer, dict)} if isinstance(known, dict) else {}


def noted_for(info: Mapping[str, Any], clients: Collection[str]) -> dict[str, Any] | None:
    """Return the last offer of an image to one of some clients, with its ``strategy``; None where there was none."""
    found = [{"strategy": name, **offer} for name, offer in noted(info).items() if offer.get("client_id") in clients]
    timed = [offer for offer in found if isinstance(offer.get("ts"), int | float)]
    return max(timed, key=lambda offer: float(offer["ts"]), default=None)


def last_noted(info: Mapping[str, Any]) -> Offer:
    """The last offer noted with an image, whatever the strategy."""
    found = [
        Offer(float(offer["ts"]), str(offer.get("client_id") or ""))
        for offer in noted(info).values()
        if isinstance(offer.get("ts"), int | float)
    ]
    return max(found, key=lambda offer: offer.time, default=Offer())
