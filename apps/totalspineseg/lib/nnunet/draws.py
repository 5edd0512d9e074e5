"""Which case each patch of a fine-tuning comes from: known by its number, before a case is read."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np

from lib.nnunet.cases import Origin

REPLAYED: Final = (Origin.EARLIER, Origin.SYNTHETIC)
"""What replay takes its turns from, in equal parts: a few earlier labels among many synthetic scans, or the other way
round, are seen as often."""


class FromSomewhere(Protocol):
    """Anything with an origin."""

    @property
    def origin(self) -> Origin:
        """Where it comes from."""


Case = TypeVar("Case")


@dataclass(frozen=True)
class Draws:
    """Whose turn it is.

    Attributes:
        origins: Those there are cases of.
        replay_share: Share of patches from replay, of those that no accepted result has; 1 without fresh corrections.
        accepted_share: Share of patches from results that readers accepted unchanged; 1 where there is nothing else.
    """

    origins: frozenset[Origin]
    replay_share: float
    accepted_share: float = 0.0

    def turn(self, number: int) -> tuple[Origin, int]:
        """The origin of a patch, and how many patches of that origin there were before.

        Args:
            number: Of the patch, from 0.
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
        # Evenly spread, so that no batch is of one kind by chance.
        before = math.floor(number * share)
        if math.floor((number + 1) * share) > before:
            return replayed[before % len(replayed)], before // len(replayed)
        return Origin.CORRECTION, number - before

    def count(self, patches: int) -> dict[Origin, int]:
        """How many of the first so many patches come from each origin: more cases of it cannot have a turn."""
        turns = [self.turn(number)[0] for number in range(patches)]
        return {origin: turns.count(origin) for origin in self.origins}


def draws_of(cases: Collection[FromSomewhere], replay_share: float, accepted_share: float = 0.0) -> Draws:
    """The draws from these cases."""
    return Draws(frozenset(case.origin for case in cases), replay_share, accepted_share)


def place(turn: int, length: int, seed: Sequence[int]) -> int:
    """Which case of a pool has the turn: each once, in an order of its own every time round.

    Args:
        turn: Patches of the pool before.
        length: Cases in the pool.
        seed: Of the order.
    """
    around, within = divmod(turn, length)
    return int(np.random.default_rng([*seed, around]).permutation(length)[within])


def in_order_of_choice(cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """The cases of each origin shuffled: the first ones are chosen where a training has not a turn for all.

    Args:
        cases: All. Not modified.
        seed: Of the order, so that the next training may take others.
    """
    order = np.random.default_rng([seed, len(cases)]).permutation(len(cases))
    return tuple(cases[int(k)] for k in order)
