"""Tests that the memory, files and threads of a server do not grow with the number of requests."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from phantom import image_of, lumbar_codes
from serving import Server, running_server
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume

REQUESTS, ROUND = 1000, 100
IMAGES = 4
MEMORY_MIB = 40
"""Memory that the process may take beyond the first hundred requests: what the allocator holds back. A leaked scan in
each request would take ten times as much."""
RECORD_KIB = 4
"""Size of the record of a prediction, which is all that is kept of it."""
OPEN = 4
"""Allowed change in the number of files and threads: connections that the client has not closed yet."""
SLOWER = 1.3
"""CPU seconds of the last hundred requests as a multiple of those of the second hundred."""


@dataclass(frozen=True)
class Held:
    """What the server uses after a round.

    Attributes:
        memory_mib: Resident memory.
        files: Number of open files.
        threads: Number of threads.
        cpu_s: CPU seconds since its start.
    """

    memory_mib: float
    files: int
    threads: int
    cpu_s: float


def held(process: psutil.Process) -> Held:
    times = process.cpu_times()
    return Held(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads(), times.user + times.system)


def stored(folder: Path) -> dict[str, int]:
    """Return file -> bytes."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


MAPS = "/.totalspineseg/maps/"
IMAGE_RECORDS = "/.totalspineseg/images/"
"""One record of each image that was offered."""
CONTENTS = "studies/.totalspineseg/contents.json"


def ask(server: Server, number: int, image: Path) -> None:
    """Send one request of a reader's day: mostly about images of the studies, sometimes with an image, sometimes
    another question."""
    question = {"params": {"client_id": f"reader-{number % 3}"}, "data": {"params": "{}"}, "timeout": 120}
    if number % 10 == 0:
        requests.get(f"{server.url}/info/", timeout=120).raise_for_status()
        requests.post(f"{server.url}/activelearning/random", json={}, timeout=120).raise_for_status()
        with image.open("rb") as file:
            answer = requests.post(f"{server.url}/infer/totalspineseg", files={"file": (image.name, file)}, **question)
    else:
        question["params"] |= {"image": f"scan-{number % IMAGES}"}
        answer = requests.post(f"{server.url}/infer/totalspineseg", **question)
    assert answer.status_code == 200, answer.text


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_a_thousand_requests_leave_nothing_but_their_records(tmp_path: Path) -> None:
    codes = np.ascontiguousarray(lumbar_codes()[:, 10:70, 2:118])
    (tmp_path / "studies").mkdir()
    for number in range(IMAGES):
        scan = image_of(codes) + number / 100
        write_volume(tmp_path / "studies" / f"scan-{number}.nii.gz", scan, Grid(codes.shape, np.eye(4)))
    sent = tmp_path / "sent.nii.gz"
    write_volume(sent, image_of(codes) + 1, Grid(codes.shape, np.eye(4)))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    rounds: list[Held] = []
    with running_server(tmp_path, environment={"TMPDIR": str(temporary)}) as server:
        process = psutil.Process(server.process.pid)
        for number in range(REQUESTS):
            ask(server, number, sent)
            if number == ROUND - 1:
                before = stored(tmp_path)
            if number % ROUND == ROUND - 1:
                rounds.append(held(process))
        after = stored(tmp_path)
    first, second, last = rounds[0], rounds[1], rounds[-1]
    assert last.memory_mib - first.memory_mib < MEMORY_MIB, rounds
    assert last.files <= first.files + OPEN, rounds
    assert last.threads <= first.threads + OPEN, rounds
    assert last.cpu_s - rounds[-2].cpu_s < SLOWER * (second.cpu_s - first.cpu_s), rounds
    assert sum(MAPS in name for name in after) <= sum(MAPS in name for name in before), "maps replace older ones"
    own = (MAPS, IMAGE_RECORDS, CONTENTS)
    new = {name: size for name, size in after.items() if name not in before and not any(one in name for one in own)}
    assert set(Counter(Path(name).name for name in new)) == {"record.json"}, sorted(new)[:20]
    assert max(new.values()) < RECORD_KIB * 1024
    grown = {name: after[name] - size for name, size in before.items() if after.get(name, 0) > size}
    assert {name for name in grown if IMAGE_RECORDS not in name} <= {"server.log", CONTENTS}, grown
    assert all(size < RECORD_KIB * 1024 for name, size in grown.items() if name != "server.log")
