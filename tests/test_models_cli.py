"""Tests of ``totalspineseg models``: versions are listed, shown, activated, rolled back, exported and imported."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from test_nnunet_predictor import image as network_input
from test_trainers import scores_of
from tiny_models import write_models
from totalspineseg_server.cli import main
from totalspineseg_server.cli.retrain import SETTINGS
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.nnunet.model_folder import ModelFolder, models_in
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.raw_folder import NnunetFolders
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.registry.judgments import measured_once
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import VersionRecord, read_record, trained_on, write_record
from totalspineseg_server.registry.removal import remove_versions
from totalspineseg_server.training import judging, retraining
from totalspineseg_server.training.retrain_settings import client_config
from training_site import make_site, tiny_reference, tiny_replay, tiny_scan


def publish(store: ModelStore, name: str, seed: int, *, passed: bool = True) -> None:
    record = VersionRecord(
        name=name,
        created="2026-01-01T00:00:00+00:00",
        steps=(1, 2),
        parents={"1": {"name": "starter", "version": "starter-0"}},
        models={},
        training=[{"correction": "c1", "image": "sub-1"}],
        gate={"publish": passed, "reason": "served" if passed else "not served: discs fell"},
    )
    with store.publish(name) as staging:
        write_models(staging, seed=seed, trainer="nnUNetTrainer")
        digests = {str(step): model.digest for step, model in models_in(staging).items()}
        write_record(staging, replace(record, digests=digests))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path / "model")
    write_models(made.model_dir / "starter")
    publish(made, "trained-1", 1)
    publish(made, "trained-2", 2, passed=False)
    return made


def run(store: ModelStore, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["models", *words, "--data-dir", str(store.model_dir)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_list_and_show(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.activate("trained-1", steps=[2])
    lines = run(store, capsys, "list")[1].splitlines()
    assert lines[0] == "* starter  in use for step 1"
    assert lines[1].startswith("* trained-1  in use for step 2  from starter, 1 corrections")
    assert lines[3].startswith("  trained-2")
    assert "not served: discs fell" in lines[4]
    displayed: Any = json.loads(run(store, capsys, "show", "trained-1")[1])
    assert displayed["training"] == [{"correction": "c1", "image": "sub-1"}]
    assert displayed["lineage"] == ["trained-1", "starter"]


def test_show_says_how_well_a_version_handles_synthetic_spines(
    store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether synthetic spines or own answers are replayed was stored in a file that nobody knew about."""
    measured = {"replay-1": {"discs": 0.42, "sacrum": None}}
    pair = {1: "starter-0a1b2c3d", 2: "trained-1-4e5f6a7b"}
    measured_once(store, pair, lambda: measured)
    measured_once(store, {1: "trained-10-00000000", 2: "other-1-00000000"}, lambda: {"replay-2": {}})
    for name, expected in (("trained-1", {"+".join(pair.values()): measured}), ("trained-2", {})):
        assert json.loads(run(store, capsys, "show", name)[1])["synthetic"] == expected


def test_activate_and_roll_back(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, capsys, "activate", "trained-1")[0] == 0
    assert store.active() == {1: "trained-1", 2: "trained-1"}
    code, _, error = run(store, capsys, "activate", "trained-2")
    assert (code, store.active()[1]) == (2, "trained-1")
    assert "not served: discs fell" in error
    assert run(store, capsys, "activate", "trained-2", "--force")[0] == 0
    assert store.active()[1] == "trained-2"
    assert "step 1: trained-1" in run(store, capsys, "rollback")[1]
    assert "step 2: starter" in run(store, capsys, "rollback")[1]
    assert run(store, capsys, "rollback")[0] == 2


def test_a_version_survives_export_and_import(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "out.zip"
    assert run(store, capsys, "export", "trained-1", str(archive))[0] == 0
    other = ModelStore(tmp_path / "elsewhere")
    assert run(other, capsys, "import", str(archive))[0] == 0
    assert other.versions() == ("trained-1",)
    assert other.active() == {}
    for step in (1, 2):
        before, after = (ModelFolder.open(s.versions_dir / "trained-1", step=step) for s in (store, other))
        assert before.digest == after.digest
        assert after.path.parent.name.startswith(f"Dataset10{step}_")
    displayed: Any = json.loads(run(other, capsys, "show", "trained-1")[1])
    assert displayed["gate"] is None
    assert displayed["settings"]["imported"]["record"]["training"] == [{"correction": "c1", "image": "sub-1"}]
    code, _, error = run(other, capsys, "import", str(archive))
    assert (code, "Choose another name" in error) == (2, True)
    assert run(other, capsys, "import", str(archive), "--name", "again")[0] == 0


def test_a_refused_version_stays_refused_after_export_and_import(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version that the gate had refused was put into use after an export and an import, without a word."""
    archive = tmp_path / "out.zip"
    run(store, capsys, "export", "trained-2", str(archive))
    other = ModelStore(tmp_path / "elsewhere")
    for name in ("again", "once-more"):
        assert run(other, capsys, "import", str(archive), "--name", name)[0] == 0
        code, _, error = run(other, capsys, "activate", name)
        assert (code, other.active()) == (2, {})
        assert "not served: discs fell" in error
        assert run(other, capsys, "export", name, str(archive))[0] == 0
    assert "not served: discs fell" in run(other, capsys, "list")[1]


@pytest.mark.parametrize("removed", [False, True])
def test_weights_imported_again_know_what_they_learned_from(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], removed: bool
) -> None:
    """After an export and an import of a site's own version, its labels counted as new to it."""
    own, bare = tmp_path / "own.zip", tmp_path / "bare.zip"
    run(store, capsys, "export", "trained-2", str(own))
    with zipfile.ZipFile(own) as whole, zipfile.ZipFile(bare, "w") as without:
        for entry in whole.namelist():
            if entry.startswith("Dataset102"):
                without.writestr(entry, whole.read(entry))
    before = read_record(store, "trained-2")
    if removed:
        remove_versions(store, ["trained-2"])
    assert run(store, capsys, "import", str(own), "--name", "again")[0] == 0
    assert run(store, capsys, "import", str(bare), "--name", "step2")[0] == 0
    for name, steps in (("again", (1, 2)), ("step2", (2,))):
        assert [trained_on(store, name, step) == {"c1"} for step in (1, 2)] == [step in steps for step in (1, 2)]
    code, _, error = run(store, capsys, "activate", "again")
    assert (code, "not served: discs fell" in error) == (2, True), "whatever the zip says of its gate"
    code, _, error = run(store, capsys, "import", str(own))
    assert code == (0 if removed else 2), error
    assert (read_record(store, "trained-2"), "trained-2" in store.versions()) == (before, True)


def test_other_weights_cannot_take_the_name_of_a_removed_version(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Later versions would have counted as trained on what the other weights had learned from."""
    run(store, capsys, "export", "trained-2", str(tmp_path / "out.zip"))
    remove_versions(store, ["trained-1"])
    code, _, error = run(store, capsys, "import", str(tmp_path / "out.zip"), "--name", "trained-1")
    assert (code, "other weights" in error) == (2, True), error
    assert store.versions() == ("trained-2",)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerDAExtGPU", "SpineTrainer", "nnUNetTrainer"])
def test_stock_nnunet_loads_what_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: str) -> None:
    """A checkpoint named the class that had trained it, and nnU-Net refused it: "Could not find requested trainer"."""
    made = ModelStore(tmp_path / "model")
    write_models(made.versions_dir / "site", trainer=trainer, checkpoint="checkpoint_best.pth", seed=5)
    assert run(made, capsys, "export", "site", str(tmp_path / "out.zip"))[0] == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "nnunet")
    for step, own in models_in(made.versions_dir / "site").items():
        dataset = own.path.parent.name
        stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        folder = tmp_path / "nnunet" / dataset / "nnUNetTrainer__nnUNetResEncUNetLPlans__3d_fullres"
        stock.initialize_from_trained_model_folder(str(folder), use_folds=(0,), checkpoint_name="checkpoint_best.pth")
        noise = np.random.default_rng(step).normal(size=(step, 16, 20, 16)).astype(np.float32)
        logits = stock.predict_logits_from_preprocessed_data(torch.from_numpy(noise))
        assert logits.shape == (len(own.regions), 16, 20, 16)
        for name, value in own.load_network().state_dict().items():
            assert torch.equal(stock.network.state_dict()[name], value)
    archive_again = tmp_path / "again.zip"
    run(made, capsys, "import", str(tmp_path / "out.zip"), "--name", "again")
    run(made, capsys, "export", "again", str(archive_again))
    with zipfile.ZipFile(archive_again) as one, zipfile.ZipFile(tmp_path / "out.zip") as other:
        names = [name for name in other.namelist() if name != "version.json"]
        assert all(one.read(name) == other.read(name) for name in names)


@pytest.mark.slow
def test_nnunets_programs_install_and_run_what_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anybody who has only nnU-Net can use a site's networks."""
    made = ModelStore(tmp_path / "model")
    write_models(made.versions_dir / "site", seed=5)
    assert run(made, capsys, "export", "site", str(tmp_path / "out.zip"))[0] == 0
    channels = network_input(1, (30, 26, 40))
    (tmp_path / "images").mkdir()
    write_volume(tmp_path / "images" / "scan_0000.nii.gz", channels[0], Grid((30, 26, 40), np.eye(4)))
    environment = os.environ | NnunetFolders.at(tmp_path / "nnunet").environment()

    def program(name: str, *words: str) -> None:
        command = [str(Path(sys.executable).parent / f"nnUNetv2_{name}"), *words]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=200)

    (tmp_path / "nnunet" / "results").mkdir(parents=True)
    program("install_pretrained_model_from_zip", str(tmp_path / "out.zip"))
    model = ["-d", "101", "-c", "3d_fullres", "-f", "0", "-p", "nnUNetResEncUNetLPlans"]
    how = ["-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"]
    program("predict", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "labels"), *model, *how)
    labels = read_labels(tmp_path / "labels" / "scan.nii.gz").data
    ours = WarmPredictor(models_in(made.versions_dir / "site")[1], device="cpu").predict(channels).labels
    assert len(np.unique(ours)) > 3
    # It sums its tiles in half precision.
    assert (labels == ours).mean() > 0.99


@pytest.mark.parametrize(
    ("claimed", "arguments"),
    [("official-r99991231", ""), ("trained-1", "official-r99991231"), ("trained-1", "a b"), ("trained-1", "official")],
)
def test_a_zip_cannot_take_the_name_of_the_official_weights(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], claimed: str, arguments: str
) -> None:
    """A zip that called itself official-r99991231 was used by a server with the official weights, without being
    activated."""
    record = store.versions_dir / "trained-1" / "version.json"
    record.write_text(json.dumps(json.loads(record.read_text(encoding="utf-8")) | {"name": claimed}), encoding="utf-8")
    archive = tmp_path / "out.zip"
    run(store, capsys, "export", "trained-1", str(archive))
    other = ModelStore(tmp_path / "elsewhere", weights="official")
    code, _, error = run(other, capsys, "import", str(archive), *(["--name", arguments] if arguments else []))
    assert (code, "another name" in error, other.versions()) == (2, True, ()), error
    with pytest.raises(WeightsError, match="not installed"):
        other.resolve(1)


@pytest.mark.parametrize("kind", ["no zip", "no model"])
def test_other_files_are_refused(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    archive = tmp_path / "bad.zip"
    archive.write_bytes(b"no zip at all")
    if kind == "no model":
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("plans.json", "{}")
    before = store.versions()
    code, _, error = run(store, capsys, "import", str(archive))
    assert code == 2
    assert "bad.zip" in error
    assert store.versions() == before


def damage(root: Path, kind: str) -> None:
    """Make step 2 of a version unusable; step 1 stays intact."""
    step2 = ModelFolder.open(root, step=2).path
    if kind == "no dataset.json":
        (step2 / "dataset.json").unlink()
    elif kind == "other regions":
        content = json.loads((step2 / "dataset.json").read_text(encoding="utf-8"))
        content["labels"].pop("sacrum")
        (step2 / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    elif kind == "other normalization":
        text = (step2 / "plans.json").read_text(encoding="utf-8")
        (step2 / "plans.json").write_text(text.replace("ZScoreNormalization", "CTNormalization"), encoding="utf-8")
    elif kind == "two of one step":
        shutil.copytree(step2, step2.parent / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    else:
        (step2 / "fold_0" / "checkpoint_final.pth").unlink()


@pytest.mark.parametrize(
    ("kind", "match", "in_store"),
    [
        ("no dataset.json", "no plans.json", False),
        ("other regions", "no plans.json", False),
        ("other normalization", "it has normalization", True),
        ("two of one step", "several model folders", True),
        ("no checkpoint", "no checkpoint such as", True),
    ],
)
def test_no_version_is_imported_or_activated_by_half(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, match: str, in_store: bool
) -> None:
    """Of a zip whose step 2 was unusable, step 1 was imported, and was used with the old step 2, without a word."""
    root = store.versions_dir / "trained-1"
    damage(root, kind)
    archive = Path(shutil.make_archive(str(tmp_path / "half"), "zip", root))
    code, _, error = run(store, capsys, "import", str(archive), "--name", "half")
    assert (code, match in error) == (2, True), error
    assert "half" not in store.versions()
    if in_store:
        for words in (("activate", "trained-1"), ("export", "trained-1", str(tmp_path / "out.zip"))):
            code, _, error = run(store, capsys, *words)
            assert (code, match in error) == (2, True), error
        assert store.active() == {}


def test_importing_a_model_of_one_step_says_so(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step1 = ModelFolder.open(store.versions_dir / "trained-1", step=1).path.parent
    _, out, _ = run(store, capsys, "import", str(step1), "--name", "one")
    assert "one" in out and "step 1" in out


# --- retrain and prepare


@pytest.mark.slow
def test_retrain_learns_from_a_studies_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "score_models", lambda cases, **_: scores_of(0.0) if list(cases) else ())
    monkeypatch.setattr(retraining, "reference_cases", lambda count: tiny_reference())
    monkeypatch.setattr(retraining, "replay_of", lambda *_, **__: tiny_replay())
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)
    site = make_site(tmp_path)
    words = ["retrain", str(tmp_path / "studies"), "--step", "1", "--iterations", "1", "--device", "cpu"]
    words += ["--replay-cases", "3", "--seed", "5"]
    assert main([*words, "--data-dir", str(site.models.model_dir)]) == 0
    (version,) = site.models.versions()
    assert site.models.active() == {1: version}
    output = capsys.readouterr()
    assert version in output.out
    # It printed nothing for hours.
    assert {"preparing cases", "step 1: iteration 1 of 1"} <= set(output.err.splitlines())
    settings = json.loads((site.models.versions_dir / version / "version.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["replay_cases"], settings["finetune"]["seed"], settings["finetune"]["iterations"]) == (3, 5, 1)


def test_retrain_has_every_setting_that_clients_have() -> None:
    """Without a server, the replay scans and the seed could not be chosen."""
    assert set(SETTINGS) == set(client_config()) - {"resume"}


def test_prepare_writes_datasets_from_bids_and_from_corrections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, codes = tiny_scan(1)
    bids = tmp_path / "bids"
    for subject in ("sub-1", "sub-2"):
        anat, derived = (bids / part / subject / "anat" for part in ("", "derivatives/labels"))
        anat.mkdir(parents=True)
        derived.mkdir(parents=True)
        write_volume(anat / f"{subject}_T2w.nii.gz", image.data, image.grid)
        write_volume(derived / f"{subject}_T2w_label-spine_dseg.nii.gz", codes.data, codes.grid)
    (bids / "derivatives/labels/sub-2/anat/sub-2_T2w_label-spine_dseg.nii.gz").write_bytes(b"\x1f\x8b half")
    assert main(["prepare", str(bids), str(tmp_path / "raw"), "--no-o2e"]) == 1
    out = capsys.readouterr()
    assert "left out sub-2_T2w" in out.err
    labels = sorted(p.relative_to(tmp_path / "raw") for p in (tmp_path / "raw").rglob("labelsTr/*.nii.gz"))
    assert [str(path) for path in labels] == [
        f"Dataset10{step}_TotalSpineSeg_step{step}/labelsTr/sub-1_T2w.nii.gz" for step in (1, 2)
    ]
    make_site(tmp_path / "site")
    assert main(["prepare", str(tmp_path / "site" / "studies"), str(tmp_path / "raw2"), "--step", "2"]) == 0
    assert "2 cases" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["prepare", str(tmp_path / "empty"), str(tmp_path / "raw3")]) == 2
    assert "Check --label-suffix" in capsys.readouterr().err
