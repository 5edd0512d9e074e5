"""Choose the next unlabeled image to offer, and remember the offers, so that two readers do not get the same image."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from totalspineseg_server.activelearning.scores import Score
from totalspineseg_server.activelearning.selection import Value, best, counts_of, doubt, rarity, surety
from totalspineseg_server.corrections.image_records import Offer, last_noted

RESERVED_SECONDS: Final = 7200.0
"""How long an image is reserved for the reader to whom it was offered: correcting a whole spine takes an hour."""

Choose = Callable[[Sequence[str], Mapping[str, float]], str]
"""``choose(images, last)`` returns one of ``images``; ``last`` says when each unfinished image was last offered."""
ScoresOf = Callable[[Iterable[str]], Mapping[str, Score]]
"""``scores_of(images)`` returns the scores of those images that have one."""
UNSCORED_LATER: Final = "; images without a score follow, by name"


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


class _Order(Strategy):  # type: ignore[misc]
    def __init__(self, offers: Offers, description: str, choose: Choose) -> None:
        super().__init__(description)
        self._offers = offers
        self._choose = choose

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the image's id; None if every image is labeled."""
        image = self._offers.take(request, datastore, self._choose)
        return None if image is None else {"id": image}


class First(_Order):
    """Offers the first unlabeled image by name, among those never offered or whose offer is oldest."""

    def __init__(self, offers: Offers) -> None:
        super().__init__(
            offers, "First unlabeled image by name", lambda images, last: min(images, key=last.__getitem__)
        )


class Last(_Order):
    """Offers the last unlabeled image by name, among those never offered or whose offer is oldest."""

    def __init__(self, offers: Offers) -> None:
        super().__init__(
            offers, "Last unlabeled image by name", lambda images, last: min(reversed(images), key=last.__getitem__)
        )


class Random(_Order):
    """Offers a random unlabeled image; those offered lately are less likely."""

    def __init__(self, offers: Offers) -> None:
        super().__init__(offers, "Random unlabeled image, preferably not offered lately", _choose_randomly)


class DoubtfulFirst(_Order):
    """Offers the image whose result is most doubtful."""

    def __init__(self, offers: Offers, scores_of: ScoresOf) -> None:
        super().__init__(
            offers, f"Unlabeled image whose result is most doubtful{UNSCORED_LATER}", _by(scores_of, doubt)
        )


class SurestFirst(_Order):
    """Offers the image whose result is least doubtful."""

    def __init__(self, offers: Offers, scores_of: ScoresOf) -> None:
        super().__init__(
            offers, f"Unlabeled image whose result is least doubtful{UNSCORED_LATER}", _by(scores_of, surety)
        )


class MostToLearn(_Order):
    """Offers the image on which the networks disagree most, weighted by how rare its levels are.

    A level is rare if few finished labels show it. A scan in a reader's hands counts as finished, so that the next one
    is different. Whether this teaches more than a random choice has not been measured.

    Args:
        offers: The offers of all strategies.
        scores_of: Returns the known scores of images.
        finished: Returns the levels that each finished label shows.
    """

    def __init__(self, offers: Offers, scores_of: ScoresOf, finished: Callable[[], Iterable[frozenset[int]]]) -> None:
        def choose(images: Sequence[str], last: Mapping[str, float]) -> str:
            scores = scores_of(last)
            now = time.time()
            in_work = [image for image, offered in last.items() if 0 <= now - offered < RESERVED_SECONDS]
            labels_with = counts_of([*finished(), *(scores[image].codes for image in in_work if image in scores)])

            def value(score: Score) -> float | None:
                apart = score.disagreement
                return None if apart is None else apart * rarity(score.codes, labels_with)

            return best(images, last, scores, value)

        super().__init__(
            offers,
            "Unlabeled image on which the networks disagree, preferring levels that few finished labels show; not "
            f"known to be better than random{UNSCORED_LATER}",
            choose,
        )


def _by(scores_of: ScoresOf, value: Value) -> Choose:
    return lambda images, last: best(images, last, scores_of(images), value)


def _choose_randomly(images: Sequence[str], last: Mapping[str, float]) -> str:
    now = time.time()
    # At least 1 s, so that images offered within this second can still be chosen.
    return random.choices(images, weights=[max(1.0, now - last[image]) for image in images])[0]
