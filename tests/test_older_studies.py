"""Tests that a studies folder of an earlier version of the software opens unchanged."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.client.client import MONAILabelClient

from phantom import RAS, lumbar_codes
from serving import Server, running_server
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.segments import to_wire
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.site import Site

ARCHIVE = Path(__file__).parent / "older" / "studies-2026-11-29.tar.xz"
SHA256 = "faa208a9a0d44ead6eb2103ec6349431e54b5c425b5568b4056f2e7d2ef84182"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    with running_server(folder) as server:
        yield server


def test_labels_and_predictions_of_an_older_folder_are_displayed(older: Server, tmp_path: Path) -> None:
    client = MONAILabelClient(older.url, tmpdir=str(tmp_path), client_id="later")
    displayed = client.datastore()["objects"]
    assert {image: set(entry["labels"]) for image, entry in displayed.items()} == {
        "finished": {"original", "final"},
        "parked": {"original"},
        "waiting": set(),
    }
    label = read_labels(Path(client.download_label("finished", "final")))
    values = {name: value for value, name in enumerate(WIRE_LABELS, 1)}
    assert set(np.unique(label.data)) - {0} <= set(values.values())
    assert (label.data == to_wire(lumbar_codes())).all(), "the names of the finished label are the same"


def test_a_parked_label_of_an_older_folder_still_waits(older: Server) -> None:
    listed = requests.get(f"{older.url}/submissions/", timeout=60).json()
    assert "no such bone" in json.dumps(listed)


def test_a_correction_of_an_older_folder_is_still_used_for_training(older: Server, tmp_path: Path) -> None:
    store = CorrectionStore(older.studies / ".totalspineseg")
    site = Site(tmp_path, ModelStore(tmp_path), store, lambda image: older.studies / f"{image}.nii.gz")
    material = site_material(site)
    assert [source.provenance["image"] for source in material.training] == ["finished"]


def test_work_goes_on_in_an_older_folder(older: Server, tmp_path: Path) -> None:
    client = MONAILabelClient(older.url, tmpdir=str(tmp_path), client_id="later")
    assert client.next_sample("first", {})["id"] in ("parked", "waiting")
    label = tmp_path / "label.nii.gz"
    write_volume(label, to_wire(lumbar_codes()), RAS)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    stored = client.save_label("parked", str(label), params={"label_info": names})
    assert stored["prediction"]["versions"] == {"step1": "reader-1", "step2": "reader-2"}, "the older record is read"
    assert set(client.datastore()["objects"]["parked"]["labels"]) == {"original", "final"}
    rows = requests.get(f"{older.url}/worklist", timeout=60).json()
    assert "finished" in json.dumps(rows)
