"""Tests that one renamed segment renames the other levels, but only in the map in which it was renamed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from block_spines import block_spine, classes_of, step1_answer
from totalspineseg_server.anatomy import CODE_OF, NAME_OF, SACRUM, WIRE_LABELS
from totalspineseg_server.corrections import comparison
from totalspineseg_server.corrections.comparison import Followed, compare, follow_rename
from totalspineseg_server.corrections.predictions import PredictionMaps
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.numbering.renumber import NamedMap, renumber
from totalspineseg_server.segments import VERTEBRAE_NAME, Segment, Submission, to_wire
from totalspineseg_server.trust import certainty_of

TRUTH = block_spine("T11")
GRID = Grid((24, 48, TRUTH.shape[2]), np.eye(4))


def stored(step: int) -> PredictionMaps:
    """A prediction in which L4-L5 has the name L5-L6."""
    labels = TRUTH if step == 2 else step1_answer(TRUTH)
    labels = np.where(labels == CODE_OF["L4-L5"], CODE_OF["L5-L6"], labels).astype(np.uint8)
    painted = NamedMap(Volume(classes_of(TRUTH, step), GRID.affine), labels, 1 if step == 1 else 2)
    return PredictionMaps.of("p", painted, GRID, {}, {}, ())


def sent(step: int) -> Submission:
    """The truth, as a full label or as a step-1 map."""
    labels = TRUTH if step == 2 else step1_answer(TRUTH)
    names = NAME_OF if step == 2 else {**NAME_OF, SACRUM: VERTEBRAE_NAME}
    segments = tuple(Segment(names[c], c) for c in np.unique(labels).tolist() if c)
    return Submission((labels,), GRID, segments)


def follow(submission: Submission, prediction: PredictionMaps) -> Followed | None:
    compared = compare(submission, GRID, prediction)
    return None if compared is None else follow_rename(compared)


@pytest.mark.parametrize(("predicted", "submitted"), [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_levels_follow_within_one_step_alone(predicted: int, submitted: int) -> None:
    """A full label was renumbered as if it had corrected a step-1 map that somebody had opened last."""
    followed = follow(sent(submitted), stored(predicted))
    assert (followed is not None) is (predicted == submitted)
    if followed is not None:
        assert followed.report["renamed"] == {"from": "L5-L6", "to": "L4-L5"}


def test_names_counted_after_a_rename_are_not_called_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a rename knew only certain and doubtful, so that counted names read as doubtful."""

    def counted(*arguments: Any) -> Any:
        codes, _ = renumber(*arguments) or ({}, None)
        return codes, SimpleNamespace(probability=0.9, certainty="counted")

    monkeypatch.setattr(comparison, "renumber", counted)
    followed = follow(sent(2), stored(2))
    assert followed is not None
    assert certainty_of(followed.report) == "counted"


def test_several_renamed_levels_are_taken_as_named_in_a_scene_of_3d_slicer() -> None:
    """Each published name without a level comes as an empty segment, which counted as a second segment with that
    name."""
    renamed = {"L4-L5": "L5-L6", "L3-L4": "L4-L5", "L2-L3": "L3-L4"}
    segments = tuple(Segment(renamed.get(name, name), value) for name, value in WIRE_LABELS.items())
    scene = Submission((to_wire(TRUTH),), GRID, segments)
    assert follow(scene, stored(2)) is None
    codes = map_names(scene, GRID).codes
    for before, now in renamed.items():
        assert ((codes == CODE_OF[now]) == (CODE_OF[before] == TRUTH)).all()


@pytest.mark.parametrize(("codes", "follows"), [({}, True), ({CODE_OF["L1-L2"]: CODE_OF["L2-L3"]}, False)])
def test_levels_do_not_follow_where_two_would_have_one_name(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], follows: bool
) -> None:
    """A reader's own segments, which are not structures, counted as two with the same name."""
    numbering = SimpleNamespace(probability=0.9, certainty="counted")
    monkeypatch.setattr(comparison, "renumber", lambda *_: (codes, numbering))
    submission = sent(2)
    labels = np.array(submission.layers[0])
    labels[0, 0, :4] = (200, 200, 201, 201)
    own = Segment("lesion", 200), Segment("nerve root", 201)
    followed = follow(replace(submission, layers=(labels,), segments=(*submission.segments, *own)), stored(2))
    assert followed is not None
    assert (followed.names, followed.report["probability"] is not None) == ({}, follows)


def test_names_left_as_predicted_follow_in_any_spelling() -> None:
    """If a name was spelled differently from its segment, unchecked structures were learned, and checked ones were
    not."""
    followed = follow(sent(2), stored(2))
    assert followed is not None
    shifted = replace(followed, names={"L1-L2": "L2-L3"})
    assert shifted.now("L1-L2, disc_L1_L2,nose") == ["L2-L3", "L2-L3", "nose"]
    assert shifted.now(["l1-l2", 3]) == ["L2-L3", 3]
