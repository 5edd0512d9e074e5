"""Holes of the host that the front closes, each by a request that used to go through."""

import json
from pathlib import Path

import pytest
import requests

from serving import Server


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/reload", 403),
        ("POST", "/reload/", 403),
        ("POST", "//reload", 403),
        ("PUT", "/model/totalspineseg", 403),
        ("DELETE", "/model/totalspineseg", 403),
        ("GET", "/model/totalspineseg", 404),
        ("PUT", "/datastore/label?image=z-last&tag=../../../up", 400),
        ("GET", "/datastore/label?label=z-last&tag=..%2F..", 400),
        ("PUT", "/datastore/image?image=one%0Atwo", 400),
        ("GET", "/datastore/image?image=../secret", 404),
        ("GET", "/datastore/label?label=../secret&tag=final", 404),
        ("DELETE", "/datastore/?id=../secret", 404),
        ("POST", "/infer/totalspineseg?session_id=..%2F..", 400),
        ("GET", "/session/..%2F..%2Fsecret", 400),
        ("GET", "/session/.hidden", 400),
        ("POST", "/infer/wsi/totalspineseg", 404),
        ("POST", "/infer/wsi_v2/totalspineseg", 404),
        ("GET", "/proxy/dicom/wado/etc", 404),
        ("POST", "/batch/infer/totalspineseg?run_sync=true", 400),
        ("GET", "/datastore/dataset", 404),
        ("GET", "/ohif/..%2F..%2F..%2F..%2Fapp.py", 400),
    ],
    ids=lambda v: str(v).replace("/", "|"),
)
def test_closed(server: Server, method: str, path: str, status: int) -> None:
    # The path is sent as written: clients would tidy "..".
    request = requests.Request(method, server.url).prepare()
    request.url = server.url + path
    with requests.Session() as session:
        answer = session.send(request, timeout=20)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:{port}", 200), ("localhost", 200), ("[::1]:{port}", 200), ("evil.example:{port}", 400), ("[", 400)],
)
def test_answers_to_its_own_name_alone(server: Server, host: str, status: int) -> None:
    """A page whose name resolves to 127.0.0.1 could read every study through the reader's browser."""
    port = server.url.rsplit(":", 1)[1]
    answer = requests.get(f"{server.url}/info/", headers={"Host": host.format(port=port)}, timeout=20)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("field", ["image", "image_id", "label", "session", "label_from"])
def test_parameters_cannot_name_a_path(server: Server, field: str) -> None:
    """``params`` overrode the image with any readable path."""
    secret = str(server.studies.parent / "secret.nii.gz")
    answer = requests.post(
        f"{server.url}/infer/totalspineseg_step2",
        params={"image": "z-last"},
        data={"params": json.dumps({field: secret})},
    )
    assert answer.status_code == 422
    assert "is required" in answer.json()["detail"]


def test_batch_parameters_cannot_name_a_path(server: Server) -> None:
    before = sorted(p.name for p in server.studies.parent.iterdir())
    secret = str(server.studies.parent / "secret.nii.gz")
    requests.post(f"{server.url}/batch/infer/totalspineseg", json={"images": [secret], "image": secret}, timeout=10)
    assert sorted(p.name for p in server.studies.parent.iterdir()) == before


def test_a_foreign_page_gets_nothing(server: Server) -> None:
    """Any origin was reflected, with credentials."""
    evil = {"origin": "http://evil.example"}
    read = requests.get(f"{server.url}/info/", headers=evil, timeout=10)
    assert "access-control-allow-origin" not in read.headers
    assert requests.post(f"{server.url}/activelearning/first", headers=evil, json={}).status_code == 403
    asked = requests.options(
        f"{server.url}/datastore/label", headers={**evil, "access-control-request-method": "PUT"}, timeout=10
    )
    assert "access-control-allow-origin" not in asked.headers
    own = {"origin": server.url}
    assert requests.post(f"{server.url}/activelearning/first", headers=own, json={}).status_code == 200


def test_an_oversized_request_is_refused(server: Server) -> None:
    big = b"\0" * (9 << 20)
    for data in (big, (big[: 1 << 20] for _ in range(9))):
        answer = requests.put(f"{server.url}/datastore/image", params={"image": "big"}, data=data, timeout=20)
        assert answer.status_code in (413, 422)
    files = {"file": ("big.nii", big)}
    answer = requests.put(f"{server.url}/datastore/image", params={"image": "big"}, files=files, timeout=20)
    assert (answer.status_code, "8 MiB" in answer.json()["detail"]) == (413, True)


def test_the_server_listens_on_loopback_by_default() -> None:
    from lib import server as module

    assert module.DEFAULT_HOST == "127.0.0.1"


def test_temporary_files_are_gone(server: Server) -> None:
    import tempfile

    def ours() -> set[str]:
        return {p.name for p in Path(tempfile.gettempdir()).glob("totalspineseg-*")}

    before = ours()
    answer = requests.post(
        f"{server.url}/infer/totalspineseg", params={"image": "z-last", "output": "image"}, timeout=60
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert ours() <= before
