"""What the starter's report counts: levels in view, found, and named right."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lib import anatomy
from lib.nnunet.starter_evaluation import CaseScore, Report, levels_in_view

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


def test_table_counts_scans_right_and_the_rest_flagged_by_field_and_contrast() -> None:
    def case(found: int, named: int, abstained: bool, contrast: str = "T2", discs: float = 0.8) -> CaseScore:
        dice = {"discs": discs, "canal": 0.6}
        return CaseScore("lumbar", contrast, "normal", {}, dice, 10, found, named, abstained)

    cases = (case(9, 9, False), case(8, 7, True), case(8, 7, False, "T1", discs=0.4), case(0, 0, True))
    rows = Report(cases).table().splitlines()[-4:]
    assert rows == [
        "| lumbar | 4 | 0.65 | 40 | 62 % | 92 % | 1 | 2 |",
        "| T2 | 3 | 0.70 | 30 | 57 % | 94 % | 1 | 2 |",
        "| T1 | 1 | 0.50 | 10 | 80 % | 88 % | 0 | 0 |",
        "| all | 4 | 0.65 | 40 | 62 % | 92 % | 1 | 2 |",
    ]
