"""Tests of the viewer's page and the proxy without a PACS: what is changed, refused, and how requests are split."""

import asyncio
import io
import logging
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from pacs_serving import write_study
from phantom import PIR
from serving import Server
from totalspineseg_server.anatomy import STRUCTURES
from totalspineseg_server.front import front_messages, ohif, proxy, stow
from totalspineseg_server.front.bundle import CHANGES, read_bundle
from totalspineseg_server.front.stow import Upload, instances
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_seg
from totalspineseg_server.pacs.address import Address, PathError, is_uid, resource
from totalspineseg_server.pacs.outcomes import MAX_KEPT, Outcome, Outcomes


def small_bundle(folder: Path, **texts: str) -> Path:
    """A bundle with every place that is changed, each in its own script unless the test says otherwise."""
    for number, change in enumerate(CHANGES):
        (folder / f"{number}.js").write_text(f"before\n{change.old}after\n", encoding="utf-8")
    (folder / "index.html").write_text("<html><head></head><body><div id=root></div></body></html>", encoding="utf-8")
    for name, text in texts.items():
        (folder / f"{name}.js").write_text(text, encoding="utf-8")
    return folder


def test_the_installed_bundle_is_the_one_that_is_changed() -> None:
    """With another version of MONAI Label there would be no way to submit, and nobody would notice."""
    bundle = read_bundle(ohif.OHIF_FOLDER)
    assert bundle.missing == ()
    everything = b"".join(bundle.changed.values()).decode()
    for change in CHANGES:
        assert change.new in everything, change.purpose


def test_each_change_is_made_once(tmp_path: Path) -> None:
    bundle = read_bundle(small_bundle(tmp_path))
    assert bundle.missing == ()
    for number, change in enumerate(CHANGES):
        assert bundle.changed[f"{number}.js"].decode() == f"before\n{change.new}after\n"
        assert (tmp_path / f"{number}.js").read_text(encoding="utf-8") == f"before\n{change.old}after\n", (
            "the package is never edited"
        )


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=lambda n: CHANGES[n].purpose)
@pytest.mark.parametrize("copies", [0, 2], ids=["gone", "twice"])
def test_another_bundle_is_not_changed_and_the_page_says_so(
    tmp_path: Path, number: int, copies: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = small_bundle(tmp_path, **{"other": CHANGES[number].old} if copies else {})
    if not copies:
        (folder / f"{number}.js").write_text("another version", encoding="utf-8")
    with caplog.at_level(logging.ERROR):
        bundle = read_bundle(folder)
    assert bundle.missing == (CHANGES[number].purpose,)
    assert dict(bundle.changed) == {}
    assert CHANGES[number].purpose in caplog.text
    page = ohif._index(bundle).decode()
    assert "totalspineseg-missing" in page
    assert "pinned requirements" in page


def test_a_sound_page_has_the_script_and_no_warning(tmp_path: Path) -> None:
    page = ohif._index(read_bundle(small_bundle(tmp_path))).decode()
    assert page.count('<script src="/ohif/totalspineseg.js"></script></head>') == 1
    assert "totalspineseg-missing" not in page


def test_a_page_that_cannot_be_extended_says_so(tmp_path: Path) -> None:
    bundle = read_bundle(small_bundle(tmp_path))
    (tmp_path / "index.html").write_text("<html>other</html>", encoding="utf-8")
    page = ohif._index(bundle).decode()
    assert "pinned requirements" in page
    assert "totalspineseg-missing" in page


def test_the_script_has_the_table_s_colors() -> None:
    """The viewer derives colors from hashed names, so that T1 to T12 look alike."""
    colors = ohif.colors()
    assert {structure.name.lower() for structure in STRUCTURES} < set(colors)
    assert '"l4": [' in ohif._script().decode()


def test_the_script_lists_the_column_from_top_to_bottom() -> None:
    """T10 came before T2, and each disc far from its vertebrae: the viewer sorted by the alphabet."""
    order = ohif.order()
    assert order[:4] == ["C1", "C2", "C2-C3", "C3"]
    assert order[-6:] == ["L6", "L5-S", "sacrum", "vertebrae", "cord", "canal"]
    assert {structure.name for structure in STRUCTURES} < set(order)
    script = ohif._script().decode()
    assert '["C1", "C2"' in script
    assert not any(mark in script for mark in (ohif.ORDER_MARK, ohif.COLORS_MARK))


def test_the_viewer_is_served_changed_and_asked_for_each_time(server: Server) -> None:
    page = requests.get(f"{server.url}/ohif/", timeout=60)
    assert "default-src 'self'" in page.headers["content-security-policy"], "no study's address goes to a font server"
    name = next(iter(read_bundle(ohif.OHIF_FOLDER).changed))
    answer = requests.get(f"{server.url}/ohif/{name}", timeout=60)
    assert "no-cache" in answer.headers["cache-control"]
    assert "javascript" in answer.headers["content-type"]
    assert answer.content != (ohif.OHIF_FOLDER / name).read_bytes()
    again = requests.get(f"{server.url}/ohif/{name}", headers={"if-none-match": answer.headers["etag"]}, timeout=60)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("", 200, "totalspineseg.js"),
        ("monai-label?StudyInstanceUIDs=1.2", 200, "totalspineseg.js"),
        ("totalspineseg.js", 200, "window.totalspineseg"),
        ("app-config.js", 200, "/proxy/dicom"),
        ("no-such.js", 404, ""),
        ("%2e%2e/%2e%2e/__init__.py", 400, ""),
        ("..%2f..%2f__init__.py", 400, ""),
    ],
)
def test_files_of_the_viewer_alone(server: Server, path: str, status: int, text: str) -> None:
    request = requests.Request("GET", server.url).prepare()
    request.url = f"{server.url}/ohif/{path}"
    with requests.Session() as session:
        answer = session.send(request, timeout=60)
    assert answer.status_code == status
    assert text in answer.text


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["proxy/dicom/wado/studies", "proxy/dicom/studies", "proxy/x"])
def test_a_folder_of_studies_has_no_proxy(server: Server, method: str, path: str) -> None:
    assert requests.request(method, f"{server.url}/{path}", timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "wado/studies/1.2/series", 405),
        ("POST", "wado/studies/1.2/series/1.3", 405),
        ("POST", "qido/instances", 405),
        ("DELETE", "wado/studies/1.2", 405),
        ("PUT", "wado/studies", 405),
        ("GET", "studies", 404),
        ("GET", "other/studies", 422),
        ("DELETE", "../x", 404),
        ("GET", "../dicom", 404),
    ],
)
def test_a_viewer_can_change_nothing_in_the_pacs_but_add_instances(method: str, path: str, status: int) -> None:
    app = FastAPI()
    app.include_router(proxy.router())
    with TestClient(app) as client:
        assert client.request(method, f"/proxy/dicom/{path}".replace("dicom/../", "")).status_code == status


class Archive(HTTPAdapter):
    """Answers instead of a PACS, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[requests.PreparedRequest] = []
        self.bodies: list[bytes] = []
        self.status, self.kind, self.content = 200, "application/dicom+json", b"[]"

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:
        self.asked.append(request)
        self.bodies.append(b"" if request.body is None else request.body.read())  # type: ignore[union-attr]
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = self.status, str(request.url), request
        answer.headers = CaseInsensitiveDict({"content-type": self.kind, "set-cookie": "pacs=1"})
        answer.raw = io.BytesIO(self.content)
        return answer


DICOMWEB = Address("http://pacs:1/web", qido="qido-rs", wado="wado-rs", stow="stow-rs")


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Archive:
    session, archive = requests.Session(), Archive()
    session.mount("http://pacs", archive)
    monkeypatch.setattr(proxy, "configured_session", lambda: session)
    monkeypatch.setattr(proxy, "configured_address", lambda: DICOMWEB)
    return archive


@pytest.fixture
def viewer(archive: Archive) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(proxy.router(), prefix="")
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "content", "stored"),
    [
        (200, b'[{"00080018": "1.2.3"}]', True),
        (200, b"[]", False),
        (404, b"", False),
        (503, b"", True),
        (302, b"", True),
    ],
)
def test_a_label_is_not_lost_if_a_gateway_answers_for_the_pacs(
    archive: Archive, status: int, content: bytes, stored: bool
) -> None:
    archive.status, archive.content = status, content
    assert proxy.Pacs().holds(DICOMWEB, "1.2.3") is stored


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("qido/studies", "qido-rs/studies"),
        ("qido/studies?PatientName=A%2a%2A&limit=5", "qido-rs/studies?PatientName=A**&limit=5"),
        ("qido/studies/1/series/2/metadata/", "wado-rs/studies/1/series/2/metadata"),
        ("wado/studies/1/series/2/metadata", "wado-rs/studies/1/series/2/metadata"),
        ("wado/studies/1/series/2/instances/3/frames/1", "wado-rs/studies/1/series/2/instances/3/frames/1"),
    ],
)
def test_the_pacs_is_asked_what_the_viewer_asked(viewer: TestClient, archive: Archive, path: str, asked: str) -> None:
    """Filters were lost, so that a search listed every patient."""
    headers = {"accept": "multipart/related", "cookie": "session=secret", "authorization": "secret"}
    assert viewer.get(f"/proxy/dicom/{path}", headers=headers).status_code == 200
    (request,) = archive.asked
    assert (request.method, request.url) == ("GET", f"{DICOMWEB.base}/{asked}")
    assert request.headers["accept"] == "multipart/related"
    assert "secret" not in str(request.headers)


@pytest.mark.parametrize(
    ("status", "seen"), [(200, 200), (299, 299), (304, 304), (300, 502), (307, 502), (399, 502), (400, 400), (503, 503)]
)
def test_only_a_redirect_of_the_pacs_is_refused(viewer: TestClient, archive: Archive, status: int, seen: int) -> None:
    """A PACS could send the server to any other address."""
    archive.status, archive.kind = status, "application/octet-stream"
    assert viewer.get("/proxy/dicom/wado/studies").status_code == seen


@pytest.mark.parametrize(
    ("kind", "leads_here"),
    [
        ("application/dicom+json", True),
        ("Application/JSON ; charset=utf-8", True),
        ("multipart/related; type=application/dicom+json", False),
    ],
)
def test_links_in_lists_lead_through_this_server(
    viewer: TestClient, archive: Archive, kind: str, leads_here: bool
) -> None:
    """The viewer asked the PACS itself for pixels, which it cannot reach, and pixels that look like a link were
    changed."""
    archive.kind, archive.content = kind, b'["http://pacs:1/web/wado-rs/studies/1"]' + b" " * proxy.CHUNK_BYTES
    answer = viewer.get("/proxy/dicom/wado/studies/1/metadata")
    here = archive.content.replace(b"http://pacs:1/web/wado-rs", b"http://testserver/proxy/dicom/wado")
    assert answer.content == (here if leads_here else archive.content)
    assert (answer.headers["cache-control"], answer.headers["content-type"]) == ("no-store", kind)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("path", "status", "asked", "counted"),
    [
        ("stow/studies", 200, "stow-rs/studies", True),
        ("wado/studies/1.2", 202, "stow-rs/studies/1.2", True),
        ("wado/studies", 409, "stow-rs/studies", False),
    ],
)
def test_what_the_pacs_stored_counts_as_a_submission(
    viewer: TestClient,
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    status: int,
    asked: str,
    counted: bool,
) -> None:
    """A segmentation that the PACS had refused was a submission."""
    taken = []

    def take(upload: Upload, is_stored: Any, user: str) -> None:
        archive.status, archive.content = 200, b'["1.2.3"]'
        taken.append((upload.stream().read(), is_stored("1.2.3")))

    monkeypatch.setattr(proxy, "take_submissions", take)
    archive.status = status
    answer = viewer.post(
        f"/proxy/dicom/{path}", content=b"a segmentation", headers={"content-type": "multipart/related"}
    )
    assert (answer.status_code, archive.asked[0].url) == (status, f"{DICOMWEB.base}/{asked}")
    assert archive.bodies[0] == b"a segmentation"
    assert taken == ([(b"a segmentation", True)] if counted else [])


@pytest.mark.parametrize(
    ("instance", "status", "content", "is_held"),
    [
        ("1.2.3", 200, b'[{"00080018": {"Value": ["1.2.3"]}}]', True),
        ("1.2.3", 200, b"[]", False),
        ("1.2.3", 404, b"1.2.3 was not found", False),
        ("1.2.3&x=", 200, b"1.2.3&x=", False),
    ],
)
def test_what_the_pacs_does_not_list_is_not_stored(
    archive: Archive, instance: str, status: int, content: bytes, is_held: bool
) -> None:
    archive.status, archive.content = status, content
    assert proxy.Pacs().holds(DICOMWEB, instance) is is_held


@pytest.mark.parametrize(
    "path",
    [
        "studies",
        "/studies/",
        "studies/1.2.840/series/1.2.3/instances/1.2/frames/1,2,3",
        "studies/1.2/series/1.3/metadata",
        "instances/1.2/bulk/7fe00010/1",
    ],
)
def test_resources_of_dicomweb_pass(path: str) -> None:
    address = Address("http://pacs:1/dicom-web", wado="wado")
    assert address.url("wado", path) == f"http://pacs:1/dicom-web/wado/{path.strip('/')}"
    assert address.url("qido", path) == f"http://pacs:1/dicom-web/{path.strip('/')}"


@pytest.mark.parametrize(
    "path",
    ["", "system", "studies/../system", "studies/..", "studies//x", "@evil/studies", "http://evil/studies", "studies?x",
     "studies/%2e%2e/x", "studies/a b", "studies/a#b", "studies/.hidden", "studies\\x", "studies/1\r\nHost: x",
     "studies/a..b"],
)  # fmt: skip
def test_other_paths_do_not(path: str) -> None:
    with pytest.raises(PathError, match="DICOMweb resource"):
        resource(path)


@pytest.mark.parametrize(
    ("text", "known"), [("1.2.3", True), ("", False), ("1..2", False), ("1.2/3", False), ("1." * 32 + "1", False)]
)
def test_uids(text: str, known: bool) -> None:
    assert is_uid(text) is known


@contextmanager
def upload(body: bytes, content_type: str) -> Iterator[Upload]:
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        yield Upload(file, content_type)


def part(content: bytes, header: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    return b"--b\r\n" + header + b"\r\n" + content + b"\r\n"


MULTIPART = 'multipart/related; type="application/dicom"; boundary='


@pytest.mark.parametrize(
    ("body", "content_type", "found"),
    [
        (part(b"one") + part(b"two") + b"--b--", MULTIPART + "b", [b"one", b"two"]),
        (part(b"one") + b"--b--", MULTIPART + '"b"', [b"one"]),
        (b"preamble\r\n" + part(b"one") + b"--b--\r\nepilogue", MULTIPART + "b", [b"one"]),
        (part(b"1\r\n\r\n2\r\n--c\r\n3") + b"--b--", MULTIPART + "b", [b"1\r\n\r\n2\r\n--c\r\n3"]),
        (part(b"x", b"Content-Type: text/plain\r\n") + part(b"y") + b"--b--", MULTIPART + "b", [b"y"]),
        (part(b"y", b"content-type: APPLICATION/DICOM; transfer-syntax=1.2\r\n") + b"--b--", MULTIPART + "b", [b"y"]),
        (b"--b\r\n\r\ny\r\n--b--", MULTIPART + "b", [b"y"]),
        (part(b"cut off")[:-2], MULTIPART + "b", []),
        (part(b"one") + b"--b--", MULTIPART + "c", []),
        (part(b"one") + b"--b--", "multipart/related", []),
        (b"whole", "application/dicom", [b"whole"]),
        (b"{}", "application/dicom+json", []),
        (b"", MULTIPART + "b", []),
    ],
)
def test_a_store_request_is_taken_apart(body: bytes, content_type: str, found: list[bytes]) -> None:
    with upload(body, content_type) as request:
        assert list(instances(request)) == found
        assert request.stream().read() == body, "the PACS gets it as it came"


def test_outcomes_are_forgotten_after_many() -> None:
    outcomes, first = Outcomes(), Outcome("1", "refused", "no")
    outcomes.keep(first)
    assert outcomes.of("1") == first
    for number in range(MAX_KEPT):
        outcomes.keep(replace(first, instance=f"2.{number}"))
    assert outcomes.of("1") is None
    assert outcomes.of("2.0") is not None


class Faulty:
    """An app that fails at every segmentation."""

    def __init__(self) -> None:
        self.outcomes = Outcomes()

    def submit_segmentation(self, *_: object) -> Outcome:
        raise KeyError("fault")


def test_a_fault_while_counting_is_reported_and_the_store_request_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PACS has the segmentation, so neither "could not be stored" nor silence is right."""
    app, study = Faulty(), write_study(tmp_path, 1, "Alpha")
    monkeypatch.setattr(stow, "app_instance", lambda: app)
    codes = np.zeros((80, 252, 48), np.uint8)
    codes[40, 100, 20] = STRUCTURES[0].code
    seg = write_seg(Volume(codes, PIR), study.folder, model="x", version="1")
    with upload(part(seg_bytes(seg)) + part(b"no DICOM") + b"--b--", MULTIPART + "b") as request:
        stow.take_submissions(request, lambda _: False, "reader")
        assert app.outcomes.of(seg.SOPInstanceUID) is None
        stow.take_submissions(request, lambda _: True, "reader")
    reported = app.outcomes.of(seg.SOPInstanceUID)
    assert reported is not None
    assert (reported.status, reported.message) == ("refused", front_messages.FAILED_TO_COUNT)


def test_a_body_on_a_slow_disk_stalls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four gigabytes were written in the thread that answers all clients."""
    writers, sent = set[int](), [b"a" * (stow.PIECE_BYTES // 2), b"b" * stow.PIECE_BYTES, b"c"]

    class Slow(io.BytesIO):
        def write(self, content: Any) -> int:
            writers.add(threading.get_ident())
            return super().write(content)

    class Body:
        def __init__(self) -> None:
            self.headers: dict[str, str] = {}

        async def stream(self) -> AsyncIterator[bytes]:
            for piece in sent:
                yield piece

    async def received() -> bytes:
        async with stow.received_body(Body()) as upload:  # type: ignore[arg-type]
            return upload.stream().read()

    monkeypatch.setattr(stow.tempfile, "TemporaryFile", lambda **_: Slow())
    assert asyncio.run(received()) == b"".join(sent)
    assert writers
    assert threading.get_ident() not in writers
