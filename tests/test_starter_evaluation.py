"""Tests of the starter's report: Dice by structure, levels and scans by field of view and contrast, flags."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from starter_evaluation import Report, SpineScore, is_flagged, score

import columns
from phantom import RAS, CodeReader, image_of, lumbar_codes
from totalspineseg_server.agreement import GROUPS, CaseScore
from totalspineseg_server.anatomy import L4, STEP1_REGIONS
from totalspineseg_server.synthesis import Field, SyntheticSpine

NO_DICE = dict.fromkeys(STEP1_REGIONS, math.nan)


def case(
    found: int, named: int, flagged: bool, contrast: str = "T2", *, discs: float = 0.8, seconds: float = 10.0
) -> SpineScore:
    dice = dict.fromkeys(GROUPS, math.nan) | {"discs": discs, "canal": 0.6}
    result = CaseScore(dice, 10, found, named)
    return SpineScore("lumbar", contrast, "normal", NO_DICE, result, flagged, seconds)


def test_table_counts_scans_right_and_the_others_flagged_by_field_and_contrast() -> None:
    """ "Scans all right" counted scans whose found levels are right, however many were not found."""
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


def test_a_dice_counts_the_cases_to_which_it_applies() -> None:
    rows = Report((case(1, 1, False), case(1, 1, False, discs=math.nan))).table().splitlines()
    assert "| 2 | discs | 0.80 | 1 |" in rows
    assert "| 2 | canal | 0.60 | 2 |" in rows
    assert "| 2 | cord | - | 0 |" in rows
    assert "| 1 | disc | - | 0 |" in rows


def test_a_spine_is_scored_by_what_either_step_finds() -> None:
    codes = lumbar_codes()
    spine = SyntheticSpine(codes, codes, RAS.affine, "normal", (), ())
    seen = score(spine, image_of(codes), CodeReader(1), CodeReader(2), "lumbar", "T2")
    assert min(seen.step1["disc"], seen.step1["canal"], seen.result.dice["discs"]) > 0.99
    assert (seen.all_right, seen.found_right) == (True, True)
    blind = score(spine, np.zeros_like(image_of(codes)), CodeReader(1), CodeReader(2), "lumbar", "T2")
    assert max(blind.step1["disc"], blind.result.dice["discs"]) == 0.0
    assert (blind.result.levels, blind.result.levels_found) == (seen.result.levels, 0)
    assert (blind.all_right, blind.found_right, blind.flagged) == (False, False, True)


def test_a_report_of_nothing_is_a_table_without_figures() -> None:
    """The mean of nothing gave a warning."""
    rows = Report().table().splitlines()
    assert rows[2] == "| 1 | disc | - | 0 |"
    assert rows[-1] == "| all | 0 | - | 0 | 0 % | 0 % | 0 | 0 | 0 of 0 | - |"
    assert np.isnan(Report().seconds())


def test_seconds_are_listed_by_field_of_view() -> None:
    cases = case(9, 9, False, seconds=10.0), replace(case(9, 9, False, seconds=40.0), field=Field.WHOLE.value)
    assert Report(cases).seconds() == 25.0
    assert Report(cases).seconds(Field.WHOLE) == 40.0


@pytest.mark.parametrize(
    ("certainty", "missing", "flagged"),
    [
        ("certain", 0, False),
        ("counted", 0, False),
        ("doubtful", 0, True),
        (None, 0, False),
        ("certain", L4, True),
        (None, L4, True),
    ],
    ids=["sure and sound", "counted", "abstains", "no chain model", "a level is missing", "missing, no chain"],
)
def test_flagged_is_what_the_chain_model_or_the_linter_doubts(
    certainty: str | None, missing: int, flagged: bool
) -> None:
    """Real scans were flagged by the chain model only, synthetic ones also by the linter."""
    labels = columns.built(1, fov="lumbar", spacing=2.0)[0].truth
    numbering = None if certainty is None else SimpleNamespace(certainty=certainty)
    result = SimpleNamespace(labels=np.where(labels == missing, 0, labels), numbering=numbering)
    assert is_flagged(result, (2.0, 2.0, 2.0)) is flagged  # type: ignore[arg-type]
