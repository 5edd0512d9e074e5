"""Tests of the scanner of `make bench-retrain`: unknown to the weights, with one protocol and readable images."""

import functools

import bench_retrain
import numpy as np
import pytest
from synthetic_scanner import BRIGHTEST, NOISE, FloatImage, new_scanner, old_scanner

from totalspineseg_server.anatomy import CANAL, CORD, DISCS
from totalspineseg_server.synthesis import SpineOptions, SyntheticSpine, random_spine, thick_slices
from totalspineseg_server.synthesis.tissues import Tissue

Scan = tuple[SyntheticSpine, FloatImage]


@functools.cache
def painted(person: int) -> Scan:
    rng = np.random.default_rng([17, person])
    spine = random_spine(rng, SpineOptions(field=bench_retrain.FIELDS[person], width_mm=60, depth_mm=150))
    return spine, new_scanner(rng, spine)


PEOPLE = range(len(bench_retrain.FIELDS))


@pytest.fixture(scope="module", params=PEOPLE)
def scan(request: pytest.FixtureRequest) -> Scan:
    return painted(request.param)


def rims_over_marrow(spine: SyntheticSpine, image: FloatImage) -> list[float]:
    """Return, for every disc, the signal of its rim minus that of the marrow beside it, in standard deviations of the
    noise."""
    found = []
    for code in DISCS:
        disc = spine.labels == code
        if disc.sum() < 300:
            continue
        places = np.argwhere(disc)
        near = tuple(slice(max(0, low - 6), high + 7) for low, high in zip(places.min(0), places.max(0), strict=True))
        rim = disc[near] & (spine.tissues[near] == Tissue.ANNULUS)
        marrow = spine.tissues[near] == Tissue.MARROW
        found.append((image[near][rim].mean() - image[near][marrow].mean()) / (BRIGHTEST * NOISE))
    return found


def test_a_reader_can_use_it(scan: Scan) -> None:
    """Discs differed from vertebrae by less than the noise, brighter in one person and darker in the next."""
    assert np.median(rims_over_marrow(*scan)) > 1


def test_most_discs_differ_to_one_side() -> None:
    """This holds for all people together, because one of them may have dark marrow at some levels."""
    over = np.concatenate([rims_over_marrow(*painted(person)) for person in PEOPLE])
    assert np.mean(over > 0) > 0.7


def test_its_gray_scale_is_upside_down(scan: Scan) -> None:
    spine, image = scan
    usual = old_scanner(np.random.default_rng(3), spine)
    signs = [np.sign(i[spine.labels == CANAL].mean() - i[spine.labels == CORD].mean()) for i in (image, usual)]
    assert signs == [-1, 1]


def test_its_slices_are_thick(scan: Scan) -> None:
    """Between the middles of two slices the signal is interpolated, so it changes evenly."""
    spine, _ = scan
    quiet = thick_slices(spine.tissues.astype(np.float32), 0, 4)
    bends = np.abs(np.diff(quiet, 2, axis=0)).max(axis=(1, 2))
    assert 0 < np.count_nonzero(bends > 1e-3) <= len(spine.tissues) // 2
