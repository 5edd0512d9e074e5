"""Choose the case for each patch of a fine-tuning by the patch's number, before any case is read."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np

from totalspineseg_server.nnunet.cases import Origin

REPLAYED: Final = (Origin.EARLIER, Origin.UNCORRECTED)
"""Origins that share the replay equally: a few earlier labels are seen as often as many uncorrected scans, and vice
versa."""


class FromSomewhere(Protocol):
    """An object with an origin."""

    @property
    def origin(self) -> Origin:
        """The origin of the object."""


Case = TypeVar("Case")


@dataclass(frozen=True)
class Draws:
    """The order in which cases are used.

    Attributes:
        origins: Origins that have cases.
        replay_share: Share of replay among the patches that are not from accepted results; 1 without new corrections.
        accepted_share: Share of patches from results that readers accepted unchanged; 1 if there is nothing else.
    """

    origins: frozenset[Origin]
    replay_share: float
    accepted_share: float = 0.0

    def turn(self, number: int) -> tuple[Origin, int]:
        """Return the origin of a patch, and how many earlier patches have the same origin.

        Args:
            number: Number of the patch, from 0.
        """
        if Origin.ACCEPTED in self.origins:
            share = self.accepted_share if len(self.origins) > 1 else 1.0
            before = math.floor(number * share)
            if math.floor((number + 1) * share) > before:
                return Origin.ACCEPTED, before
            number -= before
        replayed = [origin for origin in REPLAYED if origin in self.origins]
        fresh = Origin.CORRECTION in self.origins
        share = (self.replay_share if fresh else 1.0) if replayed else 0.0
        # Spread the replay evenly, so that no batch is all of one kind by chance.
        before = math.floor(number * share)
        if math.floor((number + 1) * share) > before:
            return replayed[before % len(replayed)], before // len(replayed)
        return Origin.CORRECTION, number - before

    def count(self, patches: int) -> dict[Origin, int]:
        """Return how many of the first patches come from each origin, which is the largest number of its cases that can
        be used.
        """
        origins = [self.turn(number)[0] for number in range(patches)]
        return {origin: origins.count(origin) for origin in self.origins}


def draws_of(cases: Collection[FromSomewhere], replay_share: float, accepted_share: float = 0.0) -> Draws:
    """Return the draws from these cases."""
    return Draws(frozenset(case.origin for case in cases), replay_share, accepted_share)


def place(turn: int, length: int, seed: Sequence[int]) -> int:
    """Return which case of a pool comes next: each case is used once per round, in a new order each round.

    Args:
        turn: Number of earlier patches from the pool.
        length: Number of cases in the pool.
        seed: Seed of the order.
    """
    around, within = divmod(turn, length)
    return int(np.random.default_rng([*seed, around]).permutation(length)[within])


def in_order_of_choice(cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """Return the cases, shuffled within each origin; a training that cannot use them all takes the first ones.

    Args:
        cases: All cases. Not modified.
        seed: Seed of the order; with another seed the next training takes other cases.
    """
    order = np.random.default_rng([seed, len(cases)]).permutation(len(cases))
    return tuple(cases[int(k)] for k in order)
