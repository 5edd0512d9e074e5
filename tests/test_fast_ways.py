"""Faster ways of computing: used only after they were compared, for these weights, with this release."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import write_model_folder
from totalspineseg_server import pipeline
from totalspineseg_server.cli import main, weights
from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import sha256_of, write_json
from totalspineseg_server.geometry import Volume
from totalspineseg_server.nnunet import discovery, fast_comparison, fast_ways
from totalspineseg_server.nnunet.discovery import files_in_use
from totalspineseg_server.nnunet.fast_comparison import TILES, TileRecorder, compare_ways
from totalspineseg_server.nnunet.fast_ways import BOX, HALF, INT8, Comparison, comparison, is_allowed, keep_comparison
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.nnunet.openvino_cache import MODEL, RECORD, WEIGHTS, entry_key
from totalspineseg_server.nnunet.openvino_network import keep_int8, load_openvino
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.runtimes import chosen, chosen_for_all, resolve_device, with_runtime
from totalspineseg_server.prediction import Packed, Prediction
from totalspineseg_server.registry.model_store import ModelStore


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder.open(write_model_folder(tmp_path / "model", 1))


def compared(way: str, *, passed: bool = True, release: str | None = None) -> Comparison:
    release = fast_ways.release_of(way) if release is None else release
    return Comparison(way, 10, 0, 0.0, {"discs": 0.99}, 1.0, 5.0, passed, release)


def test_what_was_not_compared_for_these_weights_is_not_used(folder: ModelFolder, tmp_path: Path) -> None:
    """Retrained weights were computed in whole numbers because those before them had passed."""
    other = ModelFolder.open(write_model_folder(tmp_path / "other", 1, seed=5))
    retrained = replace(folder, checkpoint=other.checkpoint)
    assert not is_allowed(folder, INT8)
    keep_comparison(folder, compared(INT8))
    keep_comparison(folder, compared(BOX, release=""))
    assert is_allowed(folder, INT8) and is_allowed(folder, BOX)
    assert not is_allowed(retrained, INT8)
    found = comparison(folder, INT8)
    assert found is not None and (found.scans, found.dice) == (10, {"discs": 0.99})
    keep_comparison(folder, compared(INT8, release="1.0"))
    assert not is_allowed(folder, INT8)
    keep_comparison(folder, compared(BOX, passed=False, release=""))
    assert not is_allowed(folder, BOX)
    for damaged in (
        "{",
        '{"weights": 3}',
        json.dumps({"weights": folder.digest, "compared": {INT8: {"passed": True}}}),
    ):
        (folder.path / "fast.json").write_text(damaged, encoding="utf-8")
        assert not is_allowed(folder, INT8)


def test_a_comparison_survives_a_folder_that_cannot_be_written(
    folder: ModelFolder, user_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the starter weights can only be read: the comparison of half an hour was lost in its last line."""
    write = fast_ways.write_json

    def read_only(file: Path, content: Any) -> None:
        if folder.path in file.parents:
            raise StorageError(f"{file} cannot be written")
        write(file, content)

    monkeypatch.setattr(fast_ways, "write_json", read_only)
    keep_comparison(folder, compared(INT8))
    keep_comparison(folder, compared(BOX, release=""))
    assert is_allowed(folder, INT8) and is_allowed(folder, BOX)
    assert len(list(user_cache.rglob("*.json"))) == 1
    other = ModelFolder.open(write_model_folder(tmp_path / "other", 1))
    assert not is_allowed(other, INT8)
    # What was compared later counts, wherever it is.
    monkeypatch.setattr(fast_ways, "write_json", write)
    keep_comparison(folder, compared(INT8, passed=False))
    assert not is_allowed(folder, INT8) and is_allowed(folder, BOX)


def test_quantize_says_what_is_used_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        write_model_folder(tmp_path / "model" / "starter", step)
    found = compared(BOX), compared(INT8, passed=False), compared(HALF)
    monkeypatch.setattr(fast_comparison, "compare_ways", lambda *_, **__: found)
    monkeypatch.setattr(weights, "_scans", lambda *_: [])
    assert main(["weights", "quantize", "--data-dir", str(tmp_path / "model")]) == 1
    box, int8, half = capsys.readouterr().out.splitlines()[-3:]
    assert "--whole-image" in box and "INT8" in int8 and "not pass" in int8
    assert "Half precision passed" in half and "--runtime torch" in half
    in_use = files_in_use(ModelStore(tmp_path / "model"), 2)
    assert is_allowed(in_use, BOX) and is_allowed(in_use, HALF) and not is_allowed(in_use, INT8)


def test_half_precision_waits_for_its_comparison(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computed in half precision by default, and nothing switched it off."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen("auto", "auto", folder) == "torch"
    keep_comparison(folder, compared(HALF))
    assert [chosen("auto", device, folder) for device in ("auto", "cuda", "cpu")] == [HALF, HALF, "torch"]
    assert chosen("torch", "cuda", folder) == "torch"
    assert with_runtime("starter-1", HALF) == f"starter-1@torch-half-{metadata.version('torch')}"
    for other in (compared(HALF, passed=False), compared(HALF, release="1.0")):
        keep_comparison(folder, other)
        assert chosen("auto", "cuda", folder) == "torch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # A worker of a cluster that has no GPU would give other results.
    for device in ("auto", "cpu"):
        with pytest.raises(ValueError, match=r"GPU.*'torch'"):
            resolve_device(device, HALF)


def test_auto_is_openvino_only_where_it_is_faster_and_converted(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reader after an installation waited for a conversion of minutes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    about = (folder,)
    assert chosen("auto", "auto", *about) == "torch"
    fast_ways.keep_seconds(folder.path, {"torch": 2.0, "openvino": 1.0})
    assert chosen("auto", "auto", *about) == "torch"
    entry = folder.path / "openvino" / entry_key(folder.digest, fast_ways.openvino_release())
    entry.mkdir(parents=True)
    for name in (MODEL, WEIGHTS):
        (entry / name).write_text(name, encoding="utf-8")
    write_json(entry / RECORD, {name: sha256_of(entry / name) for name in (MODEL, WEIGHTS)})
    assert chosen("auto", "auto", *about) == "openvino"
    assert [chosen(name, "cpu", *about) for name in ("torch", "openvino")] == ["torch", "openvino"]
    fast_ways.keep_seconds(folder.path, {"torch": 1.0, "openvino": 1.2})
    assert chosen("auto", "cpu", *about) == "torch"
    fast_ways.keep_seconds(folder.path, {"torch": 2.0, "openvino": 1.0})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen("auto", "auto", *about) == "torch"


def test_int8_waits_for_its_comparison(tmp_path: Path) -> None:
    for step in (1, 2):
        write_model_folder(tmp_path / "model" / "starter", step)
    store = ModelStore(tmp_path / "model")
    in_use = [files_in_use(store, step) for step in (1, 2)]
    with pytest.raises(WeightsError, match="quantize"):
        chosen_for_all(INT8, "cpu", in_use)
    models = {step: ModelFolder.open(store.resolve(step).root, step=step) for step in (1, 2)}
    # A server goes on in single precision when a training publishes weights that were not compared.
    assert chosen(INT8, "cpu", models[1]) == "openvino"
    for model in models.values():
        keep_comparison(model, compared(INT8))
    assert chosen_for_all(INT8, "cpu", in_use) == INT8
    networks = Networks(store, device="cpu", runtime=INT8)
    assert "@openvino-int8-" in networks.version(1)
    with pytest.raises(WeightsError, match="missing"):
        networks.get(1)


def test_the_box_is_used_once_it_has_passed(tmp_path: Path) -> None:
    for step in (1, 2):
        write_model_folder(tmp_path / "model" / "starter", step)
    store = ModelStore(tmp_path / "model")
    model = ModelFolder.open(store.resolve(1).root, step=1)
    networks = Networks(store, device="cpu")
    plain = networks.get(1)
    keep_comparison(model, compared(BOX, release=""))
    boxed = networks.get(1)
    assert type(plain).__name__ == "WarmPredictor" and type(boxed).__name__ == "FocusedPredictor"
    assert boxed.version == plain.version == networks.version(1)
    assert type(Networks(store, device="cpu", whole_image=True).get(1)).__name__ == "WarmPredictor"
    # Step 2 gets its crop without air by the same comparison.
    assert type(networks.get(2)).__name__ == "WarmPredictor"
    keep_comparison(ModelFolder.open(store.resolve(2).root, step=2), compared(BOX, release=""))
    assert type(networks.get(2)).__name__ == "FocusedPredictor"


def test_tiles_of_every_scan_teach_the_range_of_values() -> None:
    recorder = TileRecorder(torch.nn.Identity())
    for number in range(10 * TILES):
        recorder(torch.full((1, 1, 2, 2, 2), float(number)))
    values = [float(tile.mean()) for tile in recorder.tiles]
    assert len(values) == TILES and min(values) < 3 * TILES and max(values) > 7 * TILES


class Shifted:
    """Draws discs and a canal; some voxels of a disc are missing, or all names are those of the next disc."""

    version = "fast-1"

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels

    def predict(self, channels: np.ndarray, **_: object) -> Prediction:
        return Prediction(self._labels)


@pytest.mark.parametrize(
    ("missing", "names_differ", "passed"), [(0, 0, True), (90, 0, True), (2500, 0, False), (0, 1, False)]
)
def test_a_faster_way_passes_only_with_the_same_names_and_outlines(
    missing: int, names_differ: int, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = np.zeros((40, 40, 40), np.uint8)
    exact[5:35, 5:35, 5:15], exact[5:35, 5:35, 20:30] = 12, 13
    fast = exact.copy()
    fast.reshape(-1)[np.flatnonzero(exact == 12)[:missing]] = 0
    if names_differ:
        fast[exact == 12] = 14
    results = {"exact": exact, "fast": fast}
    scan = pipeline.prepare(Volume(np.zeros((40, 40, 40), np.float32), np.eye(4)))
    monkeypatch.setattr(fast_comparison, "labels_of", lambda _, step1, step2: results[step1])
    found = fast_comparison._compared(BOX, ("fast", "fast"), [lambda: scan], [Packed.of(exact)], 1.0, lambda _: None)
    assert (found.names_differ, found.passed, found.scans) == (names_differ, passed, 1)
    assert found.voxels_differ == pytest.approx((exact != fast).sum() / (exact > 0).sum())


@pytest.mark.slow
def test_int8_is_close_to_the_network_it_was_made_from(tmp_path: Path) -> None:
    folder = ModelFolder.open(write_model_folder(tmp_path / "model", 1, features=(8, 16), patch=(16, 24, 16)))
    tiles = [torch.randn(1, 1, 16, 24, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with pytest.raises(WeightsError, match="quantize"):
        load_openvino(folder, int8=True)
    made = keep_int8(folder, tiles)
    again = load_openvino(folder, int8=True)
    with torch.inference_mode():
        exact = folder.load_network()(tiles[0])
    small = made(tiles[0]).clone()
    assert ((small > 0) != (exact > 0)).float().mean() < 0.05
    torch.testing.assert_close(again(tiles[0]), small)
    assert (small != exact).any()


@pytest.mark.slow
def test_every_way_is_compared_on_the_same_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {
        step: ModelFolder.open(write_model_folder(tmp_path / str(step), step, patch=(16, 16, 16))) for step in (1, 2)
    }
    image = np.random.default_rng(0).normal(100, 30, (24, 24, 24)).astype(np.float32)
    scan = pipeline.prepare(Volume(image, np.eye(4)))
    look: Any = Shifted(np.ones((24, 24, 24), np.uint8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fast_comparison, "_half", lambda _: [WarmPredictor(models[s], device="cpu") for s in (1, 2)])
    found = compare_ways(models, [lambda: scan] * 2, look)
    assert [(one.way, one.scans) for one in found] == [(BOX, 2), (INT8, 2), (HALF, 2)]
    assert found[0].voxels_differ == found[2].voxels_differ == 0

    # On a machine with a GPU and without OpenVINO, INT8 was left out without a word.
    monkeypatch.setattr(fast_comparison, "openvino_release", lambda: "")
    heard: list[str] = []
    ways = [one.way for one in compare_ways(models, [lambda: scan], None, tell=heard.append)]
    assert ways == [HALF] and any("INT8" in line and "OpenVINO" in line for line in heard)


def test_the_weights_are_not_read_before_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server read two gigabytes of weights before it could say their name, and a run read them twice."""
    for step in (1, 2):
        write_model_folder(tmp_path / "model" / "starter", step)
    store, read = ModelStore(tmp_path / "model"), list[Path]()
    original = discovery.model_digest

    def counted(folder: Path, checkpoint: Path) -> str:
        read.append(checkpoint)
        return original(folder, checkpoint)

    monkeypatch.setattr(discovery, "model_digest", counted)
    assert Networks(store, device="cpu", runtime="auto").folder(1).name == "starter"
    models = [files_in_use(store, step) for step in (1, 2)]
    assert chosen_for_all("auto", "cpu", models) == "torch"
    assert read == []
    assert [model.version for model in models] == [files_in_use(store, step).version for step in (1, 2)]
    assert [model.version for model in models] and len(read) == 4
