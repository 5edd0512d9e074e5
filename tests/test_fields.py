"""Tests that a record from another version of this software, or a damaged one, harms nothing else."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from totalspineseg_server.corrections.predictions import MapStore, PredictionRecord, PredictionStore
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import from_fields
from totalspineseg_server.infers.settings import pins_from_json
from totalspineseg_server.registry.judgments import Judgment, judgments, keep_judgment
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.runs import PROGRESS_FILE, RUN_FILE, state_of

RECORD = PredictionRecord("p1", "img", "totalspineseg", {"step1": "a"}, {"total": 1.0}, {}, None, "ada", "ab")
CONTENT = asdict(RECORD)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({name: value for name, value in CONTENT.items() if name != "model"}, "model"),
        ({**CONTENT, "versions": None}, "versions"),
        ({**CONTENT, "client": 7}, "client"),
        ({**CONTENT, "numbering": []}, "numbering"),
        ([CONTENT], "no fields"),
        (None, "no fields"),
    ],
    ids=["one less", "null", "a number", "a list", "in a list", "nothing"],
)
def test_what_a_record_lacks_is_named(content: object, named: str) -> None:
    with pytest.raises(StorageError, match=named):
        from_fields(PredictionRecord, content, "of p1")


def test_an_extra_field_is_ignored_and_one_with_a_default_may_be_missing() -> None:
    less = {name: value for name, value in CONTENT.items() if name != "image_sha256"}
    read = from_fields(PredictionRecord, {**less, "seconds": {"total": 1}, "new": {"of": "a later version"}}, "of p1")
    assert (read.id, read.image_sha256, read.created) == ("p1", "", RECORD.created)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id": "p2"}', "[" * 100_000], ids=lambda text: text[:9])
def test_a_prediction_that_cannot_be_read_hides_no_other(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After the software was rolled back, every submission and review of an image failed forever."""
    store = PredictionStore(tmp_path)
    for number in "123":
        store.keep(PredictionRecord(**CONTENT | {"id": number}))
    (record,) = tmp_path.rglob("2/record.json")
    record.write_text(text, encoding="utf-8")
    assert [found.id for found in store.of_image("img")] == ["1", "3"]
    assert (store.find("img", "2"), store.anywhere("2")) == (None, None)
    assert [level for _, level, text in caplog.record_tuples if "is skipped" in text] == [logging.WARNING] * 3
    record.write_text(json.dumps(CONTENT | {"id": "2", "of_a_later_version": 1}), encoding="utf-8")
    assert [found.id for found in store.of_image("img")] == ["1", "2", "3"]


@pytest.mark.parametrize("content", [{"affine": 1}, {"prediction": "p", "affine": [[1]], "iso_shape": None}, [], "x"])
def test_maps_whose_record_is_of_another_kind_are_made_again(tmp_path: Path, content: Any) -> None:
    entry = tmp_path / "maps" / "ab" / "p"
    entry.mkdir(parents=True)
    (entry / "record.json").write_text(json.dumps(content), encoding="utf-8")
    assert MapStore(tmp_path).of_prediction("ab", "p") is None


def test_a_run_of_a_later_version_has_its_state(tmp_path: Path) -> None:
    run = tmp_path / "20260101T000000Z-abcdef"
    run.mkdir()
    (run / RUN_FILE).write_text("{}", encoding="utf-8")
    (run / PROGRESS_FILE).write_text(
        json.dumps({"run": run.name, "status": "published", "of_a_later_version": 1}), encoding="utf-8"
    )
    state = state_of(tmp_path)
    assert state is not None
    assert state.status == "published"
    (run / PROGRESS_FILE).write_text(json.dumps({"run": run.name, "status": 1}), encoding="utf-8")
    state = state_of(tmp_path)
    assert state is not None
    assert state.status == "interrupted"


def test_a_judgment_of_a_later_version_is_read_and_stays_whole(tmp_path: Path) -> None:
    store, file = ModelStore(tmp_path), tmp_path / "judgments" / "site-1.json"
    file.parent.mkdir()
    later = {**asdict(Judgment("2026", "", True, "yes", {})), "of_a_later_version": 1}
    file.write_text(json.dumps([later]), encoding="utf-8")
    keep_judgment(store, "site-1", Judgment("2027", "", False, "no", {}))
    assert [one.verdict for one in judgments(store, "site-1")] == ["yes", "no"]
    assert json.loads(file.read_text(encoding="utf-8"))[0] == later


@pytest.mark.parametrize("pins", [None, 3, ["L5"], [{"code": 45}], [{"code": 45, "point_mm": [1, 2]}]], ids=repr)
def test_pinned_levels_of_another_version_do_not_prevent_a_review(pins: Any) -> None:
    assert pins_from_json(pins) == ()
    assert len(pins_from_json([{"code": 45, "point_mm": [1, 2, 3]}])) == 1
