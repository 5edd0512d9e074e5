"""Tests of loaded networks: loaded once, replaced after a new version is published, released on request."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

import totalspineseg_server.nnunet.model_folder as model_folder_module
import totalspineseg_server.nnunet.networks as networks_module
from tiny_models import write_models
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet import predictor
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.registry.model_store import ModelStore


@pytest.fixture
def model_dir(tmp_path) -> Path:
    write_models(tmp_path / "starter", arch="plain", seed=1)
    write_models(tmp_path / "versions" / "official-r20251124", arch="resenc", seed=2)
    return tmp_path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the checkpoints that were read."""
    names: list[str] = []
    original = model_folder_module.load_checkpoint

    def counted(path):
        names.append(str(path))
        return original(path)

    monkeypatch.setattr(model_folder_module, "load_checkpoint", counted)
    return names


def test_second_request_loads_nothing(model_dir, reads):
    networks = Networks(ModelStore(model_dir), device="cpu")
    assert reads == []
    first = networks.get(1)
    assert networks.get(1) is first
    assert len(reads) == 1
    networks.get(2)
    assert networks.get(1) is first
    assert networks.loads == {1: 1, 2: 1}
    assert len(reads) == 2


def test_published_version_is_taken_at_the_next_request(model_dir):
    store = ModelStore(model_dir)
    networks = Networks(store, device="cpu")
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    old = networks.get(1)
    assert old.version.startswith("starter-")
    store.activate("official-r20251124", steps=(1,))
    new = networks.get(1)
    assert new.version.startswith("official-r20251124-")
    assert networks.get(2).version.startswith("starter-")
    assert networks.loads == {1: 2, 2: 1}
    assert (new.predict(image).labels != old.predict(image).labels).any()
    store.activate("starter")
    assert networks.get(1).version == old.version


def test_changed_files_are_noticed(model_dir):
    """Weights retrained into the same folder were not used until the server was restarted."""
    networks = Networks(ModelStore(model_dir), device="cpu")
    before = networks.get(1).version
    checkpoint = networks.folder(1).checkpoint
    content = torch.load(checkpoint, weights_only=False)
    for value in content["network_weights"].values():
        value.mul_(0.5)
    torch.save(content, checkpoint.with_suffix(".new"))
    checkpoint.with_suffix(".new").replace(checkpoint)
    assert networks.get(1).version != before


def test_removed_files_are_an_error(model_dir):
    networks = Networks(ModelStore(model_dir), device="cpu")
    networks.get(1).folder.checkpoint.unlink()
    with pytest.raises(WeightsError, match="no checkpoint"):
        networks.get(1)


def test_failed_change_keeps_the_warm_network_of_the_old(model_dir, reads):
    """A damaged new version must not unload the networks of the old one."""
    store = ModelStore(model_dir)
    networks = Networks(store, device="cpu")
    old = networks.get(1)
    folder = store.versions_dir / "official-r20251124"
    next(folder.rglob("Dataset101*/**/checkpoint_final.pth")).write_bytes(b"damaged")
    store.activate("official-r20251124")
    with pytest.raises(WeightsError, match="checkpoint"):
        networks.get(1)
    store.activate("starter")
    assert networks.get(1) is old


def test_description_costs_no_network(model_dir, reads):
    networks = Networks(ModelStore(model_dir), device="cpu")
    assert networks.folder(2).version.startswith("starter-")
    assert networks.loads == {}
    assert reads == []


def test_freed_networks_load_again(model_dir):
    networks = Networks(ModelStore(model_dir), device="cpu")
    first = networks.get(1)
    networks.free()
    assert networks.get(1) is not first
    assert networks.loads == {1: 2}


def test_a_request_under_way_leaves_no_memory_to_a_training(model_dir, monkeypatch):
    """The second step of a running request took the GPU's memory again after a training had begun, and nobody released
    it."""
    networks = Networks(ModelStore(model_dir), device="cpu")
    used, given_back = networks.get(1), []
    monkeypatch.setattr(predictor, "_empty_cache", lambda: given_back.append(1))
    image = np.ones((1, 16, 16, 16), dtype=np.float32)
    used.predict(image)
    assert given_back == []
    networks.free()
    used.predict(image)
    assert len(given_back) == 2
    networks.get(1).predict(image)
    assert len(given_back) == 2, "the next network stays where it is"


def test_many_threads_share_one_load(model_dir):
    networks = Networks(ModelStore(model_dir), device="cpu")
    image = np.random.default_rng(0).normal(size=(1, 12, 12, 12)).astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(lambda _: networks.get(1).predict(image).labels, range(8)))
    assert networks.loads == {1: 1}
    assert all((other == labels[0]).all() for other in labels)


def test_constructing_reads_nothing(tmp_path):
    Networks(ModelStore(tmp_path / "none"), device="cuda")


def test_warm_up_loads_both_steps_before_a_request(model_dir, reads):
    networks = Networks(ModelStore(model_dir), device="cpu")
    networks.warm_up()
    assert networks.loads == {1: 1, 2: 1}
    networks.get(1)
    networks.get(2)
    assert len(reads) == 2


def test_descriptions_do_not_wait_for_loading(model_dir, monkeypatch):
    """While the networks were loading, clients that only asked for the models got no answer."""
    networks = Networks(ModelStore(model_dir), device="cpu")
    loading, go_on = Event(), Event()
    original = networks_module.WarmPredictor

    def slow(*args, **kwargs):
        loading.set()
        assert go_on.wait(60)
        return original(*args, **kwargs)

    monkeypatch.setattr(networks_module, "WarmPredictor", slow)
    with ThreadPoolExecutor(2) as pool:
        loaded = pool.submit(networks.get, 1)
        assert loading.wait(60)
        described = pool.submit(lambda: (networks.folder(1).name, networks.loads, networks.version(2)))
        try:
            name, loads, _ = described.result(timeout=60)
        finally:
            go_on.set()
        assert (name, loads) == ("starter", {})
        assert loaded.result(timeout=60).version == networks.version(1)
