"""Tests of a running server with the client module of 3D Slicer, in the order of its calls."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from phantom import PIR, RAS, image_of, lumbar_codes, own_image
from serving import Server, studies_server
from totalspineseg_server.anatomy import CODE_OF, NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.geometry import Grid, Volume, to_ras
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.segments import STEP1_WIRE_LABELS, from_names, from_wire, to_wire

CODES = lumbar_codes()
# The client leaves its sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="slicer-7")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server for tests that images of other files would disturb: which image is next, how many there are."""
    with studies_server(tmp_path_factory.mktemp("own") / "untouched") as running:
        yield running


def add_image(server: Server, name: str, data: npt.NDArray[Any], grid: Grid = RAS) -> str:
    """Put an image into the studies as a person would; no other image on the server has its content."""
    path = server.studies.parent / f"{name}.nii.gz"
    write_volume(path, own_image(name, data), grid)
    return add_file(server, path, name)


def add_file(server: Server, path: Path, name: str) -> str:
    """Put a file into the studies as a person would, and wait until the server has seen it."""
    path.rename(server.studies / path.name)
    for _ in range(100):
        if name in requests.get(f"{server.url}/datastore/?output=all", timeout=10).json()["objects"]:
            return name
        time.sleep(0.05)
    raise AssertionError(f"{name} never appeared")


def infer(server: Server, model: str = "totalspineseg", **query: Any) -> requests.Response:
    params = query.pop("params", {})
    files = query.pop("files", None)
    text = params if isinstance(params, str) else json.dumps(params)
    return requests.post(f"{server.url}/infer/{model}", params=query, data={"params": text}, files=files, timeout=60)


def slicer_label(path: Path, wire: Volume, names: dict[str, int], order: list[str]) -> list[dict[str, Any]]:
    """Export a label as 3D Slicer does: values 1..K in the order of the scene, ``idx`` wrong after a skipped
    segment."""
    data = np.zeros(wire.data.shape, dtype=np.uint8)
    for value, name in enumerate(order, start=1):
        data[wire.data == names[name]] = value
    write_volume(path, data, wire.grid)
    return [{"name": name, "idx": value + 1} for value, name in enumerate(order, start=1)]


def published(file: str, report: dict[str, Any]) -> Volume:
    """Return the label map of a reply in published ids."""
    volume = read_labels(Path(file))
    return Volume(to_wire(from_names(volume.data, report["label_names"])), volume.affine)


def confident(report: dict[str, Any]) -> bool | None:
    value: bool | None = report["numbering"]["confident"]
    return value


def accepted(server: Server, image: str) -> Any:
    return CorrectionStore(server.studies / ".totalspineseg").latest_accepted(image)


def test_the_annotators_loop(untouched: Server, tmp_path: Path) -> None:
    server, client = untouched, MONAILabelClient(untouched.url, tmpdir=str(tmp_path), client_id="slicer-7")
    info = client.info()
    labels = info["models"]["totalspineseg"]["labels"]
    assert list(labels.values()) == list(range(1, len(labels) + 1))
    assert "background" not in labels
    assert "config" not in info
    assert "starter" in info["models"]["totalspineseg"]["description"]
    assert "10.5281/zenodo.13894354" in info["description"]

    sample = client.next_sample("first", {})
    assert sample["id"] == "a-sagittal"
    image = requests.get(f"{server.url}/datastore/image", params={"image": sample["id"]}, timeout=10)
    assert image.content == (server.studies / "a-sagittal.nii.gz").read_bytes()

    file, report = client.infer("totalspineseg", sample["id"], {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert file.endswith(".nrrd")
    assert report["label_names"].keys() == {NAME_OF[c] for c in np.unique(CODES) if c}, "what it shows, no more"
    assert list(report["label_names"].values()) == list(range(1, len(report["label_names"]) + 1))
    assert report["models"] == {"step1": "reader-1", "step2": "reader-2"}
    assert report["numbering"]["confident"] is False, "a T12-L1 on top is counted from the sacrum"
    assert report["latencies"]["total"] > 0
    assert report["weights"].startswith("Weights in use: starter")
    assert report["weights"] in info["description"]
    assert report["weights"] in requests.get(server.url, timeout=10).text, "the start page says which weights run"
    wire = published(file, report)
    assert wire.data.shape == (80, 252, 48)
    np.testing.assert_allclose(wire.affine, PIR, atol=1e-4)
    np.testing.assert_array_equal(to_ras(Volume(from_wire(wire.data), wire.affine)).data, CODES)

    # The annotator renames L5 to L6: in a scene of another order, with names of 3D Slicer's numbering.
    order = sorted((n for n, k in labels.items() if (wire.data == k).any()), reverse=True)
    renamed = tmp_path / "label.nii.gz"
    label_info = slicer_label(renamed, wire, labels, order)
    for entry in label_info:
        entry["name"] = {"L5": "L6", "L5-S": "L5-S1"}.get(entry["name"], entry["name"])
    reply = client.save_label(sample["id"], str(renamed), params={"label_info": label_info})
    assert reply["prediction"]["id"] == report["prediction"]

    # All levels above follow; the sacrum and its disc stay.
    assert reply["renumbered"]["renamed"] == {"from": "L5", "to": "L6"}
    assert reply["renumbered"]["names"]["L1"] == "L2"
    assert "other levels follow" in reply["renumbered"]["message"]
    follow = {"T12": "L1", "T12-L1": "L1-L2"}
    follow |= {f"L{k}": f"L{k + 1}" for k in range(1, 6)}
    follow |= {f"L{k}-L{k + 1}": f"L{k + 1}-L{k + 2}" for k in range(1, 5)}
    expected = CODES.copy()
    for old, new in follow.items():
        expected[CODE_OF[old] == CODES] = CODE_OF[new]
    stored = accepted(server, sample["id"])
    store = CorrectionStore(server.studies / ".totalspineseg")
    np.testing.assert_array_equal(to_ras(Volume(store.codes(stored), PIR)).data, expected)
    assert (stored.client, stored.prediction["id"]) == ("slicer-7", report["prediction"])
    assert (store.path(stored) / stored.raw).read_bytes() == renamed.read_bytes()

    displayed = read_labels(Path(client.download_label(sample["id"], "final")))
    np.testing.assert_array_equal(to_ras(Volume(from_wire(displayed.data), displayed.affine)).data, expected)
    assert client.info()["datastore"]["completed"] == 1
    assert client.next_sample("first", {})["id"] == "b-next"
    assert client.next_sample("last", {})["id"] == "z-last"
    assert client.next_sample("random", {})["id"] != sample["id"]


def test_a_label_not_understood_is_stored_and_the_image_offered_again(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    image = add_image(server, "parked", image_of(CODES))
    label = tmp_path / "label.nii.gz"
    write_volume(label, (CODES > 0).astype(np.uint8), RAS)
    before = client.info()["datastore"]["completed"]
    with pytest.raises(MONAILabelClientException) as caught:
        client.save_label(image, str(label), params={"label_info": [{"name": "tumor"}]})
    assert "422" in caught.value.msg
    assert "'tumor'" in caught.value.msg
    assert "kept" in caught.value.msg
    assert client.info()["datastore"]["completed"] == before
    (stored,) = CorrectionStore(server.studies / ".totalspineseg").of_image(image)
    assert stored.status == "parked"
    assert stored.id in caught.value.msg


def test_two_people_saving_at_once_lose_nothing(server: Server, tmp_path: Path) -> None:
    image = add_image(server, "shared", image_of(CODES))
    replies: list[int] = []

    def save(value: int) -> None:
        label = tmp_path / f"{value}.nii.gz"
        write_volume(label, (CODE_OF["L4"] == CODES).astype(np.uint8), RAS)
        client = MONAILabelClient(server.url, client_id=f"reader-{value}")
        client.save_label(image, str(label), params={"label_info": [{"name": "L4"}]})
        replies.append(value)

    threads = [threading.Thread(target=save, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = CorrectionStore(server.studies / ".totalspineseg").of_image(image)
    assert sorted(c.client for c in stored) == [f"reader-{k}" for k in range(4)]
    assert len(replies) == 4


def test_inference_does_not_freeze_the_server(server: Server) -> None:
    """During an inference of 5 s, ``/info/`` took 4.6 s."""
    (server.signals / "slow").write_text("2", encoding="utf-8")
    try:
        work = threading.Thread(target=infer, args=(server,), kwargs={"image": "z-last"})
        work.start()
        time.sleep(0.4)
        for _ in range(3):
            requests.get(f"{server.url}/info/", timeout=60).raise_for_status()
        assert work.is_alive()
        work.join()
    finally:
        (server.signals / "slow").unlink()


def test_a_slow_datastore_does_not_freeze_the_server(server: Server) -> None:
    """While a PACS was slow for one client's ``/info/``, nobody else was answered."""
    (server.signals / "slow-folder").write_text("2", encoding="utf-8")
    try:
        waiting = threading.Thread(target=requests.get, args=(f"{server.url}/info/",), kwargs={"timeout": 60})
        waiting.start()
        time.sleep(0.4)
        assert requests.get(f"{server.url}/submissions/1.2", timeout=60).status_code == 404
        assert waiting.is_alive()
        waiting.join()
    finally:
        (server.signals / "slow-folder").unlink()


def test_step_2_starts_from_a_corrected_step_1(server: Server, client: MONAILabelClient, tmp_path: Path) -> None:
    image = add_image(server, "two-steps", image_of(CODES))
    refused = infer(server, "totalspineseg_step2", image=image)
    assert refused.status_code == 422
    assert "no step-1 label" in refused.json()["detail"]

    file, report = client.infer("totalspineseg_step1", image, {})
    assert report["label_names"].keys() < STEP1_WIRE_LABELS.keys()
    wire = published(file, report)
    assert {NAME_OF[c] for c in np.unique(from_wire(wire.data)) if c} >= {"sacrum", "T12-L1", "canal", "cord"}
    order = [n for n, k in STEP1_WIRE_LABELS.items() if (wire.data == k).any()]
    label = tmp_path / "corrected.nrrd"
    slicer_label(label, wire, dict(STEP1_WIRE_LABELS), order)
    label_info = [{"name": name} for name in order]
    sent_file, sent = client.infer("totalspineseg_step2", image, {"label_info": label_info}, label_in=str(label))
    assert sent["models"] == {"step2": "reader-2"}
    result = from_wire(published(sent_file, sent).data)
    np.testing.assert_array_equal(result, CODES)

    reply = client.save_label(image, str(label), params={"label_info": label_info})
    assert reply["step"] == 1
    objects = requests.get(f"{server.url}/datastore/?output=all", timeout=10).json()["objects"]
    assert list(objects[image]["labels"]) == ["step1"]
    np.testing.assert_array_equal(from_wire(published(*client.infer("totalspineseg_step2", image, {})).data), CODES)


def test_step_2_follows_the_names_the_annotator_gave(server: Server, client: MONAILabelClient, tmp_path: Path) -> None:
    """In a column with L6 the landmark classes contradict the reader, whose names count."""
    image = add_image(server, "six-lumbar", image_of(CODES))
    corrected = {"T12-L1": "L1-L2", "L1-L2": "L2-L3", "L2-L3": "L3-L4", "L3-L4": "L4-L5", "L4-L5": "L5-L6"}
    names = [*corrected, "L5-S", "canal", "cord"]
    label = tmp_path / "discs.nii.gz"
    data = np.zeros(CODES.shape, dtype=np.uint8)
    for value, name in enumerate(names, start=1):
        data[CODE_OF[name] == CODES] = value
    write_volume(label, data, RAS)
    label_info = [{"name": corrected.get(name, name)} for name in names]
    reply = client.infer("totalspineseg_step2", image, {"label_info": label_info}, label_in=str(label))
    result = from_wire(published(*reply).data)
    for name, expected in corrected.items():
        middle = CODE_OF[name] == CODES
        assert NAME_OF[int(np.bincount(result[middle]).argmax())] == expected


def test_an_image_can_be_uploaded_or_sent_along_or_put_into_a_session(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    path = tmp_path / "mine.nrrd"
    write_volume(path, own_image("uploaded", image_of(CODES)), RAS)
    assert client.upload_image(str(path), "uploaded") == {"image": "uploaded"}
    assert client.infer("totalspineseg", "uploaded", {})[1]["prediction"]
    write_volume(path, own_image("not uploaded", image_of(CODES)), RAS)
    with pytest.raises(MONAILabelClientException) as caught:
        client.upload_image(str(path), "uploaded")
    assert "Another image" in caught.value.msg
    reply = client.infer("totalspineseg", "", {}, file=str(path))
    np.testing.assert_array_equal(from_wire(published(*reply).data), CODES)
    session = client.create_session(str(path))
    reply = client.infer("totalspineseg", "", {}, session_id=session["session_id"])
    np.testing.assert_array_equal(from_wire(published(*reply).data), CODES)
    assert client.get_session(session["session_id"])
    client.remove_session(session["session_id"])
    gone = infer(server, session_id=session["session_id"])
    assert (gone.status_code, "may have expired" in gone.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("params", "check"),
    [
        pytest.param({"structures": "discs"}, lambda w, p: set(np.unique(w)) <= {0, *range(30, 55)}, id="discs alone"),
        pytest.param({"label_prompt": [WIRE_LABELS["L4"]]}, lambda w, p: set(np.unique(w)) == {0, 26}, id="one label"),
        pytest.param({"numbering": "iterative"}, lambda w, p: confident(p) is None, id="iterative"),
        pytest.param({"numbering": ["chain", "iterative"]}, lambda w, p: confident(p) is not None, id="echoed list"),
        pytest.param({"output_grid": "iso"}, lambda w, p: w.shape == (48, 80, 252), id="iso"),
        pytest.param({"pin": "L4 24 50 80"}, lambda w, p: len(p["settings"]["pins"]) == 1, id="pin"),
        pytest.param({"localizer": "unlabeled"}, lambda w, p: False, id="localizer without label"),
    ],
)
def test_settings(server: Server, client: MONAILabelClient, params: dict[str, Any], check: Any) -> None:
    if "localizer" in params:
        add_image(server, params["localizer"], image_of(CODES))
        refused = infer(server, image="a-sagittal", params=params)
        assert (refused.status_code, "has no label" in refused.json()["detail"]) == (422, True)
        return
    file, report = client.infer("totalspineseg", "a-sagittal", {"result_extension": ".nii.gz", **params})
    assert check(published(file, report).data, report)


def test_a_localizer_names_a_scan_without_landmarks(server: Server, client: MONAILabelClient, tmp_path: Path) -> None:
    middle = np.where(np.isin(CODES, [CODE_OF[n] for n in ("T12-L1", "L5-S", "sacrum", "T12")]), 0, CODES)
    image, localizer = add_image(server, "no-landmarks", image_of(middle)), add_image(server, "loc", image_of(CODES))
    label = tmp_path / "l.nii.gz"
    write_volume(label, (CODE_OF["L3-L4"] == CODES).astype(np.uint8), RAS)
    # Another one, for what this one uploaded last may lie on the same grid.
    reader = MONAILabelClient(server.url, client_id="slicer-8")
    reader.save_label(localizer, str(label), params={"label_info": [{"name": "L3-L4"}]})
    file, report = client.infer("totalspineseg", image, {"localizer": localizer, "result_extension": ".nii"})
    result = from_wire(published(file, report).data)
    assert (result == CODE_OF["L3-L4"])[CODE_OF["L3-L4"] == CODES].all(), report["numbering"]


@pytest.mark.parametrize(
    "params",
    [
        {"structures": "teeth"},
        {"numbering": 3},
        {"result_extension": ".exe"},
        {"label_prompt": [999]},
        {"pin": "L4 here"},
        {"pin": "cord 1 2 3"},
        {"pin": "L4 nan 2 3"},
        {"localizer": {"a": 1}},
        {"save_label": True, "label_tag": "final"},
        {"save_label": True, "label_tag": "../x"},
        {"label": "/etc/passwd"},
        "not json",
        "[1]",
    ],
    ids=str,
)
def test_a_bad_setting_gets_a_sentence(server: Server, params: Any) -> None:
    refused = infer(server, image="z-last", params=params)
    assert refused.status_code == 422
    assert "\n" not in refused.json()["detail"]
    assert len(refused.json()["detail"].split()) > 5


NOISE = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32) * 10
BAD_IMAGES: dict[str, tuple[npt.NDArray[Any], str]] = {
    "zeros": (np.zeros((9, 9, 9), np.float32), "all zero"),
    "nan": (np.where(NOISE > 5, np.nan, NOISE).astype(np.float32), "NaN"),
    "flat": (np.ones((20, 20, 1), np.float32) * np.arange(20, dtype=np.float32)[:, None, None], "3 slices"),
    "no-spine": (NOISE, "disc"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_cannot_be_segmented_gets_a_sentence(server: Server, name: str) -> None:
    data, word = BAD_IMAGES[name]
    image = add_image(server, name, data, Grid(data.shape, np.eye(4)))  # type: ignore[arg-type]
    refused = infer(server, image=image)
    assert refused.status_code == 422
    assert word in refused.json()["detail"]


@pytest.mark.parametrize(("name", "content"), [("text", b"hello"), ("empty", b""), ("cut", b"\x1f\x8b\x08\x00broken")])
def test_a_file_that_is_not_an_image_gets_a_sentence(server: Server, tmp_path: Path, name: str, content: bytes) -> None:
    path = server.studies.parent / f"{name}.nii.gz"
    path.write_bytes(content)
    refused = infer(server, image=add_file(server, path, name))
    assert refused.status_code == 422
    assert "image" in refused.json()["detail"] or "NIfTI" in refused.json()["detail"]
    upload = requests.put(
        f"{server.url}/datastore/image", params={"image": f"up-{name}"}, files={"file": (f"{name}.nii.gz", content)}
    )
    assert upload.status_code == 422
    assert f"up-{name}" not in requests.get(f"{server.url}/datastore/?output=all", timeout=10).json()["objects"]


def test_unknown_images_and_models_are_404(server: Server) -> None:
    for answer in (
        infer(server, image="nobody"),
        infer(server, "nothing", image="z-last"),
        requests.put(f"{server.url}/datastore/label", params={"image": "nobody"}, files={"label": ("l.nii", b"x")}),
        requests.post(f"{server.url}/train/nothing", json={}),
        requests.post(f"{server.url}/batch/infer/nothing", json={}),
        requests.post(f"{server.url}/scoring/nothing", json={}),
        requests.delete(f"{server.url}/datastore/image", params={"id": "nobody"}),
    ):
        assert answer.status_code == 404, answer.url
        assert len(answer.json()["detail"].split()) >= 3
    assert infer(server).status_code == 422


def test_missing_weights_are_reported_and_installed_without_restart(server: Server) -> None:
    (server.signals / "no-weights").touch()
    try:
        refused = infer(server, image="z-last")
        assert refused.status_code == 409
        assert "Install weights" in refused.json()["detail"]
        description = requests.get(f"{server.url}/info/", timeout=10).json()["models"]["totalspineseg"]["description"]
        assert "No weights" in description
    finally:
        (server.signals / "no-weights").unlink()
    assert infer(server, image="z-last").status_code == 200


def test_a_correction_that_cannot_be_written_is_507(server: Server, tmp_path: Path) -> None:
    image = add_image(server, "unwritable", image_of(CODES))
    # A file in the place of the folder fails at the same point as a full disk.
    blocker = server.studies / ".totalspineseg" / "corrections" / image
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_text("", encoding="utf-8")
    label = tmp_path / "l.nii.gz"
    write_volume(label, (CODES > 0).astype(np.uint8), RAS)
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": image},
        data={"params": json.dumps({"label_info": [{"name": "L4"}]})},
        files={"label": ("l.nii.gz", label.read_bytes())},
    )
    assert answer.status_code == 507
    assert "disk space" in answer.json()["detail"]
    objects = requests.get(f"{server.url}/datastore/?output=all", timeout=10).json()["objects"]
    assert objects[image]["labels"] == {}


def test_the_review_model_marks_what_is_uncertain(server: Server, client: MONAILabelClient) -> None:
    middle = np.where(np.isin(CODES, [CODE_OF[n] for n in ("T12-L1", "L5-S", "sacrum", "T12")]), 0, CODES)
    image = add_image(server, "uncertain", image_of(middle))
    file, report = client.infer("totalspineseg_review", image, {"result_extension": ".nii"})
    assert list(report["label_names"].values()) == [1, 2]
    assert report["numbering"]["confident"] is False
    assert report["numbering"]["would_settle"]
    marks = read_labels(Path(file)).data
    assert (marks[CODE_OF["L3"] == CODES] == 1).all()
    x, y, z = np.argwhere(CODE_OF["L3"] == CODES).mean(axis=0)
    certain = {"result_extension": ".nii", "pin": f"L3 {x} {y} {z}"}
    file, report = client.infer("totalspineseg_review", "z-last", certain)
    assert not (read_labels(Path(file)).data[CODE_OF["L3"] == CODES]).any()


def test_batch_inference_works_without_a_gpu(untouched: Server) -> None:
    """MONAI Label divides by the number of GPUs."""
    server = untouched
    started = requests.post(
        f"{server.url}/batch/infer/totalspineseg", params={"images": "unlabeled"}, json={"max_batch_size": 2}
    )
    assert started.status_code == 200
    deadline = time.monotonic() + 200
    status: dict[str, Any] = {}
    while time.monotonic() < deadline and status.get("status") not in ("DONE", "ERROR"):
        time.sleep(0.3)
        status = requests.get(f"{server.url}/batch/infer", timeout=10).json()
    assert status["status"] == "DONE", status
    assert requests.get(f"{server.url}/datastore/", timeout=10).json()["label_tags"].get("original", 0) >= 1
