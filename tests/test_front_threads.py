"""Tests that a PACS or a program that keeps one client waiting delays nobody else, and that it cannot keep a client
waiting forever."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, info, scoring
from monailabel.utils.async_tasks.utils import background_executors
from starlette.testclient import TestClient

from test_pacs_outage import http_server
from totalspineseg_server.front import host, logs, proxy

pytestmark = pytest.mark.slow

SECONDS = 10.0


class SlowApp:
    """An app that answers nothing until somebody else was answered."""

    def __init__(self) -> None:
        self.asked, self.others_answered = threading.Event(), threading.Event()
        self.in_time: list[bool] = []

    def datastore(self) -> "SlowApp":
        return self

    def __getattr__(self, name: str) -> Any:
        return self._wait

    def _wait(self, *_: object) -> str:
        self.asked.set()
        self.in_time.append(self.others_answered.wait(SECONDS))
        return ""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/info/", 200),
        ("GET", "/datastore/", 200),
        ("GET", "/datastore/?output=all", 200),
        ("GET", "/datastore/image?image=1.2", 404),
        ("HEAD", "/datastore/image?image=1.2", 404),
        ("GET", "/datastore/image/info?image=1.2", 200),
        ("PUT", "/datastore/image/info?image=1.2", 200),
        ("GET", "/datastore/label?label=1.2&tag=final", 404),
        ("HEAD", "/datastore/label?image=1.2&tag=final", 404),
        ("GET", "/datastore/label/info?label=1.2&tag=final", 200),
        ("DELETE", "/datastore/label?id=1.2&tag=final", 200),
        ("POST", "/batch/infer/totalspineseg", 200),
        ("POST", "/scoring/dice", 200),
    ],
)
def test_others_are_answered_during_an_inference(
    method: str, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, app, answers = SlowApp(), FastAPI(), []
    for module in (info, datastore):
        monkeypatch.setattr(module, "app_instance", lambda: slow)
    for module, name in ((batch_infer, "run"), (scoring, "run_method")):
        monkeypatch.setattr(module, name, slow._wait)
    app.include_router(host.router())

    @app.get("/other")
    async def other() -> None:
        slow.others_answered.set()

    with TestClient(app) as client:
        waiting = threading.Thread(target=lambda: answers.append(client.request(method, path)))
        waiting.start()
        assert slow.asked.wait(SECONDS)
        assert client.get("/other").status_code == 200
        waiting.join()
    assert answers[0].status_code == status
    assert slow.in_time == [True]


FRAMES = 64
"""More than there are threads for all requests together."""


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, threading.Event]]:
    """Path of a frame in a PACS that hangs until the test lets it answer."""
    go_on = threading.Event()

    def hang(request: BaseHTTPRequestHandler) -> None:
        go_on.wait(60)
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"pixels")

    with http_server(hang) as url:
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", url)
        yield "/proxy/dicom/wado/studies/1/series/2/instances/3/frames/1", go_on
        go_on.set()


def test_frames_that_hang_leave_room_for_others(frames: tuple[str, threading.Event]) -> None:
    """Two viewers on a PACS that hung kept everybody from submitting, listing images or stopping a training."""
    path, go_on = frames
    app = FastAPI()
    app.include_router(proxy.router())

    @app.get("/other")
    def other() -> None:
        """A request that needs a thread."""

    with TestClient(app) as client, ThreadPoolExecutor(FRAMES + 1) as pool:
        answers = [pool.submit(client.get, path) for _ in range(FRAMES)]
        time.sleep(1)
        assert pool.submit(client.get, "/other").result(SECONDS).status_code == 200
        assert not any(answer.done() for answer in answers)
        go_on.set()
        assert {answer.result(60).content for answer in answers} == {b"pixels"}


@pytest.mark.parametrize(
    ("program", "status", "content"),
    [("echo table", 200, "table"), ("sleep 60", 502, "within 0.5 s"), (None, 404, "no NVIDIA driver")],
    ids=["answers", "hangs", "none"],
)
def test_a_driver_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, status: int, content: str
) -> None:
    """After a request about the GPU, the server answered nobody."""
    file = tmp_path / "smi"
    if program:
        file.write_text(f"#!/bin/sh\nexec {program}\n", encoding="utf-8")
        file.chmod(0o755)
    monkeypatch.setattr(logs, "PROGRAM", str(file))
    monkeypatch.setattr(logs, "SECONDS", 0.5)
    app = FastAPI()
    app.include_router(logs.router())
    answer = TestClient(app).get("/logs/gpu")
    assert (answer.status_code, content in answer.text) == (status, True)


def test_what_waits_is_not_started_when_the_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ended a training, but not itself, because the next training had begun."""
    running, go_on, started = threading.Event(), threading.Event(), list[int]()

    def first() -> None:
        running.set()
        go_on.wait(SECONDS)

    executor = ThreadPoolExecutor(1)
    monkeypatch.setitem(background_executors, "train", executor)
    executor.submit(first)
    executor.submit(started.append, 2)
    assert running.wait(SECONDS)
    host.stop_background_tasks()
    go_on.set()
    executor.shutdown()
    assert started == []
