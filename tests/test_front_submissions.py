"""Tests of the answer to a submission that is kept but cannot be read, and of what happens to it later."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import datastore as host_endpoint
from monailabel.utils.others import class_utils
from starlette.testclient import TestClient

from pacs_serving import wait_for
from phantom import RAS, image_of, lumbar_codes
from totalspineseg_server.anatomy import CODE_OF, WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.receipts import Receipts, Sender, receipt_of
from totalspineseg_server.front import failures as errors
from totalspineseg_server.front import saved, studies
from totalspineseg_server.infers.listed import LISTED
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.segments import to_wire
from totalspineseg_server.training.site import folder_site

APP_DIR = Path(__file__).resolve().parents[1] / "apps" / "totalspineseg"
CODES = lumbar_codes()
NAMES = json.dumps({"label_info": [{"name": name} for name in WIRE_LABELS]})


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MONAI_LABEL_RELOAD_APP_LIB", "false")
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    (tmp_path / "studies").mkdir()
    write_volume(tmp_path / "studies" / "a.nii.gz", image_of(CODES), RAS)
    write_volume(tmp_path / "label.nii.gz", to_wire(CODES), RAS)
    found = class_utils.get_class_of_subclass_from_file("main", str(APP_DIR / "main.py"), "MONAILabelApp")
    running = found(app_dir=str(APP_DIR), studies=str(tmp_path / "studies"), conf={"weights": str(tmp_path / "none")})
    monkeypatch.setattr(studies, "app_instance", lambda: running)
    return running


@pytest.fixture
def client(app: Any) -> TestClient:
    front = FastAPI()
    errors.install(front)
    front.include_router(studies.router(1 << 20))
    return TestClient(front, raise_server_exceptions=False)


@pytest.fixture
def submit(client: TestClient, tmp_path: Path) -> Callable[..., Any]:
    def send(params: str = NAMES, **query: str) -> Any:
        files = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
        return client.put("/datastore/label", params={"image": "a", **query}, data={"params": params}, files=files)

    return send


def unused(client: TestClient) -> list[tuple[str, str]]:
    return [(one["image"], one["status"]) for one in client.get("/submissions/").json()]


@pytest.mark.parametrize(("error", "status"), [(MemoryError(), 507), (TypeError("odd"), 500)])
def test_a_label_that_the_server_fails_to_read_waits_until_it_is_asked_for(
    app: Any, client: TestClient, submit: Callable[..., Any], error: Exception, status: int
) -> None:
    """The client read "the server failed", and the label was gone."""
    sound = app.inbox._interpreter._lint

    def fail(*_: object) -> Any:
        raise error

    app.inbox._interpreter._lint = fail
    answer = submit()
    (waiting,) = client.get("/submissions/").json()
    assert answer.status_code == status
    assert f"kept (submission {waiting['submission']})" in answer.json()["detail"]
    assert (waiting["image"], waiting["status"]) == ("a", "waiting")
    assert type(error).__name__ in waiting["reason"]
    assert [one["submission"] for one in client.post("/submissions/interpret").json()] == [waiting["submission"]]
    app.inbox._interpreter._lint = sound
    assert client.post("/submissions/interpret").json() == []
    assert unused(client) == []
    assert app.datastore().get_label_info("a", "final")["correction"] == waiting["submission"]


@pytest.mark.parametrize("params", ["{", "[]", '"x"', "[" * 100_000], ids=lambda text: text[:3])
def test_a_label_with_unreadable_params_is_stored(
    app: Any, client: TestClient, submit: Callable[..., Any], params: str
) -> None:
    answer = submit(params)
    assert (answer.status_code, "kept but not used" in answer.json()["detail"]) == (422, True)
    assert unused(client) == [("a", "parked")]
    (parked,) = app._corrections.of_image("a")
    assert (app._corrections.path(parked) / parked.raw).is_file()


@pytest.mark.parametrize(
    ("query", "status", "found"),
    [({"tag": "../x"}, 422, ("a", "parked")), ({"image": "b"}, 404, ("b", "unfiled"))],
    ids=["tag", "image"],
)
def test_a_label_that_belongs_nowhere_is_stored(
    client: TestClient, submit: Callable[..., Any], query: dict[str, str], status: int, found: tuple[str, str]
) -> None:
    answer = submit(**query)
    assert (answer.status_code, "kept" in answer.json()["detail"]) == (status, True)
    assert unused(client) == [found]


def test_the_answer_begins_with_what_became_of_the_label(submit: Callable[..., Any]) -> None:
    reply = submit().json()
    assert next(iter(reply)) == "message"
    assert "finished label" in reply["message"]


@pytest.mark.slow
def test_a_server_reads_what_another_one_was_killed_over(tmp_path: Path) -> None:
    """Submissions that were stored when the server was killed were never read again."""
    from serving import running_server

    folder = tmp_path / "studies"
    folder.mkdir()
    write_volume(folder / "a.nii.gz", image_of(CODES), RAS)
    label = tmp_path / "label.nii.gz"
    write_volume(label, to_wire(CODES), RAS)
    receipts = Receipts(folder / ".totalspineseg")
    sender, params = Sender("admin", "ada", "label.nii.gz"), json.loads(NAMES)
    receipt = receipt_of("a", label, tag="final", sender=sender, params=params)
    receipts.keep(replace(receipt, id=receipts.new_id(())), label)
    store = CorrectionStore(folder / ".totalspineseg")
    with running_server(tmp_path):
        wait_for(lambda: store.in_force("a"))
    (remaining,) = store.of_image("a")
    np.testing.assert_array_equal(store.codes(remaining) == CODE_OF["L4"], CODE_OF["L4"] == CODES)
    assert (folder / "labels" / "final" / "a.nii.gz").is_file()


def test_a_saved_result_that_is_replaced_between_its_names_and_its_map_is_refused(
    app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3D Slicer gave the names of the first result to the voxels of the second."""
    monkeypatch.setattr(saved, "app_instance", lambda: app)
    monkeypatch.setattr(host_endpoint, "app_instance", lambda: app)
    front = FastAPI()
    errors.install(front)
    front.include_router(saved.router())
    reader = TestClient(front, raise_server_exceptions=False)
    query = {"label": "a", "tag": "original"}

    def save(*names: str) -> None:
        map_of = np.isin(CODES, [CODE_OF[name] for name in names]) * CODES
        write_volume(tmp_path / "saved.nii.gz", to_wire(map_of), RAS)
        report = {"label_names": dict(WIRE_LABELS), LISTED: list(names)}
        app.datastore().save_label("a", str(tmp_path / "saved.nii.gz"), "original", {"params": report})

    def names() -> list[str]:
        listed = reader.get("/datastore/", params={"output": "all"}).json()["objects"]["a"]["labels"]["original"]
        return list(listed["info"]["params"]["label_names"])

    save("L4", "L5")
    assert names() == ["L4", "L5"]
    assert reader.get("/datastore/label", params=query).status_code == 200
    save("L5", "L4")
    answer = reader.get("/datastore/label", params=query)
    assert (answer.status_code, "replaced" in answer.json()["detail"]) == (409, True)
    assert names() == ["L5", "L4"]
    assert reader.get("/datastore/label", params=query).status_code == 200


def test_scans_of_one_patient_are_one_subject_and_nobody_reads_whose(
    client: TestClient, app: Any, tmp_path: Path
) -> None:
    """Two uploads of a patient were two subjects: one could train, and the other one judge."""
    for name in ("b", "c"):
        write_volume(tmp_path / f"{name}.nii.gz", image_of(CODES) + ord(name), RAS)
        file = (f"{name}.nii.gz", (tmp_path / f"{name}.nii.gz").read_bytes())
        answer = client.put("/datastore/image", files={"file": file}, data={"params": json.dumps({"patient": "P-77"})})
        assert answer.json() == {"image": name}
    client.put("/datastore/image/info", params={"image": "a"}, data={"info": json.dumps({"patient": "P-78"})})
    site = folder_site(tmp_path / "studies", app.models)
    for subject in (app._subject, site.subject):
        first, second, other = (subject(name) for name in ("b", "c", "a"))
        assert first == second != other
    stored = (path.read_bytes() for path in (tmp_path / "studies").rglob("*.json"))
    assert not any(b"P-7" in content for content in stored)
