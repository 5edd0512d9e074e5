"""Tests of the loop from corrections to a published version, and of the tasks that clients start."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from totalspineseg_server.agreement import GROUPS, CaseScore
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.errors import SettingError, TrainingError, WeightsError
from totalspineseg_server.nnunet import cases as training_cases
from totalspineseg_server.nnunet.cases import Origin
from totalspineseg_server.nnunet.checkpoint import float32_weights, load_checkpoint
from totalspineseg_server.nnunet.finetune import Stopped
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.registry.manage import list_versions, require_served, show_version
from totalspineseg_server.registry.model_store import STARTER, ModelStore
from totalspineseg_server.registry.records import holder, trained_on
from totalspineseg_server.training import holdout, judging, material, retraining, scoring, train_task
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.retrain_settings import RetrainSettings, client_config, read_settings
from totalspineseg_server.training.retraining import Retrained, retrain
from totalspineseg_server.training.runs import state_of
from totalspineseg_server.training.site import Site
from totalspineseg_server.training.train_task import SpineTrainTask
from training_site import correct, make_site, tiny_reference, tiny_replay, tiny_settings

pytestmark = pytest.mark.slow


def scores_of(change: float) -> tuple[SubjectScores, ...]:
    """Return the scores of five subjects on which the candidate differs by so much."""
    before, after = (CaseScore(dict.fromkeys(GROUPS, value), 10, 9, 9) for value in (0.8, 0.8 + change))
    return tuple(SubjectScores(f"s{k}", (before,), (after,)) for k in range(5))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Gives the gate chosen scores instead of running networks, and draws no curves."""
    change = {"value": 0.1}

    def score(cases: Iterable[Any], **_: Any) -> tuple[SubjectScores, ...]:
        return scores_of(change["value"]) if list(cases) else ()

    monkeypatch.setattr(judging, "score_models", score)
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    return change


def weights_of(model: ModelFolder) -> dict[str, torch.Tensor]:
    return float32_weights(load_checkpoint(model.checkpoint))


def train(site: Site, **finetune: Any) -> Retrained:
    return retrain(site, tiny_settings(**finetune), replay=tiny_replay(), reference=tiny_reference)


def test_corrections_become_a_served_version_that_says_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop runs with real networks in the gate; random ones find nothing, so nothing can fall."""
    # They handle nothing either, and would judge by nothing.
    monkeypatch.setattr(scoring, "HANDLED", 0.0)
    site = make_site(tmp_path)
    correction = next(site.corrections.all())
    before = {step: ModelFolder.open(site.models.resolve(step).root, step=step).digest for step in (1, 2)}
    result = train(site, learning_rate=1e-6)
    assert result.report.publish, result.report.reason
    assert "reference set alone" in result.report.reason
    assert site.models.active() == {1: result.version, 2: result.version}
    for step in (1, 2):
        model = ModelFolder.open(site.models.resolve(step).root, step=step)
        assert model.digest != before[step]
        model.load_network()
        assert holder(site.models, step, model.digest) == result.version
    record = show_version(site.models, result.version)
    (trained,) = record["training"]
    assert trained["correction"] == correction.id
    assert (trained["image_sha256"], trained["label_sha256"]) == (correction.image_sha256, correction.raw_sha256)
    assert (trained["annotator"], trained["offered"]) == ("reader", {"strategy": "random"})
    assert trained["taught"] == [1, 2]
    assert record["replay"] == [{"synthetic": "replay-1", "taught": [1, 2]}]
    assert record["parents"]["1"]["name"] == STARTER
    assert record["lineage"] == [result.version, STARTER]
    assert record["settings"]["finetune"]["iterations"] == 4
    assert record["gate"]["sets"][0]["subjects"] == 3
    assert {"torch", "nnunetv2", "python"} <= set(record["software"])
    assert (result.run / "gate.json").is_file()
    assert (result.run / "step2" / "curves.png").is_file()
    state = state_of(site.training_dir)
    assert state is not None
    assert (state.status, state.epoch, state.total_epochs) == ("published", 8, 8)


@pytest.mark.parametrize("steps", [(1, 2), (2,)])
def test_step_two_learns_from_the_discs_its_own_step_one_finds(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    site = make_site(tmp_path)
    finders: list[dict[str, torch.Tensor]] = []

    def note(image: Any, codes: Any, finder: Any) -> Any:
        finders.append(weights_of(finder.folder))
        return np.zeros_like(codes)

    events: list[str] = []
    teach = retraining.fine_tune

    def trains(parent: ModelFolder, *arguments: Any, **options: Any) -> Any:
        events.append(f"step {parent.step} trains")
        return teach(parent, *arguments, **options)

    monkeypatch.setattr(training_cases, "found_discs", note)
    monkeypatch.setattr(retraining, "fine_tune", trains)
    monkeypatch.setattr(retraining.WarmPredictor, "free", lambda self: events.append(f"step {self.folder.step} freed"))
    settings = replace(tiny_settings(learning_rate=1e-2), steps=steps)
    result = retrain(site, settings, replay=tiny_replay(), reference=tiny_reference)
    assert len(finders) == 2
    assert events[-2:] == ["step 1 freed", "step 2 trains"], "else it keeps memory that the training needs"
    used = site.models.versions_dir / result.version if 1 in steps else site.models.resolve(1).root
    expected = weights_of(ModelFolder.open(used, step=1))
    assert all(torch.equal(expected[name], finders[0][name]) for name in expected)


def test_a_step_without_labels_stays_as_it_is(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With corrected step-1 maps only, step 1 was trained to its end, then the run failed, and so did each later
    one."""
    site = make_site(tmp_path)
    (final,) = site.corrections.all()
    step1 = Correction(**final.__dict__ | {"step": 1})
    monkeypatch.setattr(CorrectionStore, "readable", lambda self, on_damaged: iter([step1]))
    result = train(site, learning_rate=1e-6)
    assert "step 2" in result.message
    assert site.models.active() == {1: result.version}
    with pytest.raises(TrainingError, match="accepted correction"):
        retrain(site, replace(tiny_settings(), steps=(2,)), replay=tiny_replay(), reference=tiny_reference)


def test_a_worse_model_is_stored_with_its_report_and_not_used(tmp_path: Path, judged: dict[str, float]) -> None:
    site = make_site(tmp_path)
    judged["value"] = -0.2
    result = train(site)
    assert not result.report.publish
    assert result.version in site.models.versions()
    assert site.models.active() == {}
    assert site.models.resolve(1).name == STARTER
    listed = {entry.name: entry for entry in list_versions(site.models)}
    assert listed[STARTER].active_steps == (1, 2)
    assert listed[result.version].verdict.startswith("refused")
    with pytest.raises(WeightsError, match="gate"):
        require_served(site.models, result.version)
    state = state_of(site.training_dir)
    assert state is not None
    assert state.status == "refused"


@pytest.mark.parametrize("refused", [1, 2])
def test_what_forgets_too_much_is_mixed_with_the_weights_in_use(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Half an hour of training was thrown away because old scans lost three points of Dice, and later half of what was
    learned, although three quarters would have passed."""
    site = make_site(tmp_path)
    parents = {step: ModelFolder.open(site.models.resolve(step).root, step=step) for step in (1, 2)}
    seen: list[dict[str, torch.Tensor]] = []

    def score(cases: Iterable[Any], *, candidate: Any, **_: Any) -> tuple[SubjectScores, ...]:
        if not list(cases):
            return ()
        seen.append(weights_of(candidate.step1.folder))
        return scores_of(-0.2 if len(seen) <= refused else 0.01)

    monkeypatch.setattr(judging, "score_models", score)
    result = train(site, learning_rate=1e-2, iterations=1)
    share = {1: 0.75, 2: 0.5}[refused]
    assert result.report.publish and site.models.active() == {1: result.version, 2: result.version}
    served = weights_of(ModelFolder.open(site.models.resolve(1).root, step=1))
    old = weights_of(parents[1])
    assert any(not torch.equal(old[name], seen[0][name]) for name in old)
    for name in old:
        torch.testing.assert_close(served[name], (1 - share) * old[name] + share * seen[0][name])
    assert len(seen) == refused + 1
    assert show_version(site.models, result.version)["new_weights"] == share
    assert json.loads((result.run / "gate.json").read_text(encoding="utf-8"))["new_weights"] == share
    log = (result.run / "log.txt").read_text(encoding="utf-8")
    assert [f"{tried:.0%} of the new weights" in log for tried in (1, 0.75, 0.5)] == [True, refused > 1, False]
    state = state_of(site.training_dir)
    assert state is not None
    assert f"{share:.0%}" in result.message
    assert result.message in state.message


def test_later_trainings_start_from_the_served_version_and_replay_its_labels(
    tmp_path: Path, judged: dict[str, float]
) -> None:
    site = make_site(tmp_path)
    first = train(site, iterations=2)
    correct(site, tmp_path, "sub-9", 9)
    known = {2: trained_on(site.models, first.version, 2)}
    learned = site_material(site, known).lessons(2)
    assert {s.provenance["image"]: s.origin for s in learned} == {"sub-0": Origin.EARLIER, "sub-9": Origin.CORRECTION}
    assert [s.read().origin for s in learned] == [s.origin for s in learned]
    second = train(site, iterations=2)
    record = show_version(site.models, second.version)
    assert record["parents"]["2"]["name"] == first.version
    assert record["lineage"] == [second.version, first.version, STARTER]
    assert site.models.go_back() == {1: first.version, 2: first.version}
    assert site.models.resolve(1).name == first.version
    assert site.models.go_back() == {1: STARTER, 2: STARTER}
    with pytest.raises(WeightsError, match="in use before"):
        site.models.go_back()


def test_one_step_alone_leaves_the_other_as_it_was(tmp_path: Path, judged: dict[str, float]) -> None:
    site = make_site(tmp_path)
    settings = RetrainSettings((2,), tiny_settings(iterations=2).finetune)
    result = retrain(site, settings, replay=tiny_replay(), reference=tiny_reference)
    assert site.models.active() == {2: result.version}
    assert site.models.resolve(1).name == STARTER
    with pytest.raises(WeightsError, match="step 1"):
        ModelFolder.open(site.models.versions_dir / result.version, step=1)


def test_held_out_subjects_are_compared_on_and_never_used_for_training(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: subject == "sub-1")
    site = make_site(tmp_path, scans=3)
    found = site_material(site)
    assert [s.provenance["image"] for s in found.training] == ["sub-0", "sub-2"]
    assert [s.provenance["image"] for s in found.holdout] == ["sub-1"]
    record = show_version(site.models, train(site, iterations=4).version)
    assert [entry["image"] for entry in record["training"]] == ["sub-0", "sub-2"]


def test_an_image_used_for_training_under_another_name_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that was uploaded twice was used for training under one name and held out under the other."""
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: subject != "sub-0")
    site = make_site(tmp_path, scans=2)
    correct(site, tmp_path, "sub-again", 0)
    found = site_material(site)
    assert [s.provenance["image"] for s in found.training] == ["sub-0"]
    assert [s.provenance["image"] for s in found.holdout] == ["sub-1"]
    assert [(case.name.split()[0], "under another name" in case.reason) for case in found.skipped] == [
        ("sub-again", True)
    ]


def test_the_first_subject_of_a_site_is_for_training_though_it_was_corrected_again_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the newest labels decided which subjects were the first."""
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: True)
    site = make_site(tmp_path, scans=2)
    correct(site, tmp_path, "sub-0", 0)
    found = site_material(site)
    assert [s.provenance["image"] for s in found.training] == ["sub-0"]
    assert [s.provenance["image"] for s in found.holdout] == ["sub-1"]


def test_the_newest_correction_of_an_image_counts(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    newest = correct(site, tmp_path, "sub-0", 0)
    (source,) = site_material(site).training
    assert source.provenance["correction"] == newest.id


def test_a_corrected_step_one_map_is_for_step_one_until_a_final_label_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path)
    (final,) = site.corrections.all()

    def with_step1(when: str) -> Any:
        values = final.__dict__ | {"id": when, "step": 1}
        return lambda self, on_damaged: iter([final, Correction(**values)])

    monkeypatch.setattr(CorrectionStore, "readable", with_step1("99999999T"))
    assert [source.steps for source in site_material(site).training] == [(2,), (1,)]
    monkeypatch.setattr(CorrectionStore, "readable", with_step1("00000000T"))
    assert [source.steps for source in site_material(site).training] == [(1, 2)]


def test_findings_of_the_linter_are_reported_and_recorded(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd label is used as its author made it, but whoever searches for the cause of an odd model must find it."""
    site = make_site(tmp_path)
    (final,) = site.corrections.all()
    odd = Correction(
        **final.__dict__ | {"findings": ({"kind": "gap", "message": "L3 is missing"},), "unreviewed": (45,)}
    )
    monkeypatch.setattr(CorrectionStore, "readable", lambda self, on_damaged: iter([odd]))
    result = train(site, iterations=1)
    assert "L3 is missing" in (result.run / "log.txt").read_text(encoding="utf-8")
    (trained,) = show_version(site.models, result.version)["training"]
    assert trained["findings"] == ["L3 is missing"]
    assert trained["unreviewed"] == ["L5"]


def test_a_run_whose_labels_are_odd_goes_on_after_a_stop(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log line about an odd label was read as a left-out case, and no later training could begin."""
    site = make_site(tmp_path)
    (final,) = site.corrections.all()
    odd = Correction(**final.__dict__ | {"findings": ({"kind": "gap", "message": "L3 is missing"},)})
    monkeypatch.setattr(CorrectionStore, "readable", lambda self, on_damaged: iter([odd]))
    settings = tiny_settings(iterations=2)
    with pytest.raises(Stopped):
        retrain(site, settings, replay=tiny_replay(), reference=tiny_reference, should_stop=lambda: True)
    result = train(site, iterations=2)
    assert result.skipped == ()
    assert [case["correction"] for case in show_version(site.models, result.version)["training"]] == [final.id]


def test_nothing_to_learn_from_is_a_clear_error(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=0)
    with pytest.raises(TrainingError, match="Submit"):
        train(site)
    assert state_of(site.training_dir) is None


def test_a_device_that_is_not_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line showed a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="CUDA"):
        train(make_site(tmp_path), device="cuda")


def test_a_server_with_fixed_weights_says_that_the_new_version_is_not_used(
    tmp_path: Path, judged: dict[str, float]
) -> None:
    made = make_site(tmp_path)
    site = Site(made.history, ModelStore(tmp_path / "model", weights=STARTER), made.corrections, made.image_file)
    result = train(site, iterations=1)
    assert site.models.resolve(1).name == STARTER
    assert "'starter'" in (result.run / "log.txt").read_text(encoding="utf-8")


# --- requests and tasks


def test_defaults_hold_for_everything_a_client_leaves_out() -> None:
    untouched = client_config()
    assert read_settings(untouched, (1, 2)) == read_settings({}, (1, 2)) == RetrainSettings()
    assert json.loads(json.dumps(untouched)) == untouched
    assert all(isinstance(item, str) for value in untouched.values() if isinstance(value, list) for item in value)


def test_settings_come_as_text() -> None:
    settings = read_settings(
        {"iterations": "20", "learning_rate": "1e-4", "device": "cpu", "resume": "false", "gpus": "all"}, (2,)
    )
    assert settings.steps == (2,)
    assert settings.finetune.iterations == 20
    assert settings.finetune.warmup == 10
    assert settings.finetune.learning_rate == 1e-4
    assert settings.finetune.device == "cpu"
    assert settings.resume is False
    assert settings.finetune.optimizer == "adamw"
    assert read_settings({"optimizer": "sgd"}, (1,)).finetune.optimizer == "sgd"


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": "many"},
        {"iterations": "2.5"},
        {"batch_size": "0"},
        {"learning_rate": "nan"},
        {"device": "tpu"},
        {"optimizer": "adam"},
    ],
    ids=lambda value: str(next(iter(value.items()))),
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        read_settings(wrong, (1,))


def test_tasks_are_cheap_and_all_report_the_run_in_progress(tmp_path: Path, judged: dict[str, float]) -> None:
    """The client's progress bar follows only the first trainer, whichever was started."""
    site = Site(tmp_path / "no", ModelStore(tmp_path / "nothing"), CorrectionStore(tmp_path), lambda _: None)
    assert SpineTrainTask(site, (1,)).stats() == {}
    site = make_site(tmp_path)
    tasks = [SpineTrainTask(site, steps) for steps in ((1, 2), (1,), (2,))]
    train(site, iterations=2)
    stats = [task.stats() for task in tasks]
    assert stats[0] == stats[1] == stats[2]
    assert {"epoch", "total_epochs", "total_time", "best_metric"} <= set(stats[0])
    assert (stats[0]["epoch"], stats[0]["total_epochs"]) == (4, 4)
    assert json.dumps(tasks[0].info())


@pytest.mark.parametrize(("seconds", "displayed"), [(59.4, "0:00:59"), (3600.0, "1:00:00"), (37325.0, "10:22:05")])
def test_a_training_says_how_long_it_takes(
    seconds: float, displayed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3D Slicer showed 0:621:5 beside its bar."""
    site = Site(tmp_path, ModelStore(tmp_path), CorrectionStore(tmp_path), lambda _: None)
    state = SimpleNamespace(
        seconds=seconds, status="done", epoch=1, total_epochs=2, best_metric=None, step=1, run="r", message=""
    )
    monkeypatch.setattr(train_task, "state_of", lambda _: state)
    assert SpineTrainTask(site, (1,)).stats()["total_time"] == displayed


def test_a_task_returns_plain_values(tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    monkeypatch.setattr(retraining, "reference_cases", lambda count: tiny_reference())
    request = {"model": "totalspineseg_step1", "iterations": "1", "replay_cases": "0", "device": "cpu", "local_rank": 0}
    reply = SpineTrainTask(site, (1,))(request, None)
    assert json.loads(json.dumps(reply)) == reply
    assert reply["published"]
    assert reply["version"] in site.models.versions()


def test_material_says_which_correction_was_left_out(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=2)
    damaged = next(c for c in site.corrections.all() if c.image == "sub-0")
    (site.corrections.path(damaged) / "record.json").write_text("{", encoding="utf-8")
    found = site_material(site)
    assert [case.name for case in found.skipped] == ["sub-0"]
    assert [s.provenance["image"] for s in found.training] == ["sub-1"]
    assert material.judged_cases(found.training)[0][0].subject == "sub-1"
