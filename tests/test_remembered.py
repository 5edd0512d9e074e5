"""Tests of weights that were never trained on synthetic spines: what is replayed, and what they are compared on."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from block_spines import block_spine
from phantom import CodeReader, image_of, lumbar_codes
from test_gate import many, scores
from tiny_models import write_model_folder
from totalspineseg_server.agreement import CaseScore
from totalspineseg_server.anatomy import DISCS
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps, PredictionRecord, PredictionStore
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet.cases import Origin, ScanSource
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.registry.judgments import HANDLED_FILE, recorded
from totalspineseg_server.training import judged_version, judging, remembered
from totalspineseg_server.training.compare import OWN_ANSWER_MARGINS, SubjectScores
from totalspineseg_server.training.judged_version import judge_version
from totalspineseg_server.training.remembered import as_in_truth, handled_share, own_answers, replay_of
from totalspineseg_server.training.scoring import Model
from totalspineseg_server.training.site import Site
from totalspineseg_server.training.verdict import HOLDOUT, OWN_ANSWERS, REFERENCE, judge
from training_site import SPACING_MM, correct, make_site, tiny_reference, tiny_replay

pytestmark = pytest.mark.slow

FOREIGN = Model(CodeReader(1), CodeReader(2))
"""Handles what is drawn as bright as its code, and no synthetic spine."""
WHOLE, LUMBAR, PART = block_spine(), lumbar_codes(), block_spine("T11")
"""Named for certain, counted up from the sacrum, and doubtful."""


def scan(site: Site, root: Path, name: str, codes: LabelArray = WHOLE, *, certainty: str = "certain") -> str:
    """Add an image that the server has predicted; return its hash."""
    path, grid = root / "studies" / f"{name}.nii.gz", Grid(codes.shape, np.eye(4))
    # No two images are the same.
    number = len(list(path.parent.iterdir()))
    write_volume(path, image_of(codes) + np.float32(number / 100), grid)
    numbering = {"certainty": certainty}
    record = PredictionRecord(f"p-{name}", name, "totalspineseg", {"step2": "starter-1"}, {}, {}, numbering, "client")
    PredictionStore(site.history).keep(record)
    painted = NamedMap(Volume(codes, np.eye(4)), codes, 2)
    stored = PredictionMaps.of(record.id, painted, grid, record.versions, {}, (), name)
    MapStore(site.history).keep(sha256_of(path), stored)
    return sha256_of(path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Four people who are held out and three to train on, all named without doubt, and others with doubtful names."""
    made = make_site(tmp_path, scans=0)
    for name in ("hold-1", "hold-2", "hold-3", "hold-4", "train-1", "train-2"):
        scan(made, tmp_path, name)
    scan(made, tmp_path, "train-0", LUMBAR, certainty="counted")
    scan(made, tmp_path, "train-3", LUMBAR, certainty="doubtful")
    scan(made, tmp_path, "train-4", PART)
    monkeypatch.setattr(remembered, "hash_holds_out", lambda subject: subject.startswith("hold"))
    monkeypatch.setattr(remembered, "replay_sources", spines)
    return made


def spines(count: int) -> tuple[ScanSource, ...]:
    """Small synthetic scans instead of the large ones of the replay."""
    return tuple(replace(tiny_replay()[0], name=f"synthetic-{number}") for number in range(count))


def names(answers: Iterable[Any]) -> list[str]:
    return sorted(answer.name.split()[0] for answer in answers)


def answering(monkeypatch: pytest.MonkeyPatch, right: Callable[[int], bool]) -> list[str]:
    """Let weights draw a synthetic spine correctly, or not at all; return the scans that they predicted."""
    asked: list[str] = []
    truth = tiny_replay()[0].read().codes.data

    def predict(image: Volume, model: Model) -> tuple[LabelArray, None]:
        asked.append(model.step1.version)
        return (truth if right(len(asked)) else np.zeros_like(truth)), None

    monkeypatch.setattr(remembered, "predict_named", predict)
    return asked


def test_weights_that_handle_synthetic_spines_replay_these_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, lambda _: True)
    assert [source.origin for source in replay_of(site, FOREIGN, 3)] == [Origin.UNCORRECTED] * 3
    assert len(asked) == remembered.TRIED
    replay_of(site, FOREIGN, 3)
    assert len(asked) == remembered.TRIED, "they are tried once"
    (known,) = recorded(site.models)
    assert known == "reader-1+reader-2"
    assert replay_of(site, FOREIGN, 0) == ()


def test_what_weights_handle_in_part_is_replayed_in_part(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda number: number % 2 == 0)
    assert handled_share(site.models, FOREIGN) == 0.5


def test_a_damaged_record_of_what_was_measured_is_made_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.models.model_dir / HANDLED_FILE).write_text("{", encoding="utf-8")
    answering(monkeypatch, lambda _: True)
    assert handled_share(site.models, FOREIGN) == 1.0
    assert json.loads((site.models.model_dir / HANDLED_FILE).read_text(encoding="utf-8"))


def test_foreign_weights_are_held_to_their_own_answers(site: Site) -> None:
    """Weights that were trained on real scans only were trained on synthetic spines, on which they are weak."""
    replay = replay_of(site, FOREIGN, 4)
    assert names(replay) == ["train-0", "train-1", "train-2"]
    for source in replay:
        assert source.origin is Origin.UNCORRECTED, "a few of them took half of all replay from the spines"
        learned = source.read()
        assert (learned.codes.data == (LUMBAR if "train-0" in source.name else WHOLE)).mean() > 0.99
        assert learned.left.untouched == frozenset()
        assert source.provenance["image_sha256"]


def test_no_scan_is_its_own_answer_once_it_is_corrected_replaced_or_learned_from(site: Site, tmp_path: Path) -> None:
    correct(site, tmp_path, "hold-1", 1)
    write_volume(tmp_path / "studies" / "hold-2.nii.gz", image_of(WHOLE) + 3, Grid(WHOLE.shape, np.eye(4)))
    seen = sha256_of(tmp_path / "studies" / "hold-3.nii.gz")
    (tmp_path / "studies" / "train-1.nii.gz").unlink()
    assert names(own_answers(site, FOREIGN, 9, judges=True, seen={seen})) == ["hold-4"]
    assert names(own_answers(site, FOREIGN, 9, judges=False)) == ["train-0", "train-2"]


def test_no_more_scans_are_asked_about_than_are_worth_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that name none of a thousand scans with certainty would have predicted all of them."""
    assert len(names(own_answers(site, FOREIGN, 3, judges=True))) == 3
    asked: list[Any] = []
    monkeypatch.setattr(remembered, "predict_named", lambda image, _: (asked.append(image) or WHOLE, "doubtful"))
    assert names(own_answers(site, FOREIGN, 1, judges=True)) == []
    assert len(asked) == 2


def test_a_subject_for_training_gives_no_own_answers_to_the_gate(site: Site) -> None:
    """The hold-out list counts more than the rule, which is for people who are not in it."""
    content = {"salt": "totalspineseg hold-out 1", "role": {"hold-1": "train", "train-1": "hold-out"}}
    site.holdout_file.write_text(json.dumps(content), encoding="utf-8")
    assert names(own_answers(site, FOREIGN, 9, judges=True)) == ["hold-2", "hold-3", "hold-4", "train-1"]
    assert names(own_answers(site, FOREIGN, 9, judges=False)) == ["hold-1", "train-0", "train-2"]


# --- the gate


class Wrong(CodeReader):
    """Finds only a third of the discs."""

    def predict(self, channels: Any, *, soft: object = ()) -> Prediction:
        found = super().predict(channels, soft=soft)
        codes = np.rint(channels[0] / 10).astype(np.uint8)
        lost = np.isin(codes, [code for k, code in enumerate(DISCS) if k % 3])
        return Prediction(np.where(lost, 0, found.labels).astype(np.uint8), found.soft)


class Nothing(CodeReader):
    """Finds nothing anywhere."""

    def predict(self, channels: Any, *, soft: object = ()) -> Prediction:
        found = super().predict(channels, soft=soft)
        return Prediction(np.zeros_like(found.labels), {name: 0 * value for name, value in found.soft.items()})


@pytest.fixture
def gate(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[CodeReader], bool], Any]:
    """``gate(kind, with_site)`` judges a version of such networks against the foreign weights in use."""
    with site.models.publish("theirs") as staging:
        for step in (1, 2):
            write_model_folder(staging, step, spacing=SPACING_MM, seed=3)
    monkeypatch.setattr(judged_version, "reference_cases", lambda _: tiny_reference())

    def judged(kind: type[CodeReader], with_site: bool) -> Any:
        def network(folder: ModelFolder, **_: Any) -> CodeReader:
            return (CodeReader if folder.name == "starter" else kind)(folder.step)

        monkeypatch.setattr(judging, "WarmPredictor", network)
        return judge_version(site.models, "theirs", site if with_site else None)

    return judged


def test_foreign_weights_are_judged_by_what_they_can_do(gate: Callable[[type[CodeReader], bool], Any]) -> None:
    """Weights that draw nothing passed, because those in use draw nothing on synthetic spines either."""
    same = gate(CodeReader, True)
    assert same.passed, same.verdict
    assert same.report["judged_by"] == {REFERENCE: 0, HOLDOUT: 0, OWN_ANSWERS: 3}
    assert "passed on the own answers alone" in same.report["reason"]
    assert "3 synthetic spines were not counted" in same.report["reason"]
    assert not gate(Nothing, True).passed
    worse = gate(Wrong, True)
    assert not worse.passed
    assert "own answers" in worse.verdict


def test_without_any_comparison_nothing_is_put_into_use(gate: Callable[[type[CodeReader], bool], Any]) -> None:
    judgment = gate(CodeReader, False)
    assert not judgment.passed
    assert judgment.report["judged_by"] == {REFERENCE: 0, HOLDOUT: 0, OWN_ANSWERS: 0}


@pytest.mark.parametrize(
    ("own", "holdout", "publish"),
    [
        (many(-0.2), [], True),
        (many(-0.35), many(0.1), False),
        (many(0.0, levels=(10, 8)), many(0.1), False),
        (many(0.0, 2), many(0.1), True),
        (many(0.0, 2), many(-0.1), False),
        (many(0.0, 2), many(0.1, 2), False),
    ],
    ids=["outlines moved", "outlines lost", "names lost", "hold-out alone", "hold-out fell", "too few of all"],
)
def test_own_answers_hold_names_and_let_outlines_move(
    own: list[SubjectScores], holdout: list[SubjectScores], publish: bool
) -> None:
    report = judge("a", "c", reference=[], holdout=holdout, own_answers=own, unhandled=12)
    assert report.publish is publish, report.reason
    assert [entry.name for entry in report.sets] == [REFERENCE, HOLDOUT, OWN_ANSWERS]
    assert report.sets[2].comparisons[0].margin == OWN_ANSWER_MARGINS["vertebrae"]


def test_what_an_own_answer_missed_is_not_held_against_a_candidate() -> None:
    """A cord that the weights in use had missed counted as invented."""
    own = CaseScore({"cord": float("nan"), "discs": 1.0}, 3, 3, 3)
    better = CaseScore({"cord": 0.0, "discs": 0.9}, 3, 3, 3)
    found = as_in_truth(own, better)
    assert np.isnan(found.dice["cord"]) and found.dice["discs"] == 0.9
    assert as_in_truth(scores(1.0), scores(0.8)) == scores(0.8)


def test_the_reference_set_decides_as_before_if_it_is_handled() -> None:
    report = judge("a", "c", reference=many(0.0), holdout=[])
    assert [entry.name for entry in report.sets] == [REFERENCE, HOLDOUT]
    assert report.judged_by == {REFERENCE: 6, HOLDOUT: 0}
