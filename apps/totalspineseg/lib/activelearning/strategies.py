"""The plain orders in which unlabeled images are offered: an image that was offered goes behind those that were not."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.offers import Choose, Offers


class _Order(Strategy):  # type: ignore[misc]
    def __init__(self, offers: Offers, description: str, choose: Choose) -> None:
        super().__init__(description)
        self._offers = offers
        self._choose = choose

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id; None when every image is labeled."""
        image = self._offers.take(request, datastore, self._choose)
        return None if image is None else {"id": image}


class First(_Order):
    """The first unlabeled image by name, of those that were never offered, or longest ago."""

    def __init__(self, offers: Offers) -> None:
        super().__init__(offers, "First unlabeled image by name", lambda images, last: min(images, key=last))


class Last(_Order):
    """The last one, likewise."""

    def __init__(self, offers: Offers) -> None:
        super().__init__(offers, "Last unlabeled image by name", lambda images, last: min(reversed(images), key=last))


class Random(_Order):
    """A random unlabeled image; those offered lately are less likely."""

    def __init__(self, offers: Offers) -> None:
        super().__init__(offers, "Random unlabeled image, rather one that was not offered lately", _drawn)


def _drawn(images: Sequence[str], last: Callable[[str], float]) -> str:
    now = time.time()
    # At least 1 s, so that images all offered within this second can still be drawn.
    return random.choices(images, weights=[max(1.0, now - last(image)) for image in images])[0]
