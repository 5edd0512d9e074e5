"""Tests of networks in OpenVINO: the same labels and names as PyTorch, converted once, never damaged or foreign."""

import ctypes
import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import openvino_telemetry
import pytest
import torch

import totalspineseg_server.nnunet.openvino_network as openvino_network
from tiny_models import write_model_folder, write_models
from totalspineseg_server import pipeline
from totalspineseg_server.cli import main
from totalspineseg_server.cli.common import MODEL_DIR
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.runtimes import resolve_device, runtime_of
from totalspineseg_server.places import NAME
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.synthesis import demo_studies

pytestmark = pytest.mark.slow

LABEL_TOLERANCE = 1e-4
"""Share of voxels that may differ: both compute in float32, in another order."""


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / NAME / "openvino"


@pytest.fixture
def folder(tmp_path) -> ModelFolder:
    return ModelFolder.open(write_model_folder(tmp_path / "model", 1, patch=(16, 24, 16)))


@pytest.fixture
def conversions(monkeypatch) -> list[str]:
    """Names of the models that were converted."""
    names: list[str] = []
    original = openvino_network._convert

    def counted(folder):
        names.append(folder.name)
        return original(folder)

    monkeypatch.setattr(openvino_network, "_convert", counted)
    return names


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, (1, 20, 30, 26)).astype(np.float32)


def predict(folder: ModelFolder, runtime="openvino"):
    return WarmPredictor(folder, device="cpu", runtime=runtime).predict(image(), soft=("cord",))


def places(folder: ModelFolder, user_cache: Path) -> tuple[list[Path], list[Path]]:
    return sorted((folder.path / "openvino").glob("*/model.bin")), sorted(user_cache.glob("*/model.bin"))


def test_starter_networks_give_the_same_labels_and_names(tmp_path, monkeypatch):
    """The whole pipeline runs on a scan with the shipped weights."""
    (scan_file,) = demo_studies(tmp_path / "scans", 1, 3)
    scan = pipeline.prepare(read_image(scan_file))
    # Kept out of the repository's own folder of weights.
    monkeypatch.setattr("totalspineseg_server.nnunet.openvino_cache.FOLDER", str(tmp_path / "kept"))
    found = {}
    for runtime in ("torch", "openvino"):
        networks = Networks(ModelStore(MODEL_DIR, weights="starter"), device="cpu", runtime=runtime)
        located = pipeline.locate(scan, networks.get(1))
        result = pipeline.finish(located, networks.get(2))
        found[runtime] = located, result
        assert networks.get(1).version == networks.version(1)
    assert re.fullmatch(r"starter-[0-9a-f]{8}@openvino-\d+\.\d+\.\d+", networks.version(1))
    for theirs, ours in zip(found["torch"], found["openvino"], strict=True):
        assert theirs.labels.any()
        assert (theirs.labels != ours.labels).mean() <= LABEL_TOLERANCE
        assert (theirs.raw != ours.raw).mean() <= LABEL_TOLERANCE
        assert [level.code for level in theirs.numbering.levels] == [level.code for level in ours.numbering.levels]
        assert np.unique(theirs.labels).tolist() == np.unique(ours.labels).tolist()


@pytest.mark.parametrize("arch", ["plain", "resenc"])
@pytest.mark.parametrize("step", [1, 2])
def test_agrees_with_pytorch(tmp_path, step, arch):
    model = ModelFolder.open(write_model_folder(tmp_path, step, arch=arch))
    channels = np.concatenate([image(seed) for seed in range(step)])
    ours, theirs = (
        WarmPredictor(model, device="cpu", runtime=runtime).predict(channels, soft=("cord",))
        for runtime in ("openvino", "torch")
    )
    assert len(np.unique(theirs.labels)) > 2
    assert (ours.labels != theirs.labels).mean() <= LABEL_TOLERANCE
    np.testing.assert_allclose(ours.soft["cord"], theirs.soft["cord"], atol=1e-3)


class SignalStack(ctypes.Structure):
    """The kernel's ``stack_t``."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int]:
    """Return the place and size of this thread's stack for signals."""
    found = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.place, found.size


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is asked for in Linux's way")
def test_a_signal_does_not_end_the_process_when_a_network_is_gone(folder):
    """The process died of SIGSEGV at a signal that came after another thread had dropped a network."""
    before = signal_stack()
    predict(folder)
    tiles = [torch.randn(1, 1, 16, 24, 16)] * 2
    openvino_network.keep_int8(folder, tiles)
    assert signal_stack() == before


def test_converts_once_beside_the_weights(folder, conversions, user_cache):
    first = predict(folder)
    beside, elsewhere = places(folder, user_cache)
    assert (len(beside), elsewhere) == (1, [])
    assert folder.digest[:32] in beside[0].parent.name
    again = predict(ModelFolder.open(folder.path))
    assert len(conversions) == 1
    np.testing.assert_array_equal(first.labels, again.labels)


def test_other_weights_are_converted_again(tmp_path, folder, conversions):
    """A network that was retrained into the same folder still used the conversion of the old one."""
    old = predict(folder)
    other = ModelFolder.open(write_model_folder(tmp_path / "other", 1, patch=(16, 24, 16), seed=5))
    folder.checkpoint.write_bytes(other.checkpoint.read_bytes())
    changed = ModelFolder.open(folder.path)
    new = predict(changed)
    assert len(conversions) == 2
    assert (new.labels != old.labels).any()
    assert (new.labels != predict(changed, "torch").labels).mean() <= LABEL_TOLERANCE


def test_weights_that_change_during_the_conversion_are_refused(tmp_path, folder):
    assert folder.digest
    other = ModelFolder.open(write_model_folder(tmp_path / "other", 1, patch=(16, 24, 16), seed=5))
    folder.checkpoint.write_bytes(other.checkpoint.read_bytes())
    with pytest.raises(WeightsError, match="Try again"):
        predict(folder)


def flip_a_weight(entry: Path) -> None:
    content = bytearray((entry / "model.bin").read_bytes())
    content[len(content) // 2] ^= 0x40
    (entry / "model.bin").write_bytes(content)


def forge_the_record(entry: Path) -> None:
    (entry / "model.xml").write_text("<net/>", encoding="utf-8")
    record = {name: sha256_of(entry / name) for name in ("model.xml", "model.bin")}
    (entry / "sha256.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip_a_weight, id="bit-flipped"),
        pytest.param(lambda entry: (entry / "model.bin").write_bytes(b""), id="emptied"),
        pytest.param(lambda entry: (entry / "model.xml").unlink(), id="half-gone"),
        pytest.param(
            lambda entry: (entry / "sha256.json").write_text("[]", encoding="utf-8"), id="record-of-another-kind"
        ),
        pytest.param(lambda entry: (entry / "sha256.json").write_text("{", encoding="utf-8"), id="record-cut"),
        pytest.param(forge_the_record, id="not-a-network"),
    ],
)
def test_damaged_conversion_is_made_again(folder, conversions, user_cache, caplog, damage):
    """One changed bit of a cached weight changed labels without a word."""
    expected = predict(folder).labels
    damage(places(folder, user_cache)[0][0].parent)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(predict(folder).labels, expected)
    assert "made again" in caplog.text
    assert len(conversions) == 2
    predict(folder)
    assert len(conversions) == 2


def test_weights_folder_that_cannot_be_written_uses_the_users_cache(folder, conversions, user_cache):
    """A file lies where the folder would be made, so that it cannot be made by any user, not even root."""
    (folder.path / "openvino").write_bytes(b"")
    predict(folder)
    assert [len(found) for found in places(folder, user_cache)] == [0, 1]
    predict(folder)
    assert len(conversions) == 1


def test_nowhere_to_write_stays_in_memory_with_one_sentence(folder, conversions, user_cache, caplog):
    (folder.path / "openvino").write_bytes(b"")
    user_cache.parent.mkdir(parents=True)
    user_cache.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        labels = predict(folder).labels
    np.testing.assert_array_equal(labels, predict(folder).labels)
    assert len(conversions) == 2
    (message,) = {record.getMessage() for record in caplog.records}
    assert "converts them again" in message


def test_conversion_that_disagrees_is_refused(tmp_path, folder, monkeypatch, user_cache):
    """Results of a wrong conversion would have passed as results of the weights."""
    other = ModelFolder.open(write_model_folder(tmp_path / "other", 1, patch=(16, 24, 16), seed=5))
    model, _ = openvino_network._convert(other)
    monkeypatch.setattr(openvino_network, "_convert", lambda folder: (model, folder.load_network()))
    with pytest.raises(WeightsError, match=r"differ.*runtime 'torch'"):
        predict(folder)
    assert places(folder, user_cache) == ([], [])


def test_network_that_cannot_be_converted_is_refused(folder, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("first\noperation aten::new is not known")

    monkeypatch.setattr(torch.jit, "trace", broken)
    with pytest.raises(WeightsError, match=r"aten::new.*runtime 'torch'"):
        predict(folder)


def test_missing_package_is_one_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(WeightsError, match=r"\[openvino\]"):
        predict(folder)


def test_nothing_is_reported_over_the_internet(folder, monkeypatch):
    """The package's own converter reports its use to its makers, which hospitals cannot allow."""

    def sending(*args, **kwargs):
        raise AssertionError("telemetry was started")

    monkeypatch.setattr(openvino_telemetry.Telemetry, "init", sending)
    monkeypatch.setattr(openvino_telemetry.Telemetry, "send_event", sending)
    assert predict(folder).labels.any()


def test_images_do_not_share_memory(folder):
    """The answer of a network stays in its own memory until the next call."""
    predictor = WarmPredictor(folder, device="cpu", runtime="openvino")
    first = predictor.predict(image(0), soft=("cord",))
    copies = first.labels.copy(), first.soft["cord"].copy()
    predictor.predict(image(1), soft=("cord",))
    np.testing.assert_array_equal(first.labels, copies[0])
    np.testing.assert_array_equal(first.soft["cord"], copies[1])


def test_runtime_and_device_must_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto", "openvino").type == "cpu"
    with pytest.raises(ValueError, match=r"'openvino'.*'cuda'"):
        resolve_device("cuda", "openvino")


def test_runtime_names():
    assert [runtime_of(name) for name in ("", "torch", "openvino")] == ["auto", "torch", "openvino"]
    with pytest.raises(ValueError, match="'onnx'"):
        runtime_of("onnx")


def run(tmp_path: Path, *words: str) -> int:
    scan = tmp_path / "scan.nii.gz"
    write_volume(scan, image()[0], Grid((20, 30, 26), np.eye(4)))
    write_models(tmp_path / "models", patch=(16, 24, 16))
    arguments = [str(scan), str(tmp_path / "out"), "--quiet", "--step1", "--keep-only", "step1_raw"]
    return main([*arguments, "--weights", str(tmp_path / "models"), "--device", "cpu", *words])


def test_command_line_computes_with_openvino_and_says_so(tmp_path, conversions, monkeypatch):
    """Random networks find no spine, so the scan fails after the network has run."""
    run(tmp_path, "--runtime", "openvino")
    assert len(conversions) == 1
    assert "@openvino-" in json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["models"]["step1"]


def test_command_line_without_the_package_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(tmp_path, "--runtime", "openvino") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("totalspineseg: Runtime 'openvino' needs the package openvino")
