"""Tests that any failure reaches the client as a status and one sentence, without a traceback."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from fastapi import FastAPI, Form, HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from starlette.testclient import TestClient

from phantom import RAS, image_of, lumbar_codes
from totalspineseg_server.errors import StorageError
from totalspineseg_server.front import background_routes, host, studies
from totalspineseg_server.front import failures as errors
from totalspineseg_server.front.description import described
from totalspineseg_server.front.guard import Guard, Known
from totalspineseg_server.io.volumes import write_volume


def failing(error: Exception) -> TestClient:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    def fail() -> None:
        raise error

    return TestClient(app, raise_server_exceptions=False)


def upstream(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("secret", response=response)


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), 507, "disk", id="disk full"),
        pytest.param(StorageError("There is no room. Free disk space."), 507, "room", id="storage"),
        pytest.param(PermissionError(errno.EACCES, "secret"), 500, "server's log", id="permission"),
        pytest.param(RuntimeError("secret"), 500, "server's log", id="bug"),
        pytest.param(ImageNotFoundException("Image x not found"), 404, "not found", id="host's unknown image"),
        pytest.param(MONAILabelException(MONAILabelError.APP_ERROR, "no strategy"), 422, "strategy", id="host's"),
        pytest.param(upstream(401), 401, "password", id="wrong password"),
        pytest.param(upstream(503), 502, "did not answer", id="identity server ill"),
        pytest.param(requests.ConnectionError("secret"), 502, "did not answer", id="identity server gone"),
        pytest.param(HTTPException(418, "tea"), 418, "tea", id="http"),
    ],
)
def test_answers(error: Exception, status: int, word: str) -> None:
    answer = failing(error).get("/")
    assert answer.status_code == status
    assert word in answer.json()["detail"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "fact"),
    [("/batch/infer/m", "A batch inference"), ("/scoring/doubt", "Scoring")],
)
def test_what_runs_already_is_named_in_a_sentence(path: str, fact: str) -> None:
    """The answer was a line of MONAI Label's log that begins with ten plus signs."""
    app = FastAPI()
    errors.install(app)

    @app.post(path)
    def run() -> None:
        raise HTTPException(429, "++++++++++ Task is Already Running")

    answer = TestClient(app).post(path)
    assert answer.status_code == 429
    assert answer.json()["detail"].startswith(fact) and "stop it" in answer.json()["detail"]


def test_a_disk_that_fills_while_a_body_comes_is_507() -> None:
    """The web framework turned it into "There was an error parsing the body"."""
    error = HTTPException(400, "There was an error parsing the body")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failing(error).get("/").status_code == 507


def guarded(origins: tuple[str, ...] = (), limit: int = 1 << 20) -> TestClient:
    app = FastAPI()
    errors.install(app)

    @app.post("/form")
    def form(text: str = Form()) -> int:
        return len(text)

    known = Known(models=("m",), trainers=("t",), scorers=(), strategies=(), on_server=True)
    app.add_middleware(Guard, known=lambda: known, origins=origins, max_upload_bytes=limit, names=["testserver"])
    return TestClient(app)


def test_a_body_of_unknown_length_is_measured_while_it_comes() -> None:
    """A chunked body has no length that could be checked before."""
    client = guarded(limit=1000)
    headers = {"content-type": "application/x-www-form-urlencoded"}
    parts = (b"text=" + b"x" * 90 for _ in range(20))
    assert client.post("/form", content=parts, headers=headers).status_code == 413
    assert client.post("/form", content=iter([b"text=abc"]), headers=headers).json() == 3


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://viewer.example", 200), ("https://evil.example", 403), ("null", 403), ("http://testserver", 200)],
)
def test_only_allowed_origins_may_change_something(origin: str, status: int) -> None:
    client = guarded(origins=("https://viewer.example",))
    assert client.post("/form", data={"text": "a"}, headers={"origin": origin}).status_code == status


@pytest.mark.parametrize(
    ("path", "status"),
    [("/train/t", 404), ("/train/x", 404), ("/batch/infer/m", 404), ("/proxy/dicom/wado/x", 404), ("/form", 422)],
)
def test_known_names_pass(path: str, status: int) -> None:
    answer = guarded().post(path)
    assert answer.status_code == status
    refused = path == "/train/x"
    assert ("Choose one of" in answer.text) is refused


def test_an_image_that_the_server_cannot_store_is_not_its_senders_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or an index in use by another program, was answered as an unusable image."""

    def full(*_: Any) -> str:
        raise StorageError("There is no room. Free disk space.")

    app = FastAPI()
    errors.install(app)
    app.include_router(studies.router(1 << 20))
    app_of_host = SimpleNamespace(add_image=full)
    monkeypatch.setattr(studies, "app_instance", lambda: app_of_host)
    write_volume(tmp_path / "one.nii.gz", image_of(lumbar_codes()), RAS)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.put("/datastore/", files={"file": ("one.nii.gz", (tmp_path / "one.nii.gz").read_bytes())})
    assert (answer.status_code, "Free disk space" in answer.json()["detail"]) == (507, True)


@pytest.mark.parametrize(
    ("tasks", "other_program", "status"),
    [
        ((), (False,), 200),
        (("DONE", "ERROR"), (False,), 200),
        (("DONE", "SUBMITTED"), (False,), 429),
        (("RUNNING",), (False,), 429),
        ((), (True, False), 200),
        ((), (True,), 429),
    ],
    ids=["none", "ended", "waits", "runs", "one that was stopped is ending", "of another program"],
)
def test_one_training_runs_at_a_time(
    tasks: tuple[str, ...], other_program: tuple[bool, ...], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings at once wrote into the same versions."""
    looks = list(other_program)
    calls = SimpleNamespace(
        check_training=lambda *_: None,
        free_networks=lambda: None,
        is_training=lambda: looks.pop(0) if len(looks) > 1 else looks[0],
    )
    monkeypatch.setattr(background_routes, "app_instance", lambda: calls)
    monkeypatch.setattr(background_routes, "run_model", lambda *_: {})
    monkeypatch.setattr(background_routes, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(background_routes, "KILLED_SECONDS", 0.02)
    monkeypatch.setattr(host, "tasks", lambda method: [{"status": each} for each in tasks if method == "train"])
    app = FastAPI()
    errors.install(app)
    app.include_router(background_routes.router())
    client = TestClient(app)
    assert client.post("/train/t", json={}).status_code == status
    assert client.post("/train/t", params={"enqueue": True}, json={}).status_code == 200, "it waits its turn"


def test_the_description_lists_what_this_server_offers() -> None:
    """A generated client offered images as names of models, and routes that answer nobody here."""

    def parameter(name: str, place: str, **schema: str) -> dict[str, Any]:
        return {"name": name, "in": place, "schema": {"type": "string", **schema}}

    infer = {
        "parameters": [parameter("model", "path"), parameter("image", "query", default=""), parameter("id", "query")]
    }
    label = {"parameters": [parameter("name", "path"), parameter("token", "query")]}
    paths = {"/infer/{model}": {"post": infer}, "/x/{name}": {"get": label}, "/proxy/x": {}, "/scoring/{method}": {}}
    form = {"properties": {"params": {"type": "string"}, "file": {"type": "string"}, "info": {"type": "integer"}}}
    document = {"paths": paths, "components": {"schemas": {"Form": form, "Other": {"type": "object"}}}}

    known = Known(models=("b", "a"), trainers=(), scorers=(), strategies=(), on_server=False)
    found = described(json.loads(json.dumps(document)), known)
    assert list(found["paths"]) == ["/infer/{model}", "/x/{name}"]
    model, image, other = found["paths"]["/infer/{model}"]["post"]["parameters"]
    assert model["schema"] == {"type": "string", "enum": ["a", "b"]}
    assert image["schema"]["anyOf"][0]["maxLength"] == other["schema"]["maxLength"] == 200
    assert image["schema"]["anyOf"][1] == {"const": ""}
    assert found["paths"]["/x/{name}"]["get"]["parameters"] == label["parameters"][:1]
    fields = found["components"]["schemas"]["Form"]["properties"]
    assert [name for name, field in fields.items() if "contentSchema" in field] == ["params"]
    assert found["components"]["schemas"]["Other"] == {"type": "object"}

    known = Known(models=(), trainers=(), scorers=("s",), strategies=(), on_server=True)
    found = described(json.loads(json.dumps(document)), known)
    assert list(found["paths"]) == list(paths)
    assert "enum" not in found["paths"]["/infer/{model}"]["post"]["parameters"][0]["schema"]
