"""Tests of scores: Dice by group, and levels in view, found, and named right."""

import math

import numpy as np
import pytest

from totalspineseg_server.agreement import LEVELS, MEASURES, dice_by_group, levels_apart, score_case
from totalspineseg_server.anatomy import CANAL, CORD, DISC_L4_L5, DISC_L5_S, L1, L4, L5, SACRUM
from totalspineseg_server.errors import GridError

CUBE = 8
"""Edge of a test structure, voxels: well above the least size of a level."""


def column(*codes: int) -> np.ndarray:
    """A stack of cubes, one for each code, the superior one first."""
    labels = np.zeros((CUBE, CUBE, CUBE * len(codes)), np.uint8)
    for k, code in enumerate(reversed(codes)):
        labels[:, :, k * CUBE : (k + 1) * CUBE] = code
    return labels


def test_a_perfect_prediction_scores_one_everywhere() -> None:
    truth = column(L4, L5, DISC_L5_S, SACRUM, CANAL, CORD)
    score = score_case(truth, truth)
    assert [score.value(m) for m in MEASURES] == [1.0] * len(MEASURES)
    assert score.levels == 3


def test_wrong_names_cost_levels_but_not_outlines() -> None:
    """A segmentation shifted by one level looked perfect to a Dice over all vertebrae."""
    score = score_case(column(L4, L5, DISC_L5_S), column(L1, L4, DISC_L5_S))
    assert score.value("vertebrae") == 1.0
    assert (score.levels, score.levels_found, score.levels_right) == (3, 3, 1)


def test_dice_is_twice_the_overlap_over_the_sum() -> None:
    truth = column(L5, SACRUM)
    predicted = truth.copy()
    predicted[: CUBE // 2][truth[: CUBE // 2] == L5] = 0
    assert score_case(truth, predicted).value("vertebrae") == pytest.approx(2 * 0.5 / 1.5)
    assert score_case(truth, predicted).value("sacrum") == 1.0


@pytest.mark.parametrize(("slices", "found"), [(1, 0), (2, 1)], ids=["an eighth", "a quarter"])
def test_a_level_barely_touched_does_not_count_as_found(slices: int, found: int) -> None:
    truth = column(L5)
    predicted = np.zeros_like(truth)
    predicted[:slices] = L5
    score = score_case(truth, predicted)
    assert (score.levels, score.levels_found, score.levels_right) == (1, found, found)


@pytest.mark.parametrize("instead", [DISC_L5_S, SACRUM, CANAL])
def test_a_vertebra_covered_by_another_kind_is_not_found(instead: int) -> None:
    score = score_case(column(L4, L5), column(L4, instead))
    assert (score.levels, score.levels_found, score.levels_right) == (2, 1, 1)


@pytest.mark.parametrize(
    ("names", "right"),
    [((L5,) * 3 + (L4,) * 2 + (L1,) * 2, 1), ((L5,) * 3 + (L4,) * 4, 0), ((L5,) * 3 + (SACRUM,) * 5, 1)],
    ids=["more than any other", "less than another", "the sacrum is no vertebra's name"],
)
def test_a_level_has_the_name_that_most_of_it_carries(names: tuple[int, ...], right: int) -> None:
    predicted = np.zeros_like(column(L5))
    predicted[: len(names)] = np.array(names, np.uint8)[:, None, None]
    score = score_case(column(L5), predicted)
    assert (score.levels_found, score.levels_right) == (1, right)


@pytest.mark.parametrize(("voxels", "voxel_mm3", "levels"), [(299, 1.0, 0), (300, 1.0, 1), (299, 2.0, 1)])
def test_a_corner_of_a_level_is_not_in_view(voxels: int, voxel_mm3: float, levels: int) -> None:
    truth = np.zeros((1, 1, 400), np.uint8)
    truth[..., :voxels] = L5
    assert score_case(truth, truth, voxel_mm3=voxel_mm3).levels == levels


def test_nothing_to_find_is_not_a_number_and_missed_is_zero() -> None:
    score = score_case(column(L5), np.zeros_like(column(L5)))
    assert math.isnan(score.value("cord"))
    assert score.value("vertebrae") == 0.0
    assert score.value(LEVELS) == 0.0


def test_a_sliver_at_the_edge_of_the_scan_has_no_dice_but_a_structure_invented_there_has() -> None:
    """29 voxels of a cord counted as much in a scan as a whole cord."""
    truth = column(L5, SACRUM, SACRUM)
    truth[0, 0, 0] = CORD
    assert math.isnan(score_case(truth, column(L5, SACRUM, SACRUM)).value("cord"))
    assert score_case(truth, column(CORD, CORD, SACRUM)).value("cord") < 0.01
    assert math.isnan(score_case(column(L5, SACRUM, SACRUM), truth).value("cord"))
    assert score_case(truth, truth, voxel_mm3=300.0).value("cord") == 1.0


def test_finding_a_sliver_never_speaks_against_a_model() -> None:
    """A model that found nothing was rated above one that found a sliver: 305 voxels for 290 counted as invented."""
    truth = column(L5, SACRUM)
    truth[:, :, :CUBE] = 0
    truth.reshape(-1)[np.flatnonzero(truth == 0)[:290]] = CORD
    found = truth.copy()
    found.reshape(-1)[np.flatnonzero(truth == 0)[:15]] = CORD
    assert [math.isnan(score_case(truth, map_).value("cord")) for map_ in (column(L5, L5), found)] == [True, True]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(GridError, match="shape"):
        score_case(column(L5), column(L4, L5))


def test_any_regions_have_their_dice() -> None:
    """Classes of a network, which are not codes, had no Dice."""
    truth, predicted = column(1, 2, 6), column(1, 1, 0)
    scores = dice_by_group(truth, predicted, {"disc": (1, 2), "landmark": (2,), "cord": (6,), "none": (9,)})
    assert math.isnan(scores.pop("none"))
    assert scores == {"disc": 1.0, "landmark": 0.0, "cord": 0.0}


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (column(DISC_L4_L5, DISC_L5_S), column(DISC_L4_L5, DISC_L5_S), 0),
        (column(L4, DISC_L4_L5, DISC_L5_S), column(L5, DISC_L4_L5, DISC_L5_S), 0),
        (column(0, DISC_L4_L5, DISC_L5_S), column(DISC_L4_L5, DISC_L5_S, 0), 1),
        (column(DISC_L4_L5, DISC_L5_S), column(0, DISC_L5_S), 1 / 3),
        (column(0, DISC_L5_S), column(0, DISC_L4_L5), 1),
        (column(L4, L5), column(L1, L5), None),
    ],
    ids=["alike", "vertebrae do not count", "one level off", "missed", "renamed", "no disc"],
)
def test_levels_that_two_maps_do_not_show_alike(one: np.ndarray, other: np.ndarray, apart: float | None) -> None:
    assert levels_apart(one, other) == (None if apart is None else pytest.approx(apart))
    assert levels_apart(other, one) == levels_apart(one, other)
