"""Tests of what a retraining puts into use, and of its records: by network, by version, and for clients."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training_site
from test_nnunet_predictor import ROUNDING, nnunet_answer
from test_nnunet_predictor import image as network_input
from test_trainers import scores_of
from tiny_models import write_model_folder
from totalspineseg_server.anatomy import DISCS, UNREVIEWED
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.errors import ImageError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource
from totalspineseg_server.nnunet.finetune import Stopped
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.plugin.spine_finetuner import SpineFinetuner
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.registry.judgments import Judgment, keep_judgment
from totalspineseg_server.registry.manage import list_versions, require_served, show_version
from totalspineseg_server.registry.model_store import STARTER, ModelStore
from totalspineseg_server.registry.records import VersionRecord, removed_versions, write_record
from totalspineseg_server.registry.removal import remove_versions
from totalspineseg_server.training import holdout, judging, remembered, scoring
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.retraining import Retrained, retrain
from totalspineseg_server.training.runs import RunState, state_of
from totalspineseg_server.training.site import Site
from totalspineseg_server.training.train_task import SpineTrainTask
from training_site import correct, make_site, tiny_reference, tiny_replay, tiny_scan, tiny_settings

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def changes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the gate measures for the next candidates, 0.1 for all others; no curves are drawn."""
    queue: list[float] = []

    def score(cases: Iterable[Any], **_: Any) -> tuple[SubjectScores, ...]:
        return scores_of(queue.pop(0) if queue else 0.1) if list(cases) else ()

    monkeypatch.setattr(judging, "score_models", score)
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    return queue


def train(site: Site, *, steps: tuple[int, ...] = (1, 2), iterations: int = 1, **options: Any) -> Retrained:
    settings = replace(tiny_settings(iterations=iterations, learning_rate=1e-2), steps=steps)
    return retrain(site, settings, **{"replay": tiny_replay(), "reference": tiny_reference} | options)


def present_state(site: Site) -> RunState:
    state = state_of(site.training_dir)
    assert state is not None
    return state


# --- what is served


def test_a_version_is_served_by_its_own_verdict(
    tmp_path: Path, changes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill before activation and another judgment, weights that had failed came into use by the verdict on
    others."""
    site = make_site(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ModelStore, "activate_in_place_of", killed)
        train(site)
    changes += [-0.2, 0.01]
    result = train(site)
    assert changes == [-0.2, 0.01], "what is published is not judged again"
    assert result.served and site.models.active() == {1: result.version, 2: result.version}
    assert site.models.versions() == (result.version,)
    record = show_version(site.models, result.version)
    assert (record["new_weights"], record["gate"]) == (1.0, result.report.as_json())
    state = present_state(site)
    assert (state.status, state.epoch, state.total_epochs) == ("published", 2, 2)


def killed_before_activation(site: Site, monkeypatch: pytest.MonkeyPatch) -> str:
    """The version that a training has published, but not put into use."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ModelStore, "activate_in_place_of", killed)
        train(site)
    (name,) = site.models.versions()
    return name


def test_what_the_gate_refused_since_is_not_served_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first verdict counted, whatever another hold-out had found since."""
    site = make_site(tmp_path)
    name = killed_before_activation(site, monkeypatch)
    keep_judgment(site.models, name, Judgment("2026-01-01T00:00:00+00:00", "", False, "did not pass: discs fell", {}))
    result = train(site)
    assert (result.version, result.served, site.models.active()) == (name, False, {})
    assert "did not pass: discs fell" in result.message
    assert present_state(site).status == "kept"


def test_a_removed_version_does_not_come_back_with_other_weights(
    tmp_path: Path, changes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continued, was judged again, and published under the name of the removed version."""
    site = make_site(tmp_path)
    removed = killed_before_activation(site, monkeypatch)
    remove_versions(site.models, [removed])
    changes += [-0.2, 0.01]
    result = train(site)
    assert (result.served, result.version != removed) == (True, True)
    assert removed_versions(site.models) == (removed,)


@pytest.mark.parametrize("who", ["an operator goes back meanwhile", "a server of other weights trains"])
def test_nothing_is_replaced_that_the_gate_did_not_compare_with(tmp_path: Path, who: str) -> None:
    """A model that was never compared with the one in use replaced it."""
    site = make_site(tmp_path)
    first = train(site)
    correct(site, tmp_path, "sub-7", 7)
    models, stop = site.models, lambda: False
    if who.startswith("an operator"):
        in_use, compared = STARTER, first.version
        stop = lambda: bool(site.models.activate(STARTER))  # noqa: E731
    else:
        in_use, compared = first.version, STARTER
        models = ModelStore(site.models.model_dir, weights=STARTER)
    result = train(replace(site, models=models), should_stop=stop)
    assert result.report.publish and not result.served
    assert site.models.active() == {1: in_use, 2: in_use}
    state = present_state(site)
    record = show_version(site.models, result.version)
    assert (state.status, state.message) == ("kept", result.message) == ("kept", record["not_served"])
    for fact in (compared, in_use, f"models activate {result.version}"):
        assert fact in result.message
    assert result.message in (result.run / "log.txt").read_text(encoding="utf-8")
    assert result.message in {entry.verdict for entry in list_versions(site.models)}
    require_served(site.models, result.version)


def test_a_version_is_compared_with_the_weights_the_first_training_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each version is compared only with its parent, each may be a little worse than the one before."""
    site = make_site(tmp_path)
    compared: list[str] = []
    score = judging.score_models

    def watched(cases: Iterable[Any], *, active: Any, **options: Any) -> tuple[SubjectScores, ...]:
        compared.append(active.step1.folder.name)
        return score(cases, active=active, **options)

    first = train(site)
    correct(site, tmp_path, "sub-7", 7)
    monkeypatch.setattr(judging, "score_models", watched)
    second = train(site, iterations=4)
    assert compared == [first.version] * 2 + [STARTER] * 2
    names = [entry["name"] for entry in show_version(site.models, second.version)["gate"]["sets"]]
    assert names == ["reference", "hold-out", "reference, since starter", "hold-out, since starter"]


def test_weights_that_handle_no_synthetic_spine_replay_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To prevent forgetting, such weights were trained on spines that they had never known."""
    site = make_site(tmp_path)
    monkeypatch.setattr(remembered, "replay_sources", lambda count: tiny_replay() * count)
    result = train(site, replay=None)
    log = (result.run / "log.txt").read_text(encoding="utf-8")
    assert re.search(r"forgetting\D+0 synthetic\D+0 scans", log)
    assert show_version(site.models, result.version)["replay"] == []
    monkeypatch.setattr(scoring, "HANDLED", 0.0)
    correct(site, tmp_path, "sub-7", 7)
    again = train(site, replay=None)
    assert "48 synthetic" in (again.run / "log.txt").read_text(encoding="utf-8")


def test_where_the_first_weights_are_gone_the_oldest_there_are_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a line in the log said that small falls could add up again."""
    site = make_site(tmp_path)
    with site.models.publish("base") as staging:
        for step in (1, 2):
            write_model_folder(staging, step, spacing=training_site.SPACING_MM, seed=5)
    site.models.activate("base")
    first = train(site)
    correct(site, tmp_path, "sub-7", 7)
    train(site, iterations=2)
    remove_versions(site.models, ["base"], force=True)
    correct(site, tmp_path, "sub-8", 8)
    third = train(site, iterations=3)
    names = [entry["name"] for entry in show_version(site.models, third.version)["gate"]["sets"]]
    assert names[2:] == [f"reference, since {first.version}", f"hold-out, since {first.version}"]
    assert [line.split(":")[0] for line in third.report.left_out] == [
        f"base, from which step {step} began" for step in (1, 2)
    ]


def test_scans_that_the_weights_in_use_learned_from_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server with the same models had trained on a scan that is held out here, and the gate used it."""
    site = make_site(tmp_path, scans=2)
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: True)
    (judge,) = site_material(site).holdout
    learned = {"correction": "of another server", "image_sha256": judge.provenance["image_sha256"]}
    with site.models.publish("other") as staging:
        for step in (1, 2):
            write_model_folder(staging, step, spacing=training_site.SPACING_MM, seed=5)
        write_record(staging, VersionRecord("other", "2026", (1, 2), {}, {}, [learned]))
    site.models.activate("other")
    result = train(site)
    assert [(case.name, "was trained on this image" in case.reason) for case in result.skipped] == [(judge.name, True)]


def test_a_run_that_is_not_continued_leaves_its_logs_alone(tmp_path: Path) -> None:
    """The state of every stopped training stayed for good: a gigabyte each with the official weights."""
    site = make_site(tmp_path)
    with pytest.raises(Stopped):
        train(site, iterations=2, should_stop=lambda: True)
    (stopped,) = (path for path in site.training_dir.iterdir() if path.is_dir())
    (stopped / "step1" / ".partial-1.pth").write_bytes(b"cut short")
    assert (stopped / "step1" / "checkpoint_latest.pth").is_file()
    correct(site, tmp_path, "sub-7", 7)
    train(site, iterations=4)
    assert not list(stopped.rglob("*.pth"))
    assert (stopped / "log.txt").is_file()


@pytest.mark.parametrize("step", [1, 2])
def test_nnunets_own_predictor_gives_the_labels_of_a_published_version(tmp_path: Path, step: int) -> None:
    """A version that only this program can load could not be used anywhere else."""
    site = make_site(tmp_path, trainer="nnUNetTrainer")
    result = train(site, steps=(step,))
    assert result.served
    model = ModelFolder.open(site.models.versions_dir / result.version, step=step)
    channels = network_input(step, (60, 72, 96))
    ours = WarmPredictor(model, device="cpu").predict(channels).labels
    labels, soft = nnunet_answer(model.path, channels)
    clear = (np.abs(soft - 0.5) > ROUNDING).all(axis=0)
    assert len(np.unique(labels)) > 3
    np.testing.assert_array_equal(ours[clear], labels[clear])
    mirrored, _ = nnunet_answer(model.path, channels, mirror=True)
    assert (mirrored != labels).any(), "its axes of mirroring were lost"


# --- what is recorded


def trained_on(site: Site, result: Retrained) -> dict[str, list[int]]:
    record = show_version(site.models, result.version)
    return {entry["image"]: entry["taught"] for entry in record["training"]}


def test_an_image_that_comes_back_is_not_recorded_as_left_out(tmp_path: Path) -> None:
    """A case that was used after a stop was listed among those that had been left out before it."""
    site = make_site(tmp_path, scans=2)
    image, away = tmp_path / "studies" / "sub-1.nii.gz", tmp_path / "away.nii.gz"
    image.rename(away)
    with pytest.raises(Stopped):
        train(site, iterations=4, should_stop=lambda: True)
    away.rename(image)
    result = train(site, iterations=4)
    assert (result.run,) == tuple(path for path in site.training_dir.iterdir() if path.is_dir())
    assert trained_on(site, result) == {"sub-0": [1, 2], "sub-1": [1, 2]}
    assert result.skipped == ()
    assert show_version(site.models, result.version)["skipped"] == []


def test_each_network_says_what_it_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label whose discs nobody checked is used for step 1 only, and a step-1 map was recorded for step 2."""
    site = make_site(tmp_path, scans=2)

    def without_discs(seed: int) -> tuple[Volume, Volume]:
        image, codes = tiny_scan(seed)
        unseen = np.where(np.isin(codes.data, DISCS), UNREVIEWED, codes.data)
        return image, Volume(unseen.astype(np.uint8), codes.affine)

    with monkeypatch.context() as patch:
        patch.setattr(training_site, "tiny_scan", without_discs)
        correct(site, tmp_path, "sub-x", 3)
    stored = list(site.corrections.all())
    maps = [Correction(**c.__dict__ | {"step": 1}) if c.image == "sub-1" else c for c in stored]
    monkeypatch.setattr(CorrectionStore, "readable", lambda self, on_damaged: iter(maps))

    def gone() -> LabeledScan:
        raise ImageError("gone")

    replay = (*tiny_replay(), ScanSource("replay-2", Origin.UNCORRECTED, gone, {"synthetic": "replay-2"}))
    result = train(site, replay=replay, iterations=6)
    assert trained_on(site, result) == {"sub-0": [1, 2], "sub-1": [1], "sub-x": [1]}
    record = show_version(site.models, result.version)
    assert record["replay"] == [{"synthetic": "replay-1", "taught": [1, 2]}]
    left_out = {entry["case"].split()[0]: entry["left_out_of"] for entry in record["skipped"]}
    assert left_out == {"replay-2": ["step 1", "step 2"], "sub-x": ["step 2"]}
    alone = train(site, steps=(2,), iterations=4)
    assert trained_on(site, alone) == {"sub-0": [2]}
    listed = json.loads((alone.run / "run.json").read_text(encoding="utf-8"))["training"]
    assert {entry["image"] for entry in listed} == {"sub-0", "sub-x"}


def test_a_label_that_had_no_turn_was_not_learned_from(tmp_path: Path) -> None:
    """A short training on many labels recorded all of them as learned, and the next one hardly used them."""
    site = make_site(tmp_path, scans=5)
    first = train(site, steps=(1,), iterations=4)
    (run,) = (path for path in site.training_dir.iterdir() if path.is_dir())
    assert len(trained_on(site, first)) == 2
    assert re.search(r"step 1\D+5 new\D+0 earlier", (run / "log.txt").read_text(encoding="utf-8"))
    second = train(site, steps=(1,), iterations=6)
    assert re.search(r"step 1\D+3 new\D+2 earlier", (second.run / "log.txt").read_text(encoding="utf-8"))
    assert set(trained_on(site, second)) > set(trained_on(site, first).keys() ^ {f"sub-{k}" for k in range(5)})


def test_a_network_knows_what_it_has_seen_itself(tmp_path: Path) -> None:
    """After a training of step 1 alone, its labels counted as known to step 2, too, which had never seen them."""
    site = make_site(tmp_path)
    train(site, steps=(1,))
    result = train(site)
    expected = r"step 1\D+0 new\D+1 earlier\D+step 2\D+1 new\D+0 earlier"
    assert re.search(expected, (result.run / "log.txt").read_text(encoding="utf-8"))


# --- what clients see


def test_time_and_best_metric_stay_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the gate judged, and ever after, clients showed no time and a Dice of 0."""
    site = make_site(tmp_path)
    reported: list[RunState] = []
    displayed: list[dict[str, Any]] = []

    def score(cases: Iterable[Any], *, before_each: Callable[[str], None], **_: Any) -> tuple[SubjectScores, ...]:
        if not list(cases):
            return ()
        before_each("reference-0")
        reported.append(present_state(site))
        displayed.append(SpineTrainTask(site, (1,)).stats())
        return scores_of(0.1)

    monkeypatch.setattr(judging, "score_models", score)
    monkeypatch.setattr(SpineFinetuner, "best", 0.25)
    train(site)
    (during,), after = reported, present_state(site)
    assert (during.status, during.message, during.best_metric) == ("running", "comparing on reference-0", 0.25)
    assert (after.status, after.best_metric) == ("published", 0.25)
    assert 0 < during.seconds <= after.seconds
    stats = SpineTrainTask(site, (1,)).stats()
    assert stats["best_metric"] == displayed[0]["best_metric"] == 0.25
    # 3D Slicer's bar stood still at 1 % until the end: it counts the epochs of runs without a total time alone.
    times = [{"current_time", "total_time"} & set(each) for each in (*displayed, stats)]
    assert times == [{"current_time"}, {"total_time"}]
