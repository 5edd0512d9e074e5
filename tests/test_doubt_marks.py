"""Tests of the mark on doubtful names: where a reply has it, and what a submission says that keeps or lacks it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from block_spines import block_spine, classes_of
from test_corrections_store import Desk
from totalspineseg_server.anatomy import CODE_OF, NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.comparison import (
    UNCONFIRMED,
    beside_prediction,
    compare,
    follow_rename,
    with_untouched,
)
from totalspineseg_server.corrections.predictions import PredictionMaps
from totalspineseg_server.corrections.submission import Mapped, map_names
from totalspineseg_server.errors import LabelError, SettingError
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.infers.listed import as_listed, names_with_marks
from totalspineseg_server.infers.settings import Rename, client_config, doubtful_names_of, read_pins, read_settings
from totalspineseg_server.numbering.evidence import Pin
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.segments import (
    Segment,
    Submission,
    code_of_name,
    renamed_level,
    similar_name,
    to_wire,
    with_mark,
    without_mark,
)
from totalspineseg_server.training.material import site_material
from totalspineseg_server.worklist.acts import Acts, Pinned, reader
from training_site import make_site

TRUTH = block_spine("T11")
GRID = Grid((24, 48, TRUTH.shape[2]), np.eye(4))
STORED = PredictionMaps.of("p", NamedMap(Volume(classes_of(TRUTH, 2), GRID.affine), TRUTH, 2), GRID, {}, {}, ())
L1, L3, L4, L5, T12 = (CODE_OF[name] for name in ("L1", "L3", "L4", "L5", "T12"))


def sent(**names: str) -> Submission:
    """The prediction with other names for some of its segments."""
    codes = [int(code) for code in np.unique(TRUTH) if code]
    return Submission((TRUTH,), GRID, tuple(Segment(names.get(NAME_OF[code], NAME_OF[code]), code) for code in codes))


def left_of(submission: Submission, accepted: object = None) -> Mapped:
    marked = (L3, L4)
    return with_untouched(map_names(submission, GRID), compare(submission, GRID, STORED), accepted, marked=marked)


# --- as it is written and read


@pytest.mark.parametrize("name", ["L4 ?", "L4?", " l4 ? ", "vertebrae_L4 ?", "L4 ??"])
def test_a_marked_name_is_the_level_s(name: str) -> None:
    """A whole submission would have been parked for the mark that the server itself had set."""
    assert code_of_name(name) == L4


@pytest.mark.parametrize("name", ["?", " ? ", "L7 ?", "tumor ?"])
def test_a_mark_makes_no_name_known(name: str) -> None:
    assert (code_of_name(name), similar_name(name)) == (None, None)


def test_removing_the_mark_undoes_marking() -> None:
    assert without_mark(with_mark("L4-L5")) == without_mark("L4-L5") == "L4-L5"


def test_a_marked_and_a_plain_segment_of_one_level_are_two_of_one_structure() -> None:
    with pytest.raises(LabelError, match=r"'L3 \?'.*same structure|same structure.*'L3 \?'"):
        map_names(sent(L4="L3 ?"), GRID)


# --- in a reply


@pytest.mark.parametrize(
    ("marked", "earlier", "listed"),
    [
        ([], [], ["canal", "L5", "L4"]),
        ([L4], [], ["canal", "L5", "L4 ?"]),
        ([L4], [[L4]], ["canal", "L5", "L4 ?"]),
        ([], [[L4]], ["canal", "L5", "L4", "L4 ?"]),
        ([L4], [[], [L5]], ["canal", "L5", "L4 ?", "L5 ?", "L4"]),
    ],
    ids=["certain", "doubtful", "doubtful again", "settled", "doubtful now"],
)
def test_only_doubtful_levels_are_marked_and_nothing_of_an_earlier_reply_stays(
    marked: list[int], earlier: list[list[int]], listed: list[str]
) -> None:
    """Of "L4 ?", which became "L4", the voxels stayed in 3D Slicer's scene under both names."""
    names = names_with_marks(["canal", "L5", "L4"], marked, earlier)
    assert sorted(names) == sorted(listed)
    assert names[:3] == tuple(listed[:3])
    codes = np.array([[[CODE_OF["canal"], L5, L4]]], dtype=np.uint8)
    assert as_listed(to_wire(codes), WIRE_LABELS, names).ravel().tolist() == [1, 2, 3]


def test_the_default_is_the_server_s_and_a_request_may_differ() -> None:
    assert [read_settings(request).marks_doubt for request in ({}, {"doubtful_names": "plain"})] == [True, False]
    plain = doubtful_names_of("plain")
    assert client_config(plain)["doubtful_names"] == ["plain", "marked"]
    assert [read_settings(r, plain).marks_doubt for r in ({}, {"doubtful_names": "marked"})] == [False, True]
    with pytest.raises(SettingError, match="doubtful_names"):
        doubtful_names_of("never")


# --- in a submission


def test_a_mark_that_stays_says_that_nobody_confirmed_the_name() -> None:
    mapped = left_of(sent(L4="L4 ?", L5="L5?"))
    assert mapped.unconfirmed == (L4, L5)
    [finding] = beside_prediction(None, mapped, (), unchanged=False)
    assert finding["kind"] == UNCONFIRMED
    assert "'?'" in finding["message"]
    assert "L4 ?, L5 ?" in finding["message"]


def test_a_name_without_its_mark_is_the_readers_and_its_outline_the_models() -> None:
    """What a reader confirmed would have counted as little as what nobody looked at."""
    mapped = left_of(sent(L4="L4 ?"))
    assert mapped.unconfirmed == (L4,)
    assert mapped.renamed == (L3,)
    assert L3 not in mapped.untouched
    assert {L4, L5} <= set(mapped.untouched)


@pytest.mark.parametrize(
    ("accepted", "unconfirmed"), [("all", ()), (["L4"], (L5,)), ("L4, L5", ()), (None, (L4, L5))], ids=str
)
def test_a_reader_may_accept_marked_names_without_removing_each_mark(
    accepted: object, unconfirmed: tuple[int, ...]
) -> None:
    assert left_of(sent(L4="L4 ?", L5="L5 ?"), accepted).unconfirmed == unconfirmed
    assert with_untouched(map_names(sent(L4="L4 ?", L5="L5 ?"), GRID), None, accepted).unconfirmed == unconfirmed


@pytest.mark.parametrize("certainty", ["certain", "doubtful"])
def test_levels_that_follow_a_rename_lose_their_marks_where_it_settles_the_names(
    certainty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = sent(L4="L5", L3="L3 ?", L5="L5 ?")
    compared = compare(submission, GRID, STORED)
    assert compared is not None
    numbering = SimpleNamespace(certainty=certainty, probability=0.5)
    monkeypatch.setattr(
        "totalspineseg_server.corrections.comparison.renumber",
        lambda *_: ({L3: L4, L4: L5, L5: CODE_OF["L6"]}, numbering),
    )
    followed = follow_rename(compared)
    assert followed is not None
    mark = "" if certainty == "certain" else " ?"
    assert {f"L4{mark}", "L5", f"L6{mark}"} <= {segment.name for segment in followed.submission.segments}


def test_an_unconfirmed_name_is_recorded_as_such(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    correction = desk.submit({"label_info": [{"name": "L4 ?"}, {"name": "L5"}]})
    assert desk.store.of_image("img")[-1].unconfirmed == correction.unconfirmed == (L4,)
    assert [finding["kind"] for finding in correction.findings] == [UNCONFIRMED, "gap"]
    ((_, _, _, info),) = desk.published
    assert info[UNCONFIRMED] == ["L4"], "other series do not take the name for certain"


def test_an_unconfirmed_name_is_used_neither_for_training_nor_for_comparing(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    file = next(tmp_path.glob("studies/.totalspineseg/corrections/*/*/record.json"))
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(record | {"unconfirmed": [L4]}), encoding="utf-8")
    (source,) = site_material(site).training
    assert source.read().unreviewed == {L4}
    assert source.provenance["unconfirmed"] == ["L4"]


def test_pinned_names_that_stay_doubtful_keep_their_mark_on_the_lab_s_page() -> None:
    """A pin submitted every other name as confirmed, although the page had just called some of them doubtful."""
    label_info: list[dict[str, Any]] = []
    inbox = SimpleNamespace(submit=lambda receipt, _: label_info.extend(receipt.params["label_info"]))
    view: Any = SimpleNamespace(label=SimpleNamespace(maps=STORED), grid=GRID)
    row: Any = SimpleNamespace(id="img")
    levels = [{"code": code, "probability": chance} for code, chance in ((L3, 0.999), (L4, 0.6), (L5, 0.6))]
    pinned = Pinned({"T12": "L1"}, {"certainty": "doubtful", "levels": levels}, "")
    acts: Any = Acts
    acts(inbox, None, None).submit_pinned(row, view, {"T12": "L1", "L5": "L5"}, pinned, reader("ada", "ada"))
    sent_names = {info["name"] for info in label_info}
    assert {"L3", "L4 ?", "L5"} <= sent_names
    assert [name for name in sent_names if name != without_mark(name)] == ["L4 ?"]


# --- a level named by what it was called


@pytest.mark.parametrize("text", ["L1 -> T12", "l1->Th12", "L1 \u2192 T12 ", "L1 ? -> T12"], ids=ascii)
def test_a_pin_may_name_a_level_by_its_earlier_name(text: str) -> None:
    assert read_pins(f"{text}; L5 1 2 3") == ((Pin(L5, (1, 2, 3)),), (Rename(L1, T12),))


@pytest.mark.parametrize("text", ["L1 -> T12 -> T11", "L1 ->", "-> L1", "L1 -> L4-L5", "canal -> cord", "L1 -> 1 2 3"])
def test_an_arrow_between_other_things_is_refused(text: str) -> None:
    assert renamed_level(text) is None
    with pytest.raises(SettingError, match="L1 -> T12"):
        read_pins(text)
