"""Tests of the server's end: within a limited time even if a request hangs, and after submissions in progress."""

import asyncio
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from phantom import RAS, image_of, lumbar_codes
from serving import Server, running_server
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.corrections.inbox import Ongoing
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.processes import STOP_SECONDS
from totalspineseg_server.segments import to_wire
from totalspineseg_server.server import REQUEST_SECONDS, REST_SECONDS, SUBMISSION_SECONDS

HANGS, LABEL_SECONDS, REQUESTS_SECONDS = 10_000, 6.0, 1
"""A request that never ends, a submission that takes longer than the server waits for requests."""


def ask(server: Server) -> bool:
    """Return whether the server answers."""
    try:
        return requests.get(f"{server.url}/info/", timeout=120).ok
    except requests.ConnectionError:
        return False


def submit(server: Server, label: Path) -> None:
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    with label.open("rb") as file:
        requests.put(
            f"{server.url}/datastore/label?image=one",
            files={"label": (label.name, file)},
            data={"params": json.dumps({"label_info": names})},
            timeout=120,
        )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hanging_request_does_not_hold_up_the_end_and_a_submission_is_finished(tmp_path: Path, number: int) -> None:
    """A request that hung kept the server from ending, until it was killed with everything that was being written."""
    (tmp_path / "studies").mkdir()
    write_volume(tmp_path / "studies" / "one.nii.gz", image_of(lumbar_codes()), RAS)
    label = tmp_path / "label.nii.gz"
    write_volume(label, to_wire(lumbar_codes()), RAS)
    with (
        running_server(tmp_path, request_seconds=REQUESTS_SECONDS) as server,
        ThreadPoolExecutor() as clients,
    ):
        (server.signals / "slow-label").write_text(str(LABEL_SECONDS), encoding="utf-8")
        sent = clients.submit(submit, server, label)
        history = server.studies / ".totalspineseg" / "corrections" / "one"
        while not (history.is_dir() and any(history.glob("2*"))):
            assert not sent.done()
            time.sleep(0.05)
        (server.signals / "slow-folder").write_text(str(HANGS), encoding="utf-8")
        asked = clients.submit(ask, server)
        time.sleep(0.5)
        assert not asked.done()
        server.process.send_signal(number)
        server.process.wait(LABEL_SECONDS + REST_SECONDS + 20)
        assert server.process.returncode in (0, -number)
        assert not asked.result(10)
    studies = StudiesDatastore(str(server.studies), auto_reload=False)
    assert list(studies.json()["objects"]["one"]["labels"]) == ["final"], "the submission was cut off"


def test_the_end_comes_before_whoever_waits_for_it_kills() -> None:
    assert REQUEST_SECONDS + SUBMISSION_SECONDS + REST_SECONDS < STOP_SECONDS


def test_nobody_waits_forever_for_a_submission_that_hangs() -> None:
    ongoing = Ongoing()
    assert asyncio.run(ongoing.finish(0))
    with ongoing.one():
        assert not asyncio.run(ongoing.finish(0.2))
    assert asyncio.run(ongoing.finish(0))
