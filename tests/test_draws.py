"""Tests of the order of cases in a fine-tuning: each once before any twice; unused cases were not learned from."""

from collections import Counter
from dataclasses import dataclass

import pytest

from totalspineseg_server.nnunet.cases import Origin
from totalspineseg_server.nnunet.draws import draws_of, in_order_of_choice, place


@dataclass(frozen=True)
class Case:
    origin: Origin
    name: str


def cases(**counts: int) -> tuple[Case, ...]:
    return tuple(Case(Origin[kind.upper()], f"{kind}-{k}") for kind, count in counts.items() for k in range(count))


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({"correction": 5, "earlier": 2, "uncorrected": 48}, 0.5, (50, 25, 25)),
        ({"correction": 5, "earlier": 500, "uncorrected": 48}, 0.2, (80, 10, 10)),
        ({"correction": 5, "uncorrected": 3}, 0.5, (50, 0, 50)),
        ({"correction": 5, "earlier": 3}, 0.5, (50, 50, 0)),
        ({"correction": 5}, 0.5, (100, 0, 0)),
        ({"earlier": 3, "uncorrected": 3}, 0.5, (0, 50, 50)),
        ({"uncorrected": 1}, 0.0, (0, 0, 100)),
    ],
)
def test_replay_is_earlier_labels_and_uncorrected_scans_in_equal_parts(
    counts: dict[str, int], share: float, expected: tuple[int, int, int]
) -> None:
    """A few earlier labels among 48 synthetic scans were hardly replayed."""
    found = Counter(draws_of(cases(**counts), share).turn(number)[0] for number in range(100))
    assert tuple(found[kind] for kind in (Origin.CORRECTION, Origin.EARLIER, Origin.UNCORRECTED)) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"correction": 5, "accepted": 500, "uncorrected": 3}, (45, 10, 45)),
        ({"correction": 5, "accepted": 1}, (90, 10, 0)),
        ({"accepted": 7}, (0, 100, 0)),
        ({"accepted": 7, "uncorrected": 3}, (0, 10, 90)),
    ],
)
def test_results_accepted_unchanged_have_a_small_share_of_their_own(
    counts: dict[str, int], expected: tuple[int, int, int]
) -> None:
    """Hundreds of results that readers only accepted would have outweighed what they corrected."""
    draws = draws_of(cases(**counts), 0.5, 0.1)
    found = Counter(draws.turn(number)[0] for number in range(100))
    assert tuple(found[kind] for kind in (Origin.CORRECTION, Origin.ACCEPTED, Origin.UNCORRECTED)) == expected
    sequence = [turn for number in range(100) for origin, turn in [draws.turn(number)] if origin is Origin.ACCEPTED]
    assert sequence == list(range(len(sequence)))


def test_every_case_has_its_turn_before_any_has_a_second() -> None:
    """62 of 300 labels were never used, but recorded as learned."""
    draws = draws_of(cases(correction=7), 0.5)
    sequence = [place(draws.turn(number)[1], 7, (1, 2)) for number in range(21)]
    rounds = [sequence[k : k + 7] for k in range(0, 21, 7)]
    assert [sorted(order) for order in rounds] == [list(range(7))] * 3
    assert rounds[0] != rounds[1]


def test_no_more_cases_are_wanted_than_have_a_turn() -> None:
    """All 500 scans of a site were read and kept in memory for a training that uses only some of them."""
    draws = draws_of(cases(correction=300, earlier=400, uncorrected=48), 0.5)
    counts = [draws.count(patches) for patches in (1, 2, 8, 1000)]
    found = [[count[kind] for kind in (Origin.CORRECTION, Origin.EARLIER, Origin.UNCORRECTED)] for count in counts]
    assert found == [[1, 0, 0], [1, 1, 0], [4, 2, 2], [500, 250, 250]]


def test_the_seed_chooses_which() -> None:
    everything = cases(correction=300)
    one, other = (in_order_of_choice(everything, seed) for seed in (0, 1))
    assert set(one[:20]) != set(other[:20])
    assert one == in_order_of_choice(everything, 0)
    assert sorted(one, key=everything.index) == list(everything)
