"""Tests that the front closes security holes of MONAI Label, each with a request that used to get through."""

import json
import tempfile
from pathlib import Path

import pytest
import requests
from monailabel.config import settings

from serving import Server
from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.front.guard import foreign_host, own_names


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
        ("POST", "/scoring/doubt?run_sync=true", 400),
        ("POST", "/scoring/dice", 404),
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
    [
        *[(own, 200) for own in ("127.0.0.1:{port}", "localhost", "[::1]:{port}", "10.0.0.7:{port}", "Spine.example")],
        *[(other, 400) for other in ("evil.example:{port}", "[", "")],
    ],
)
def test_answers_to_its_own_names_alone(server: Server, host: str, status: int) -> None:
    """A page whose name resolves to 127.0.0.1 could read every study through the reader's browser."""
    port = server.url.rsplit(":", 1)[1]
    answer = requests.get(f"{server.url}/info/", headers={"Host": host.format(port=port)}, timeout=20)
    assert answer.status_code == status, answer.text


def test_on_a_network_other_names_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was opened to a network answered to any name, so every page that a reader opened could read the
    studies."""
    monkeypatch.setattr("socket.gethostname", lambda: "Station7")
    monkeypatch.setattr("socket.getfqdn", lambda: "station7.clinic.example")
    names = own_names("0.0.0.0", ["spine.example"])
    for own in ("station7:8000", "STATION7.clinic.example", "spine.example", "192.168.1.5:8000", "[fe80::1]:8000"):
        assert foreign_host(own, names) is None
    for other in (
        "evil.example",
        "evil.example:8000",
        "station7.evil.example",
        "192.168.1.5.evil.example",
        "0x7f000001",
    ):
        refusal = foreign_host(other, names)
        assert refusal is not None
        assert "--name" in refusal.detail
    assert foreign_host("station7", own_names("127.0.0.1")) is not None


@pytest.mark.parametrize("field", ["image", "image_id", "label", "session", "label_from"])
def test_parameters_cannot_name_a_path(server: Server, field: str) -> None:
    """``params`` replaced the image by any readable path."""
    secret = str(server.studies.parent / "secret.nii.gz")
    answer = requests.post(
        f"{server.url}/infer/totalspineseg_step2",
        params={"image": "z-last"},
        data={"params": json.dumps({field: secret})},
    )
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert "no step-1 label" in detail or "expected a label" in detail


def test_batch_parameters_cannot_name_a_path(server: Server) -> None:
    before = sorted(p.name for p in server.studies.parent.iterdir())
    secret = str(server.studies.parent / "secret.nii.gz")
    requests.post(f"{server.url}/batch/infer/totalspineseg", json={"images": [secret], "image": secret}, timeout=10)
    assert sorted(p.name for p in server.studies.parent.iterdir()) == before


def test_a_foreign_page_gets_nothing(server: Server) -> None:
    """Any origin was allowed, with credentials."""
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


@pytest.mark.parametrize("path", ["/", "/docs", "/ohif/", "/static/ohif/index.html"])
def test_pages_load_things_of_this_server_alone(server: Server, path: str) -> None:
    """Scripts from cdn.jsdelivr.net ran in the server's name and could read every study."""
    page = requests.get(f"{server.url}{path}", timeout=20)
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    if "ohif" not in path:
        assert "://" not in page.text


def test_the_log_is_plain_text_without_folders(server: Server) -> None:
    """MONAI Label's page ran scripts from two other servers, and lines=-1 gave the whole log with every path of the
    machine."""
    log = requests.get(f"{server.url}/logs/", params={"lines": 300, "refresh": 3}, timeout=20)
    assert (log.headers["content-type"].split(";")[0], log.headers["refresh"]) == ("text/plain", "3")
    assert "Session Path: .totalspineseg/sessions" in log.text
    assert str(server.studies) not in log.text
    assert requests.get(f"{server.url}/logs/?lines=2&html=true", timeout=20).text.count("\n") == 2
    for lines in ("-1", "0", "1000000", "all"):
        refused = requests.get(f"{server.url}/logs/", params={"lines": lines}, timeout=20)
        assert refused.status_code == 422
        assert "lines" in refused.json()["detail"]


def test_folders_of_the_server_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "/srv/mri/")
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {"work": "/srv/mri-work"})
    for text, reported in {
        "permission to write to /srv/mri/.totalspineseg/maps is required": "write to .totalspineseg/maps is required",
        "write to /srv/mri-work, got": "write to mri-work, got",
        "'/srv/mri' is required": "'mri' is required",
        "/srv/mri2/a and proxy/srv": "/srv/mri2/a and proxy/srv",
        f"room in {tempfile.gettempdir()} is required": f"room in {Path(tempfile.gettempdir()).name} is required",
        "an address below /proxy/dicom/wado": "an address below /proxy/dicom/wado",
    }.items():
        assert reported in without_folders(text)


def test_an_oversized_request_is_refused(server: Server) -> None:
    big = b"\0" * (9 << 20)
    for data in (big, (big[: 1 << 20] for _ in range(9))):
        answer = requests.put(f"{server.url}/datastore/image", params={"image": "big"}, data=data, timeout=20)
        assert answer.status_code in (413, 422)
    files = {"file": ("big.nii", big)}
    answer = requests.put(f"{server.url}/datastore/image", params={"image": "big"}, files=files, timeout=20)
    assert (answer.status_code, "8 MiB" in answer.json()["detail"]) == (413, True)


def test_the_server_listens_on_loopback_by_default() -> None:
    from totalspineseg_server import server as module

    assert module.DEFAULT_HOST == "127.0.0.1"


def test_temporary_files_are_gone(server: Server) -> None:
    def ours() -> set[str]:
        return {path.name for path in (server.studies.parent / "temporary").glob("totalspineseg-*")}

    before = ours()
    answer = requests.post(
        f"{server.url}/infer/totalspineseg", params={"image": "z-last", "output": "image"}, timeout=60
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert ours() <= before
