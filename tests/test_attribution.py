"""Tests that a submission is compared with the prediction of its reader, whoever else predicted in the meantime."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from block_spines import block_spine, classes_of
from test_corrections_store import Scene
from totalspineseg_server.anatomy import CODE_OF, NAME_OF
from totalspineseg_server.corrections import ids
from totalspineseg_server.corrections.interpretation import Interpreter, Received
from totalspineseg_server.corrections.predictions import (
    MAX_DAYS,
    MapStore,
    PredictionMaps,
    PredictionRecord,
    PredictionStore,
)
from totalspineseg_server.corrections.receipts import Receipt
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.segments import Segment, Submission

TRUTH = block_spine("T11")
GRID = Grid((24, 48, TRUTH.shape[2]), np.eye(4))
CONTENT = "ab" * 32
LEVELS = ("L1", "L2", "L3", "L4")


class Predictions:
    """Predictions for the image "scan", or in a session, with their maps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store, self.maps = PredictionStore(root), MapStore(root)
        self.interpreter = Interpreter(self.store, self.maps, Scene(lambda _: None, lambda *_: None))

    def add(
        self, key: str, labels: LabelArray, *, client: str = "", image: str = "scan", content: str = CONTENT
    ) -> None:
        self.store.keep(PredictionRecord(key, image, "totalspineseg", {}, {}, {}, None, client, content))
        painted = NamedMap(Volume(classes_of(TRUTH, 2), GRID.affine), labels, 2)
        self.maps.keep(content, PredictionMaps.of(key, painted, GRID, {}, {}, (), image))

    def review(self, key: str, of: str, *, client: str = "") -> None:
        """Record that somebody asked for a review of a prediction; it has no maps of its own."""
        model, nothing = "totalspineseg_review", dict[str, str]()
        record = PredictionRecord(key, "scan", model, nothing, {}, {}, None, client, CONTENT, reviewed=of)
        self.store.keep(record)

    def received(self, client: str = "user-xyz", stated: str | None = None) -> Received:
        receipt = Receipt("9", "scan", "final", "", client, "", "raw.bin", "", "", {"prediction": stated})
        return Received(receipt, Path(), "scan", CONTENT)

    def corrected(self, submission: Submission, *, client: str = "user-xyz", stated: str | None = None) -> str | None:
        found = self.interpreter.corrected(self.received(client, stated), submission, GRID)
        return None if found is None else found.prediction.id


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    return Predictions(tmp_path)


def renamed(**names: str) -> Submission:
    """The truth with other names for some levels."""
    segments = (Segment(names.get(NAME_OF[c], NAME_OF[c]), c) for c in np.unique(TRUTH).tolist() if c)
    return Submission((TRUTH,), GRID, tuple(segments))


def shifted() -> LabelArray:
    """The truth with the lumbar levels named one too low."""
    labels = TRUTH.copy()
    for name, lower in zip(LEVELS, (*LEVELS[1:], "L5"), strict=True):
        labels[CODE_OF[name] == TRUTH] = CODE_OF[lower]
    return labels


def test_after_a_review_a_label_corrects_the_prediction_under_review(predictions: Predictions) -> None:
    """The label was filed with the review, which marks no name as doubtful: names that its reader had confirmed by
    taking the mark away counted as left as predicted, and were not used to compare models."""
    predictions.add("1", TRUTH, client="ada")
    predictions.review("2", "1", client="ada")
    for stated in (None, "2"):
        likely = predictions.interpreter.likely(predictions.received("ada", stated))
        assert (likely and likely.id) == "1"
        assert predictions.corrected(renamed(), client="ada", stated=stated) == "1"
    predictions.review("3", "gone", client="ada")
    gone = predictions.interpreter.likely(predictions.received("ada", "3"))
    assert (gone and gone.id) == "3", "the only record of it that is left"


def test_of_equal_predictions_this_readers_then_the_newest(predictions: Predictions) -> None:
    predictions.add("1", TRUTH, client="ada")
    predictions.add("2", TRUTH, client="bob")
    predictions.add("3", shifted(), client="ada")
    assert predictions.corrected(renamed(), client="ada") == "1"
    assert predictions.corrected(renamed(), client="nobody") == "2"
    assert predictions.corrected(renamed(), client="nobody", stated="1") == "1"


def test_a_prediction_of_other_weights_is_not_mistaken_for_an_unchanged_one(predictions: Predictions) -> None:
    """If borders differed so much that hardly a segment was recognized, the label counted as one without a renamed
    level."""
    elsewhere = np.roll(TRUTH, 8, axis=1)
    predictions.add("1", TRUTH)
    predictions.add("2", elsewhere)
    assert predictions.corrected(renamed(L2="L3")) == "1"


def test_a_session_counts_for_what_it_held(predictions: Predictions) -> None:
    """A reader predicted in a session and uploaded the volume later: the prediction's record was filed under no
    image."""
    predictions.add("1", TRUTH, image="")
    predictions.add("2", TRUTH, image="", content="cd" * 32)
    assert predictions.corrected(renamed(L2="L3")) == "1"
    assert predictions.corrected(renamed(), stated="1") == "1"
    assert predictions.corrected(renamed(), stated="2") == "1"


def test_a_prediction_counts_for_what_it_was_made_for_under_any_name(predictions: Predictions) -> None:
    """After a file was renamed, a rename in its label was not followed, and a label that stated its prediction was
    refused."""
    predictions.add("1", TRUTH, image="before")
    predictions.add("2", TRUTH, image="other", content="cd" * 32)
    interpreter = predictions.interpreter
    assert predictions.corrected(renamed(L2="L3")) == "1"
    assert predictions.corrected(renamed(), stated="1") == "1"
    likely = interpreter.likely(predictions.received())
    assert likely is not None
    assert likely.id == "1"
    interpreter.require_of_image(predictions.received(stated="1"))
    with pytest.raises(LabelError, match="a prediction for 'other'"):
        interpreter.require_of_image(predictions.received(stated="2"))


def test_a_damaged_record_is_passed_over(predictions: Predictions, caplog: pytest.LogCaptureFixture) -> None:
    for key in "12":
        predictions.add(key, TRUTH)
    (record,) = (predictions.root / "predictions").glob("*/2/record.json")
    record.write_text("{", encoding="utf-8")
    assert predictions.corrected(renamed(), stated="2") == "1"
    assert "is skipped" in caplog.text


def test_a_prediction_in_a_session_costs_no_look_through_all_others(
    predictions: Predictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 20000 predictions of images in sessions, each request first listed all of them, for 0.6 s."""
    for number in range(5):
        predictions.add(f"{number}", TRUTH, image="", content=f"{number}" * 64)
    listed, entries = [], ids.entries
    monkeypatch.setattr(ids, "entries", lambda folder: listed.append(folder.name) or entries(folder))
    assert predictions.store.ids("", "3" * 64) == ("3",)
    assert predictions.store.find("", "3", "3" * 64) is not None
    assert [record.id for record in predictions.store.newest_first("", "4" * 64)] == ["4"]
    assert set(listed) == {f"unlisted-{'3' * 64}", f"unlisted-{'4' * 64}"}


def test_a_session_of_an_earlier_version_still_counts(predictions: Predictions) -> None:
    """Its record is in one folder with those of all other images that were not among the studies."""
    predictions.add("1", TRUTH, image="")
    (predictions.root / "predictions" / f"unlisted-{CONTENT}").rename(predictions.root / "predictions" / "unlisted")
    assert predictions.corrected(renamed()) == "1"
    assert predictions.corrected(renamed(), stated="1") == "1"


@pytest.mark.parametrize("stated", ["..", "../image-scan", "/", "a" * 300, "\0", "a/b"])
def test_an_invalid_id_names_no_prediction(predictions: Predictions, stated: str) -> None:
    predictions.add("1", TRUTH)
    assert predictions.store.find("scan", stated) is None
    assert predictions.store.anywhere(stated) is None


def test_maps_that_nobody_asked_for_in_a_year_go(predictions: Predictions) -> None:
    predictions.add("1", TRUTH)
    long_ago = time.time() - (MAX_DAYS + 1) * 24 * 3600
    os.utime(predictions.root / "maps" / CONTENT, (long_ago, long_ago))
    predictions.add("2", TRUTH, content="cd" * 32)
    assert predictions.maps.ids(CONTENT) == ()
    assert predictions.store.ids("scan") == ("1", "2")
