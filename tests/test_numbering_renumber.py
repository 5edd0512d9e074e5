"""Tests that the other levels follow when a reader renames one, and the voxels stay."""

import numpy as np
import pytest

import columns
from totalspineseg_server.anatomy import C1, CANAL, CODE_OF, NAME_OF, SACRUM
from totalspineseg_server.corrections.comparison import Recognized, recognize
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.numbering.naming import name_map
from totalspineseg_server.numbering.renumber import NamedMap, renumber

SPACING = 2.0
SELF = {code: code for code in NAME_OF}


def painted(fov: str, step: int = 2) -> NamedMap:
    case = columns.classes(columns.built(1, fov=fov, spacing=SPACING)[0], step)
    raw = Volume(case.raw, case.affine)
    return NamedMap(raw, name_map(raw, step)[0], 1 if step == 1 else 2)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lumbar() -> NamedMap:
    return painted("lumbar")


@pytest.fixture(scope="module")
def thoracic() -> NamedMap:
    return painted("midthoracic")


def moved(map_: NamedMap, old: str, new: str) -> dict[str, str]:
    found = renumber(map_, {CODE_OF[old]: CODE_OF[new]})
    assert found is not None
    return {NAME_OF[a]: NAME_OF[b] for a, b in found[0].items() if a != b}


@pytest.mark.parametrize(("old", "shift"), [("T5", 1), ("T5", 2), ("T4-T5", 1)])
def test_the_whole_column_follows_one_renamed_level(thoracic: NamedMap, old: str, shift: int) -> None:
    code = CODE_OF[old]
    found = renumber(thoracic, {code: code + shift})
    assert found is not None
    levels = [c for c in np.unique(thoracic.labels).tolist() if c > CANAL]
    assert dict(found[0]) == {c: c + shift for c in levels}


def test_a_lumbar_column_with_l5_renamed_l6_keeps_its_sacrum(lumbar: NamedMap) -> None:
    names = moved(lumbar, "L5", "L6")
    assert {old: names[old] for old in ("T12", "L1", "L5", "T12-L1", "L4-L5")} == {
        "T12": "L1",
        "L1": "L2",
        "L5": "L6",
        "T12-L1": "L1-L2",
        "L4-L5": "L5-L6",
    }
    assert not {"sacrum", "L5-S"} & set(names)


def test_an_extra_thoracic_vertebra_moves_what_lies_below_it(lumbar: NamedMap) -> None:
    names = moved(lumbar, "L1", "T13")
    assert (names["L1"], names["L2"], names["T12-L1"]) == ("T13", "L1", "T12-T13")
    assert not {"T11", "T12", "L5-S"} & set(names)


def test_a_pin_that_agrees_changes_nothing(lumbar: NamedMap) -> None:
    assert moved(lumbar, "L3", "L3") == {}


def test_a_step_1_map_is_renumbered_by_its_discs() -> None:
    discs = painted("midthoracic", 1)
    names = moved(discs, "T4-T5", "T5-T6")
    assert names["T4-T5"] == "T5-T6"
    assert all("-" in name for name in names)


def test_the_atlas_never_becomes_an_axis() -> None:
    """A renamed thoracic level shifted the whole neck, and C1 became C2."""
    neck = painted("cervicothoracic")
    names = moved(neck, "T4", "T5")
    assert names["T4"] == "T5"
    assert NAME_OF[C1] not in names


def test_atlas_and_axis_never_change_places() -> None:
    """If only the arch of an atlas was drawn, behind the canal, the answer was "C1 is now C2, C2 is now C1"."""
    case = columns.classes(columns.built(1, fov="cervicothoracic", spacing=SPACING)[0], 2)
    x, y, _ = np.argwhere(case.truth == C1).T
    atlas = case.truth == C1
    atlas[: int(np.quantile(x, 0.25))] = atlas[int(np.quantile(x, 0.75)) :] = False
    atlas[:, int(np.quantile(y, 0.4)) :] = False
    case.raw[(case.truth == C1) & ~atlas] = 0
    raw = Volume(case.raw, case.affine)
    neck = NamedMap(raw, name_map(raw, 2)[0], 2)
    assert (neck.labels[atlas] == C1).mean() > 0.9
    names = moved(neck, "T3", "T4")
    assert {old: names.get(old, old) for old in ("C1", "C2", "T3")} == {"C1": "C1", "C2": "C3", "T3": "T4"}


def test_a_level_that_cannot_be_is_refused(lumbar: NamedMap) -> None:
    """The sacrum lies directly below, so there is no room for a name from far above."""
    before = lumbar.labels.copy()
    assert renumber(lumbar, {CODE_OF["L5"]: CODE_OF["L5"], CODE_OF["L4"]: CODE_OF["L5"]}) is None
    assert renumber(lumbar, {CODE_OF["C5"]: CODE_OF["C6"]}) is None
    np.testing.assert_array_equal(lumbar.labels, before)


def changed(old: LabelArray, new: LabelArray, code_of: dict[int, int]) -> list[Recognized]:
    return [segment for segment in recognize(old, new, code_of) if segment.renamed]


def test_a_renamed_segment_is_found(thoracic: NamedMap) -> None:
    """The renamed segment has the name of its neighbor, so two segments have the same name."""
    old = thoracic.labels
    (renamed,) = changed(old, old, {**SELF, CODE_OF["T5"]: CODE_OF["T6"]})
    assert (renamed.old, renamed.new, renamed.value) == (CODE_OF["T5"], CODE_OF["T6"], CODE_OF["T5"])
    assert renamed.voxels == int((old == CODE_OF["T5"]).sum())


def test_redrawn_borders_are_not_new_names(thoracic: NamedMap) -> None:
    new = thoracic.labels.copy()
    xyz = np.argwhere(new == CODE_OF["T5"])
    new[tuple(xyz[: len(xyz) // 5].T)] = CODE_OF["T6"]
    assert changed(thoracic.labels, new, SELF) == []


def test_a_disc_is_never_a_renamed_vertebra_nor_the_canal_a_level(lumbar: NamedMap) -> None:
    new = lumbar.labels
    assert changed(new, new, {**SELF, CODE_OF["L3"]: CODE_OF["L3-L4"]}) == []
    assert changed(new, new, {**SELF, CANAL: SACRUM}) == []
