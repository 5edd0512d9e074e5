"""Tests of two server processes on one studies folder: no submission is lost, and readers get different images."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from phantom import RAS, image_of, lumbar_codes
from serving import MAX_UPLOAD_MB, Server, phantom_server
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.segments import to_wire

IMAGES = tuple(f"scan-{number}" for number in range(6))
NAMES = json.dumps({"label_info": [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]})
SEEN_SECONDS = 60
"""For one server to see what the other wrote, on a busy machine."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers on one folder, each with its own app folder and log."""
    folder = tmp_path_factory.mktemp("two")
    studies = folder / "studies"
    studies.mkdir()
    for name in IMAGES:
        write_volume(studies / f"{name}.nii.gz", image_of(lumbar_codes()), RAS)
    for name in ("one", "other"):
        (folder / name).mkdir()
    with (
        phantom_server(folder / "one", studies, MAX_UPLOAD_MB) as one,
        phantom_server(folder / "other", studies, MAX_UPLOAD_MB) as other,
    ):
        yield one, other


def offered(server: Server, client: str) -> str:
    answer = requests.post(f"{server.url}/activelearning/first", json={"client_id": client}, timeout=120)
    answer.raise_for_status()
    return str(answer.json()["id"])


def submit(server: Server, image: str, label: Path, client: str) -> str:
    fields = json.dumps({**json.loads(NAMES), "client_id": client})
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": image},
        files={"label": (label.name, label.read_bytes())},
        data={"params": fields},
        timeout=240,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["correction"])


def wait_until(true: object, server: Server) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while not true(server):  # type: ignore[operator]
        assert time.monotonic() < deadline, server.log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.2)


def test_readers_of_two_servers_get_different_images(servers: tuple[Server, Server]) -> None:
    """An image that the other server had offered since this one first looked was offered again."""
    one, other = servers
    arguments: list[str] = []
    for number in range(len(IMAGES)):
        server, reader = servers[number % 2], f"reader-{number}"
        image = offered(server, reader)
        arguments.append(image)

        def knows(server: Server, image: str = image) -> bool:
            info = requests.get(f"{server.url}/datastore/image/info", params={"image": image}, timeout=120)
            return "strategy" in info.json()

        for each in (one, other):
            wait_until(knows, each)
    assert sorted(arguments) == list(IMAGES)


def test_submissions_to_two_servers_at_once_are_all_stored_and_displayed(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    studies = servers[0].log.parent.parent / "studies"
    label = tmp_path / "label.nii.gz"
    write_volume(label, to_wire(lumbar_codes()), RAS)
    # Every image is submitted to both, at the same moment.
    jobs = [(server, image, label, f"{number}") for image in IMAGES for number, server in enumerate(servers)]
    with ThreadPoolExecutor(4) as readers:
        ids = list(readers.map(lambda job: submit(*job), jobs))
    assert len(set(zip([image for _, image, _, _ in jobs], ids, strict=True))) == len(jobs)
    history = studies / ".totalspineseg" / "corrections"
    for (_, image, _, _), name in zip(jobs, ids, strict=True):
        assert (history / image / name).is_dir()
    assert set(StudiesDatastore(str(studies), auto_reload=False).get_labeled_images()) == set(IMAGES)

    def all_finished(server: Server) -> bool:
        return bool(requests.get(f"{server.url}/datastore/", timeout=120).json()["completed"] == len(IMAGES))

    for server in servers:
        wait_until(all_finished, server)
        for image in IMAGES:
            answer = requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=120)
            (tmp_path / "shown.nii.gz").write_bytes(answer.content)
            assert (read_labels(tmp_path / "shown.nii.gz").data == to_wire(lumbar_codes())).all()
        assert requests.post(f"{server.url}/activelearning/first", json={}, timeout=120).json() == {}
        assert "Traceback" not in server.log.read_text(encoding="utf-8")
