"""Tests that a server loads its networks in the background when it starts, and reports it if it cannot."""

import logging
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from server_process import START_SECONDS

import totalspineseg_server.nnunet.predictor as predictor_module
from gpu_stand_in import gpu
from serving import Server
from tiny_models import write_model_folder
from totalspineseg_server.app import App
from totalspineseg_server.errors import TotalSpineSegError, WeightsError
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.runtimes import require


def test_a_started_server_warms_up_without_a_request(server: Server):
    """The first scan of the day took some seconds longer than the second."""
    deadline = time.monotonic() + START_SECONDS
    while not (server.signals / "warmed").exists():
        assert time.monotonic() < deadline, "the networks were not loaded at start"
        time.sleep(0.1)


def test_without_usable_weights_the_server_still_starts(tmp_path, caplog):
    class NoWeights:
        def warm_up(self):
            raise WeightsError("There is no model folder. Install weights.")

        def folder(self, step):
            self.warm_up()

    app = App.__new__(App)
    app._networks = NoWeights()
    with caplog.at_level(logging.WARNING):
        app.warm_up()
    assert "no model folder" in caplog.text


@pytest.mark.parametrize(("device", "tiles"), [("cuda", 1), ("cpu", 0)])
def test_only_a_gpu_computes_before_the_first_image(tmp_path, monkeypatch, device, tiles):
    """A GPU's libraries load at its first computation, which takes seconds; a CPU would only be kept busy."""
    shapes = []

    def logits(network, image, rows, regions, **kwargs):
        shapes.append(tuple(image.shape))
        return torch.zeros(regions, *image.shape[1:])

    monkeypatch.setattr(predictor_module, "sliding_logits", logits)
    folder = ModelFolder.open(write_model_folder(tmp_path, 2, patch=(16, 24, 16)))
    with gpu(monkeypatch) if device == "cuda" else nullcontext():
        WarmPredictor(folder, device=device).warm_up()
    assert shapes == [(2, 16, 24, 16)] * tiles


@pytest.mark.parametrize(
    ("device", "runtime", "match"),
    [
        ("tpu", "torch", "'tpu'"),
        ("cuda", "torch", "CUDA GPU"),
        ("cuda", "openvino", "CPU only"),
    ],
)
def test_a_choice_that_cannot_work_is_refused_at_start(monkeypatch, device, runtime, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TotalSpineSegError, match=match):
        require(device, runtime)


def test_missing_openvino_is_refused_at_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(WeightsError, match="needs the package openvino"):
        require("cpu", "openvino")
    require("auto", "torch")
