"""Tests that the queue of inference skips clients that have left, and has a limit."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.front import infer
from totalspineseg_server.infers.http import BUSY
from totalspineseg_server.infers.services import Progress

SECONDS = 30.0
PATH = "/infer/totalspineseg"


class App:
    """Predicts when the test lets it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.served, self.progress = folder, list[str](), Progress()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.served.append(request["image"])
        clock = Stopwatch(self.progress.enter)
        with self.progress.of("totalspineseg", request["image"]), clock("step 1 network"), clock("odd discs"):
            self.begun.set()
            self.go_on.wait(SECONDS)
        file = self.folder / "result.nrrd"
        file.write_bytes(b"labels")
        return {"file": str(file), "params": {"message": "The names\u2026", "marked": ["L4"], "prediction": "p"}}

    def infer_progress(self) -> dict[str, Any] | None:
        return self.progress.as_json()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    app = App(tmp_path)
    monkeypatch.setattr(infer, "app_instance", lambda: app)
    return app


@pytest.fixture
def front() -> Iterator[FastAPI]:
    with ThreadPoolExecutor(1) as executor:
        front = FastAPI()
        front.include_router(infer.router(executor))
        yield front


@pytest.mark.parametrize("reads", [True, False], ids=["with a body", "without one"])
def test_nothing_is_computed_for_a_client_that_has_gone(app: App, front: FastAPI, reads: bool) -> None:
    """Each press of the button after a client's time-out made everybody wait for one more result."""
    kind = [(b"content-type", b"application/x-www-form-urlencoded")] if reads else []
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"image=a", "headers": kind}
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_: object) -> None:
        pass

    app.go_on.set()
    anyio.run(front, scope, receive, send)
    assert app.served == []


def test_whoever_waits_sees_what_the_server_does_and_what_is_doubtful_in_the_end(app: App, front: FastAPI) -> None:
    """OHIF said "Running" for minutes, and threw the report of the result away."""
    with TestClient(front) as client, ThreadPoolExecutor(2) as pool:
        assert client.get("/infer/progress").json() == {"running": None, "waiting": 0}
        first = pool.submit(client.post, f"{PATH}?image=a&output=image")
        assert app.begun.wait(SECONDS)
        second = pool.submit(client.post, f"{PATH}?image=b&output=image")
        while (now := client.get("/infer/progress").json())["waiting"] == 0:
            pass
        assert (now["running"]["image"], now["waiting"]) == ("a", 1)
        assert "Step 1" in now["running"]["stage"], "a stage that readers are not told is part of the one before it"
        assert 1 < now["running"]["place"] < now["running"]["stages"]
        app.go_on.set()
        for reply in (first.result(), second.result()):
            report = json.loads(reply.headers[infer.REPORT_HEADER])
            assert report == {"message": "The names\u2026", "marked": ["L4"], "prediction": "p", "warning": None}
        assert client.get("/infer/progress").json()["running"] is None


def test_the_line_has_an_end(app: App, front: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in a loop filled the disk with waiting images."""
    monkeypatch.setattr(infer, "MAX_WAITING", 1)
    with TestClient(front) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, f"{PATH}?image=a&output=image")
        assert app.begun.wait(SECONDS)
        refused = client.post(f"{PATH}?image=b")
        app.go_on.set()
        assert (refused.status_code, first.result(SECONDS).content) == (BUSY, b"labels")
        assert client.post(f"{PATH}?image=c&output=image").content == b"labels"
    assert app.served == ["a", "c"]
