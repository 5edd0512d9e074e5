"""Tests of scanner artifacts: each does what its name says, where it says, and leaves its input unchanged."""

import numpy as np
import pytest

from totalspineseg_server.synthesis.render import Image, add_artifacts, ghosts, metal, ringing, wrap


@pytest.fixture
def block() -> Image:
    image = np.zeros((6, 40, 60), np.float32)
    image[:, 12:20, 25:35] = 1.0
    return image


def test_no_strength_leaves_the_image(block: Image) -> None:
    for seed in range(20):
        assert add_artifacts(np.random.default_rng(seed), block, (1.0, 1.0, 1.0), 0.0) is block


def test_every_artifact_is_drawn_sooner_or_later_and_the_input_stays(block: Image) -> None:
    before = block.copy()
    seen = sum(
        add_artifacts(np.random.default_rng(seed), block, (1.0, 1.0, 1.0), 1.0) is not block for seed in range(200)
    )
    assert 30 < seen < 110  # 12 + 12 + 5 + 3 in a hundred
    np.testing.assert_array_equal(block, before)


def test_ringing_swings_about_an_edge_along_its_axis_alone(block: Image) -> None:
    rung = ringing(block, 2, 0.6)
    assert rung.max() > 1.03  # overshoot at the edge
    assert (rung[:, 12:20, :20] > 0.005).any()  # ripples outside along the axis
    assert not rung[:, :12].any()  # none beside it
    assert rung.dtype == np.float32 and rung.min() >= 0


def test_ghosts_are_faint_copies_at_even_distances(block: Image) -> None:
    ghosted = ghosts(block, 1, 4, 0.1)
    assert ghosted[3, 25, 30] == pytest.approx(0.1)  # 15 + 10
    assert ghosted[3, 35, 30] == pytest.approx(0.1)  # 15 + 20 and 15 - 20, half as strong each
    assert ghosted[3, 15, 30] == pytest.approx(1.0)


def test_wrap_folds_the_far_end_over_the_near_one() -> None:
    image = np.zeros((4, 20, 30), np.float32)
    image[:, :, -6:] = 2.0
    folded = wrap(image, 2, 0.2, 0.5)
    assert (folded[:, :, :6] == 1.0).all()
    assert (folded[:, :, 6:24] == 0.0).all() and (folded[:, :, 24:] == 2.0).all()


def test_metal_leaves_a_void_of_its_radius_in_mm_with_a_bright_rim() -> None:
    image = np.full((20, 40, 60), 10.0, np.float32)
    hurt = metal(image, (2.0, 1.0, 1.0), [10.0, 20.0, 30.0], 8.0)
    assert hurt[10, 20, 30] < 0.1 and hurt[12, 20, 30] < 0.1  # 4 mm away
    assert hurt[10, 29, 30] > 20  # the rim, 9 mm away
    assert hurt[2, 20, 30] == pytest.approx(10.0, rel=0.01)  # 16 mm away
