"""The plain orders in which unlabeled images are offered."""

import random
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class First(Strategy):  # type: ignore[misc]
    """The first unlabeled image by name."""

    def __init__(self) -> None:
        super().__init__("First unlabeled image by name")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id; None when every image is labeled."""
        images = sorted(datastore.get_unlabeled_images())
        return {"id": images[0]} if images else None


class Last(Strategy):  # type: ignore[misc]
    """The last unlabeled image by name."""

    def __init__(self) -> None:
        super().__init__("Last unlabeled image by name")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id; None when every image is labeled."""
        images = sorted(datastore.get_unlabeled_images())
        return {"id": images[-1]} if images else None


class Random(Strategy):  # type: ignore[misc]
    """A random unlabeled image; those offered lately are less likely."""

    def __init__(self) -> None:
        super().__init__("Random unlabeled image, rather one that was not offered lately")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's id; None when every image is labeled."""
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        now = int(time.time())
        name = str(request.get("strategy", "random"))
        offered = [datastore.get_image_info(i).get("strategy", {}).get(name, {}).get("ts", 0) for i in images]
        # At least 1 s, so that images all offered within this second can still be drawn.
        weights = [max(1, now - seconds) for seconds in offered]
        return {"id": random.choices(images, weights=weights)[0]}
