"""Tests of faults in an image that keep the networks from finding its levels, and of their messages."""

import re
from collections.abc import Callable, Collection

import numpy as np
import pytest

from phantom import CodeReader, image_of, lumbar_codes
from totalspineseg_server.anatomy import C1, DISC_L4_L5, DISC_L5_S, L4, SACRUM, Step1
from totalspineseg_server.cohort.record import levels_in_view, structures_json
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.image import image_faults
from totalspineseg_server.pipeline import Scan, image_findings, locate, prepare
from totalspineseg_server.prediction import Prediction


def tissue(shape: tuple[int, int, int] = (60, 90, 160)) -> np.ndarray:
    values = np.random.default_rng(0).normal(300, 80, shape).clip(0).astype(np.float32)
    values[:, : shape[1] // 4] = 3
    return values


def with_value(value: float, *where: slice | int) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        values = tissue()
        values[where] = value
        return values

    return make


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: tissue((60, 90, 7)), "7 mm from head to foot"),
        (lambda: tissue((60, 7, 160)), "7 mm from front to back"),
        (lambda: tissue((7, 90, 160)), "7 mm from left to right"),
        (lambda: tissue((7, 90, 7)), "7 mm from left to right and 7 mm from head to foot"),
        (with_value(1e9, 5, 5, 5), r"1e\+09.* 1 of its"),
        (with_value(-1e9, 5, 5, 5), r"-1e\+09.* 1 of its"),
        (with_value(-32768, slice(20)), "-32768"),
        (with_value(-32768, slice(45)), "-32768"),
        (with_value(65535, slice(10)), "65535"),
    ],
    ids=["low", "thin", "narrow", "rod", "one voxel", "one below", "fill", "mostly fill", "bright fill"],
)
def test_what_is_odd_about_an_image_is_named(make: Callable[[], np.ndarray], fact: str) -> None:
    (fault,) = image_faults(Volume(make(), np.eye(4)))
    assert re.search(fact, fault)


@pytest.mark.parametrize(
    "image",
    [tissue(), tissue() - 1024, with_value(2500, slice(3), slice(40), slice(40))(), with_value(0, slice(40))()],
    ids=["MR", "shifted", "bright vessels", "mostly air"],
)
def test_usual_images_have_no_fault(image: np.ndarray) -> None:
    assert image_faults(Volume(image, np.eye(4))) == ()


class Draws:
    """A network that draws the same map whatever it sees."""

    version = "test"

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def predict(self, channels: np.ndarray, *, soft: Collection[str] = ()) -> Prediction:
        return Prediction(self.labels, {name: np.zeros(self.labels.shape, np.float32) for name in soft})


def scan_with_one_bright_voxel() -> Scan:
    return prepare(Volume(with_value(1e9, 5, 5, 5)(), np.eye(4)))


def canal_alone() -> np.ndarray:
    labels = np.zeros((60, 90, 160), np.uint8)
    labels[25:40, 20:35] = Step1.CANAL.value
    return labels


def test_where_no_spine_is_found_the_message_names_what_is_odd_about_the_image() -> None:
    """For a scan with one voxel of 1e9, the message said that it shows no spine."""
    with pytest.raises(NoSpineError, match=r"no intervertebral disc.*1e\+09"):
        locate(scan_with_one_bright_voxel(), Draws(canal_alone()))


def test_where_no_level_fits_the_message_says_so() -> None:
    """The reader was asked to draw a disc into a label that did not exist."""
    labels = canal_alone()
    labels[30, 37, 80] = Step1.DISC.value
    with pytest.raises(NoSpineError, match=r"No level fits.*1e\+09"):
        locate(scan_with_one_bright_voxel(), Draws(labels))


def test_a_numbering_in_doubt_says_what_is_odd_about_the_image() -> None:
    codes = lumbar_codes()[:, :, 100:139]
    scan = prepare(Volume(image_of(codes), np.eye(4)), warnings=("Slices are missing.",))
    numbering = locate(scan, CodeReader(1)).numbering
    assert numbering is not None and numbering.certainty == "doubtful"
    counted = locate(prepare(Volume(image_of(lumbar_codes()), np.eye(4))), CodeReader(1)).numbering
    warning, fault = image_findings(scan, numbering)
    assert warning.message == "Slices are missing." and "39 mm from head to foot" in fault.message
    assert image_findings(scan, counted) == (warning,)
    assert image_findings(scan, None) == (warning,)


def test_a_speck_of_a_level_is_not_in_view() -> None:
    """ "C1 - sacrum" was reported for a lumbar scan in which a single voxel was C1."""
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:20, :, 20:], labels[:20, :, :20], labels[20:, :, 20:], labels[0, 0, 0] = L4, SACRUM, DISC_L4_L5, C1
    assert levels_in_view(structures_json(labels, (1, 1, 1), step=2), step=2) == "L4 - sacrum"
    labels[labels == SACRUM], labels[0, 0, 1] = 0, SACRUM
    assert levels_in_view(structures_json(labels, (1, 1, 1), step=2), step=2) == "L4"
    labels[39, 39, 0] = DISC_L5_S
    assert levels_in_view(structures_json(labels, (1, 1, 1), step=1), step=1) == "L4-L5"
