"""What the starter's report counts: levels in view, found, and named right."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

import columns
from lib import anatomy
from lib.nnunet.starter_evaluation import CaseScore, Report, is_flagged, levels_in_view
from lib.synthesis import Field

Codes = NDArray[np.uint8]
L3, L4, L4_L5 = 43, 44, 95


@pytest.fixture
def truth() -> Codes:
    codes = np.zeros((10, 10, 40), np.uint8)
    codes[:, :, 20:30], codes[:, :, 8:16], codes[:, :, 16:20] = L3, L4, L4_L5
    codes[0, 0, 39] = anatomy.L5  # a corner of a few voxels is no level in view
    return codes


def renamed(codes: Codes, old: int, new: int) -> Codes:
    return np.where(codes == old, new, codes).astype(np.uint8)


def test_all_found_and_named(truth: Codes) -> None:
    assert levels_in_view(truth, truth) == (3, 3, 3)


def test_wrong_name_is_found_but_not_named(truth: Codes) -> None:
    assert levels_in_view(truth, renamed(truth, L4, anatomy.L5)) == (3, 3, 2)


def test_thin_result_of_the_right_name_counts(truth: Codes) -> None:
    found = truth.copy()
    found[:, :, 13:16] = 0  # 5 of 8 slices left
    assert levels_in_view(truth, found) == (3, 3, 3)


@pytest.mark.parametrize("instead", [0, L4_L5, anatomy.SACRUM], ids=["nothing", "disc", "sacrum"])
def test_level_covered_by_no_vertebra_is_not_found(truth: Codes, instead: int) -> None:
    levels, found, named = levels_in_view(truth, renamed(truth, L4, instead))
    assert (levels, found, named) == (3, 2, 2)


def case(
    found: int, named: int, flagged: bool, contrast: str = "T2", *, discs: float = 0.8, seconds: float = 10.0
) -> CaseScore:
    dice = {"discs": discs, "canal": 0.6}
    return CaseScore("lumbar", contrast, "normal", {}, dice, 10, found, named, flagged, seconds)


def test_table_counts_scans_right_and_the_others_flagged_by_field_and_contrast() -> None:
    """ "Scans all right" were those whose found levels are named right, however many were not found."""
    cases = (
        case(10, 10, False),
        case(9, 9, False),
        case(8, 7, True),
        case(8, 7, False, "T1", discs=0.4, seconds=20.0),
        case(0, 0, True),
    )
    rows = Report(cases).table().splitlines()[-4:]
    assert rows == [
        "| lumbar | 5 | 0.66 | 50 | 70 % | 94 % | 1 | 2 | 2 of 3 | 12.0 |",
        "| T2 | 4 | 0.70 | 40 | 68 % | 96 % | 1 | 2 | 2 of 2 | 10.0 |",
        "| T1 | 1 | 0.50 | 10 | 80 % | 88 % | 0 | 0 | 0 of 1 | 20.0 |",
        "| all | 5 | 0.66 | 50 | 70 % | 94 % | 1 | 2 | 2 of 3 | 12.0 |",
    ]


def test_a_report_of_nothing_is_a_table_without_figures() -> None:
    """The mean of nothing warned."""
    rows = Report().table().splitlines()
    assert rows[2] == "| 1 | disc | - | 0 |"
    assert rows[-1] == "| all | 0 | - | 0 | 0 % | 0 % | 0 | 0 | 0 of 0 | - |"
    assert np.isnan(Report().seconds())


def test_seconds_are_told_by_field_of_view() -> None:
    cases = case(9, 9, False, seconds=10.0), replace(case(9, 9, False, seconds=40.0), field=Field.WHOLE.value)
    assert Report(cases).seconds() == 25.0
    assert Report(cases).seconds(Field.WHOLE) == 40.0


@pytest.mark.parametrize(
    ("confident", "missing", "flagged"),
    [(True, 0, False), (False, 0, True), (None, 0, False), (True, L4, True), (None, L4, True)],
    ids=["sure and sound", "abstains", "no chain model", "a level is missing", "missing without chain model"],
)
def test_flagged_is_what_the_chain_model_or_the_linter_doubts(
    confident: bool | None, missing: int, flagged: bool
) -> None:
    """Real scans were flagged by the chain model alone, synthetic ones by the linter, too."""
    labels = columns.build(np.random.default_rng(1), fov="lumbar", spacing=2.0).truth
    numbering = None if confident is None else SimpleNamespace(confident=confident)
    result = SimpleNamespace(labels=renamed(labels, missing, 0), numbering=numbering)
    assert is_flagged(result, (2.0, 2.0, 2.0)) is flagged  # type: ignore[arg-type]
