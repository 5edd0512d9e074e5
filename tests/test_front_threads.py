"""A datastore that lets one client wait, such as a slow PACS, lets nobody else wait."""

import threading
from typing import Any

import pytest
from fastapi import FastAPI
from monailabel.endpoints import datastore, info
from starlette.testclient import TestClient

from lib.front import threads

SECONDS = 10.0


class SlowApp:
    """Every question to it, or to its datastore, waits until somebody else was answered."""

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
    ],
)
def test_others_are_answered_meanwhile(method: str, path: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, app, answers = SlowApp(), FastAPI(), []
    for module in (info, datastore):
        monkeypatch.setattr(module, "app_instance", lambda: slow)
    app.include_router(threads.router())

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
