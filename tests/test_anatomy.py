"""Tests that codes, names, classes and wire ids in the label table agree with each other and with the specification."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from known_figures import require_known
from totalspineseg_server import anatomy

STARTER = Path(__file__).parents[1] / "apps" / "totalspineseg" / "model" / "starter"


def test_codes_are_the_published_ones() -> None:
    expected = [1, 2, *range(11, 18), *range(21, 34), *range(41, 47), 50]
    expected += [*range(63, 68), *range(71, 84), *range(91, 97), 100]
    assert [s.code for s in anatomy.STRUCTURES] == expected


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("cord", 1),
        ("canal", 2),
        ("C1", 11),
        ("C7", 17),
        ("T1", 21),
        ("T13", 33),
        ("L5", 45),
        ("L6", 46),
        ("sacrum", 50),
        ("C2-C3", 63),
        ("C7-T1", 71),
        ("T1-T2", 72),
        ("T11-T12", 82),
        ("T12-T13", 83),
        ("T12-L1", 91),
        ("L4-L5", 95),
        ("L5-L6", 96),
        ("L5-S", 100),
    ],
)
def test_name_and_code(name: str, code: int) -> None:
    assert anatomy.CODE_OF[name] == code
    assert anatomy.NAME_OF[code] == name


def test_wire_ids_are_contiguous_without_background() -> None:
    """A client gives the k-th published name to voxel value k, so a gap shifts every later name."""
    assert list(anatomy.WIRE_LABELS.values()) == list(range(1, len(anatomy.STRUCTURES) + 1))
    assert "background" not in anatomy.WIRE_LABELS
    assert [anatomy.NAME_OF[c] for c in anatomy.WIRE_ID] == list(anatomy.WIRE_LABELS)


def test_odd_and_even_vertebrae_are_those_of_the_training_map() -> None:
    odd = {11, 13, 15, 17, 22, 24, 26, 28, 30, 32, 42, 44, 46}
    assert {c for c in anatomy.VERTEBRAE if anatomy.STEP2_FROM_CODE[c] == 7} == odd
    assert {c for c in anatomy.VERTEBRAE if anatomy.STEP2_FROM_CODE[c] == 8} == set(anatomy.VERTEBRAE) - odd


@pytest.mark.parametrize(
    ("step", "table"), [(1, anatomy.STEP1_FROM_CODE), (2, anatomy.STEP2_FROM_CODE)], ids=["step1", "step2"]
)
def test_every_structure_has_a_training_class(step: int, table: dict[int, int]) -> None:
    assert set(table) == set(anatomy.BY_CODE)
    landmarks = {63: 2, 71: 3, 91: 4, 100: 5}
    for disc in anatomy.DISCS:
        assert table[disc] == landmarks.get(disc, 1)
    assert (table[1], table[2], table[50]) == ((9, 8, 6) if step == 1 else (11, 10, 9))


@pytest.mark.parametrize("thoracic", [11, 12, 13])
@pytest.mark.parametrize("lumbar", [4, 5, 6])
def test_columns_end_on_the_sacrum(thoracic: int, lumbar: int) -> None:
    column = anatomy.column(thoracic, lumbar)
    assert len(column.vertebrae) == len(column.discs) == 7 + thoracic + lumbar
    assert column.discs[-1] == 100
    assert column.discs[7 + thoracic - 1] == 91
    assert list(column.vertebrae) == sorted(column.vertebrae)


def test_neighbors_have_distinct_colors() -> None:
    """Readers tell L4 from L5 by color, but hashed names gave nearly the same color."""
    for codes in (anatomy.column().vertebrae, [d for d in anatomy.column().discs if d]):
        for first, second in pairwise(codes):
            a, b = anatomy.BY_CODE[first].color, anatomy.BY_CODE[second].color
            assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 100


def test_level_points_follow_the_disc_convention() -> None:
    assert anatomy.LEVEL_POINT[63] == 3
    assert anatomy.LEVEL_POINT[91] == 20
    assert anatomy.LEVEL_POINT[100] == 25
    assert (anatomy.POINT_C1_TOP, anatomy.POINT_C1_C2) == (1, 2)


def test_constants_have_the_codes_of_their_names() -> None:
    """What was written for T12 was done with T13."""
    names = {
        name: code
        for name, code in vars(anatomy).items()
        if isinstance(code, int) and code in anatomy.BY_CODE and "POINT" not in name
    }
    assert len(names) > 20
    for name, code in names.items():
        assert anatomy.NAME_OF[code].upper() == name.removeprefix("DISC_").replace("_", "-")


@pytest.mark.parametrize("step", [1, 2])
def test_classes_are_those_of_the_networks(step: int) -> None:
    """The map of a network was read as other structures."""
    regions = (anatomy.STEP1_REGIONS, anatomy.STEP2_REGIONS)[step - 1]
    (file,) = STARTER.glob(f"Dataset10{step}_*/*/dataset.json")
    labels = json.loads(file.read_text(encoding="utf-8"))["labels"]
    assert labels.pop("background") == anatomy.BACKGROUND
    assert {name: tuple(value) if isinstance(value, list) else (value,) for name, value in labels.items()} == regions
    # A class belongs to the smallest region that has it.
    named = {
        min((r for r in regions if value in regions[r]), key=lambda r: len(regions[r])): value
        for value in range(1, 12 if step == 2 else 10)
    }
    usual = {"vertebrae_C1": "C1", "vertebrae_O": "VERTEBRA_ODD", "vertebrae_E": "VERTEBRA_EVEN"}
    classes = {each.name: each.value for each in (anatomy.Step1, anatomy.Step2)[step - 1]}
    if step == 2:
        usual["vertebrae"] = "VERTEBRA"
        # Its voxels are in neither class of vertebrae.
        assert named.pop("vertebrae") == anatomy.Step2.VERTEBRA.value
        del classes["VERTEBRA"]
    assert classes == {usual.get(region, region.upper()): value for region, value in named.items()}
    back = (anatomy.CODE_FROM_STEP1, anatomy.CODE_FROM_STEP2)[step - 1]
    table = (anatomy.STEP1_FROM_CODE, anatomy.STEP2_FROM_CODE)[step - 1]
    assert {table[code]: code for code in back.values()} == back
    discs = {table[code] for code in anatomy.DISCS}
    assert discs == set(anatomy.DISC_CLASSES)
    assert {table[code]: code for code in anatomy.LANDMARK_DISCS} == anatomy.LANDMARK_CLASS


def test_structures_keep_their_colors() -> None:
    """After an update L4 had the color that L3 has in the tables of viewers that were exported before."""
    require_known("colors", {each.name: each.color for each in anatomy.STRUCTURES}, rel=0, abs=1)
