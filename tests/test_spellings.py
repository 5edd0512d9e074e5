"""Tests that segments are known by the names that radiologists use, and that unclear names stay unknown."""

import pytest

from totalspineseg_server.anatomy import (
    CANAL,
    CODE_OF,
    CORD,
    DISC_L4_L5,
    DISC_L5_S,
    DISC_T12_L1,
    L1,
    L4,
    STRUCTURES,
    T12,
    Structure,
)
from totalspineseg_server.segments import code_of_name, level_at, similar_name


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_published_names_and_those_of_other_label_tables(structure: Structure) -> None:
    name, code = structure.name, structure.code
    assert code_of_name(name) == code_of_name(f" {name.lower()} ") == code
    assert code_of_name(name.replace("-", "_")) == code


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        ("vertebrae_L4", L4),
        ("Vertebra L1", L1),
        ("L1 vertebra", L1),
        ("Th12", T12),
        ("Th12/L1", DISC_T12_L1),
        ("disc_L4_L5", DISC_L4_L5),
        ("disc L4-L5", DISC_L4_L5),
        ("L4-L5 intervertebral disk", DISC_L4_L5),
        ("L4 - L5", DISC_L4_L5),
        *[(f"L4{dash}L5", DISC_L4_L5) for dash in "\u2010\u2011\u2012\u2013\u2014\u2212/"],
        *[(f"{name}4{sign}5", DISC_L4_L5) for name in ("L", "disc L", "l") for sign in ("/", "-", " / ")],
        ("L5-S1", DISC_L5_S),
        ("L5/S1", DISC_L5_S),
        ("L5_S", DISC_L5_S),
        ("Spinal Cord", CORD),
        ("spinal_canal", CANAL),
    ],
    ids=ascii,
)
def test_usual_spellings(spelling: str, code: int) -> None:
    """A reader's whole submission was parked because of one name that radiologists use."""
    assert code_of_name(spelling) == code


@pytest.mark.parametrize("spelling", ["L6-S", "L6-S1", "L6/S1", "L4-S1"])
def test_the_disc_on_the_sacrum_whatever_stands_above_it(spelling: str) -> None:
    """A reader who renamed L5 to L6 named its disc L6-S, and the submission was parked."""
    assert code_of_name(spelling) == DISC_L5_S


@pytest.mark.parametrize("spelling", ["T13-L1", "T11-L1"])
def test_the_last_thoracic_disc_whatever_stands_above_it(spelling: str) -> None:
    assert code_of_name(spelling) == DISC_T12_L1


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("L4_5", "L4-L5"),
        ("L4 5", "L4-L5"),
        ("L4/6", None),
        ("spinalcord", "cord"),
        ("S1", "sacrum"),
        ("vertebrae_S1", "sacrum"),
        ("L7", None),
        ("T14", None),
        ("L4_1", None),
        ("disc L4", None),
        ("vertebra L4-L5", None),
        ("vertebrae", None),
        ("disc", None),
        ("", None),
        ("-", None),
        ("tumor", None),
    ],
)
def test_what_is_in_doubt_stays_unknown(spelling: str, expected: str | None) -> None:
    """A part that 3D Slicer split off (L4_1), a part of the sacrum, or a level of another kind is not what its name
    resembles."""
    assert (code_of_name(spelling), similar_name(spelling)) == (None, expected)


@pytest.mark.parametrize(
    "text", ["L4 1 -2.5 3", "L4@1,-2.5,3", " L4  1, -2.5, 3 ", "vertebrae L4 1 -2.5 3"], ids=lambda text: text.strip()
)
def test_a_level_and_a_point_are_read_in_every_spelling(text: str) -> None:
    """The command line and the server accepted different spellings."""
    assert level_at(text) == (CODE_OF["L4"], (1, -2.5, 3))


@pytest.mark.parametrize("text", ["", "L4", "L4 1 2", "1 2 3", "L9 1 2 3", "canal 1 2 3", "L4 1 nan 3", "L4@1,2,3,4"])
def test_a_text_without_level_and_point_gives_none(text: str) -> None:
    assert level_at(text) is None
