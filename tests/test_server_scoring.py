"""Tests of scoring, batch inference and the orders by score, with the real server."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.client.client import MONAILabelClient

from phantom import RAS, image_of, lumbar_codes, own_image
from serving import Server
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.segments import to_wire

NAMES = ("scored-a", "scored-b", "scored-nothing")
WAIT_S = 500
"""For a process that loads the app and three predictions, on a busy machine."""

pytestmark = [
    pytest.mark.timeout(2 * WAIT_S),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> MONAILabelClient:
    folder = tmp_path_factory.mktemp("client")
    client = MONAILabelClient(server.url, tmpdir=str(folder), client_id="scorer")
    noise = np.random.default_rng(0).uniform(0, 4, RAS.shape).astype(np.float32)
    for name, image in zip(NAMES, (image_of(lumbar_codes()), image_of(lumbar_codes()), noise), strict=True):
        file = folder / f"{name}.nii.gz"
        # An image of the same content that another file's tests had predicted would be scored from that record.
        write_volume(file, own_image(name, image), RAS)
        client.upload_image(str(file), name)
    return client


def finished(server: Server, path: str) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        task = requests.get(f"{server.url}{path}", timeout=60).json()
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            return dict(task)
        time.sleep(0.2)
    raise AssertionError(f"still running: {task}")


def started(server: Server, path: str, **params: Any) -> None:
    answer = requests.post(f"{server.url}{path}", json={"images": list(NAMES), **params}, timeout=60)
    assert answer.status_code == 200, answer.text


def records(server: Server, name: str) -> int:
    return len(list((server.studies / ".totalspineseg" / "predictions" / f"image-{name}").glob("*/record.json")))


def score(server: Server, name: str) -> dict[str, Any]:
    return dict(
        json.loads((server.studies / ".totalspineseg" / "scores" / f"image-{name}.json").read_text(encoding="utf-8"))
    )


@pytest.fixture(scope="module")
def scored(server: Server, client: MONAILabelClient) -> dict[str, Any]:
    """A reader predicts one image, then all images are scored."""
    Path(client.infer("totalspineseg", NAMES[0], {})[0]).unlink()
    assert score(server, NAMES[0])["prediction"], "what a reader ran has its score at once"
    (server.studies / ".totalspineseg" / "scores" / f"image-{NAMES[0]}.json").unlink()
    started(server, "/scoring/doubt")
    return finished(server, "/scoring/")


def test_scoring_fills_in_what_is_missing(server: Server, scored: dict[str, Any]) -> None:
    assert scored["status"] == "DONE", scored
    assert any("of 3 images done" in line for line in scored["details"])
    assert [records(server, name) for name in NAMES] == [1, 1, 0], "a deleted score is made of the record"
    assert scored["progress"]["total"] >= scored["progress"]["scored"] >= 3
    assert scored["progress"]["failed"] >= 1
    found = score(server, NAMES[1])
    assert found["versions"] == {"step1": "reader-1", "step2": "reader-2"}
    assert found["parts"]["names"] > 0
    assert found["parts"]["steps"] == 0, "both read the same codes"
    assert 44 in found["codes"]
    assert (score(server, NAMES[2])["refused"], bool(score(server, NAMES[2])["message"])) == ("no spine", True)


def test_a_second_scoring_has_nothing_to_do(server: Server, scored: dict[str, Any]) -> None:
    before = [score(server, name) for name in NAMES]
    started(server, "/scoring/doubt")
    assert finished(server, "/scoring/")["status"] == "DONE"
    assert [score(server, name) for name in NAMES] == before
    assert [records(server, name) for name in NAMES] == [1, 1, 0]


def test_the_other_size_is_looked_at_when_it_is_asked_for(server: Server, scored: dict[str, Any]) -> None:
    assert score(server, NAMES[1])["parts"]["scale"] is None
    started(server, "/scoring/doubt_scale")
    assert finished(server, "/scoring/")["status"] == "DONE"
    assert 0 <= score(server, NAMES[1])["parts"]["scale"] <= 1
    assert records(server, NAMES[1]) == 1, "the maps of the prediction are there"


def test_a_label_knows_what_offered_its_scan(
    server: Server, client: MONAILabelClient, scored: dict[str, Any], tmp_path: Path
) -> None:
    offered = []
    for _ in range(len(client.datastore()["objects"])):
        sample = client.next_sample("doubtful_first", {})
        offered.append(sample["id"])
        if sample["id"] == NAMES[0]:
            break
    assert offered.index(NAMES[2]) < offered.index(NAMES[0]), "where nothing is named a reader is needed most"
    assert sample["score"]["doubt"] > 0
    assert 0 < sample["score"]["rarity"] <= 1
    label = tmp_path / "label.nii.gz"
    write_volume(label, to_wire(lumbar_codes()), RAS)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    stored = client.save_label(NAMES[0], str(label), params={"label_info": names})
    folder = server.studies / ".totalspineseg" / "corrections" / NAMES[0] / stored["correction"]
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["offered"]["strategy"] == "doubtful_first"
    assert record["offered"]["score"] == sample["score"]


def test_clients_list_the_orders(client: MONAILabelClient) -> None:
    info = client.info()
    assert {"doubtful_first", "surest_first", "most_to_learn", "random"} <= set(info["strategies"])
    assert all(entry["description"] for entry in (*info["strategies"].values(), *info["scoring"].values()))
    assert next(iter(info["strategies"])) == "first", "3D Slicer begins with it"


@pytest.fixture
def slow(server: Server) -> Iterator[Path]:
    signal = server.signals / "slow"
    yield signal
    signal.unlink(missing_ok=True)


def test_a_batch_goes_on_where_it_was_stopped(
    server: Server, client: MONAILabelClient, scored: dict[str, Any], slow: Path
) -> None:
    displayed = client.datastore()["objects"]
    assert not any("original" in displayed[name]["labels"] for name in NAMES)
    before = [records(server, name) for name in NAMES]
    slow.write_text("300", encoding="utf-8")
    started(server, "/batch/infer/totalspineseg")
    deadline = time.monotonic() + WAIT_S
    while "0 of 3 images done" not in str(requests.get(f"{server.url}/batch/infer", timeout=60).json()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    second = requests.post(f"{server.url}/batch/infer/totalspineseg", json={"images": list(NAMES)}, timeout=60)
    assert second.status_code == 429
    assert second.json()["detail"].startswith("A batch inference"), "it was a line of the host's log"
    assert requests.delete(f"{server.url}/batch/infer", timeout=60).json()["status"] == "STOPPED"
    slow.unlink()
    started(server, "/batch/infer/totalspineseg")
    assert finished(server, "/batch/infer")["status"] == "DONE"
    displayed = client.datastore()["objects"]
    assert ["original" in displayed[name]["labels"] for name in NAMES] == [True, True, False]
    done = [records(server, name) for name in NAMES]
    assert done == [before[0] + 1, before[1] + 1, 0]
    started(server, "/batch/infer/totalspineseg")
    task = finished(server, "/batch/infer")
    assert [records(server, name) for name in NAMES] == done, "what is done is left out"
    assert task["progress"]["scored"] >= 3
    started(server, "/batch/infer/totalspineseg", structures="discs")
    assert finished(server, "/batch/infer")["status"] == "DONE"
    assert records(server, NAMES[0]) == done[0] + 1, "other settings give another result"


def test_a_replaced_image_has_no_score(server: Server, client: MONAILabelClient, scored: dict[str, Any]) -> None:
    before = score(server, NAMES[1])
    file = server.studies / f"{NAMES[1]}.nii.gz"
    write_volume(file, own_image("in its place", image_of(lumbar_codes())), RAS)
    assert client.next_sample("surest_first", {})["id"] != NAMES[1]
    started(server, "/scoring/doubt")
    assert finished(server, "/scoring/")["status"] == "DONE"
    assert score(server, NAMES[1])["image_sha256"] != before["image_sha256"]
