"""Tests that nobody loses work if a PACS is down, slow or still receiving images."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fastapi import FastAPI
from starlette.testclient import TestClient

from pacs_serving import wait_for
from pacs_stand_in import CODES, FIRST, SECOND, Pacs, datastore, pacs_app, two_studies
from phantom import PIR
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.errors import EmptySegmentationError, ImageError, MemoryShortageError, StorageError
from totalspineseg_server.front import failures as errors
from totalspineseg_server.front import front_messages, proxy, studies
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.dicom.seg_writer import seg_bytes
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.pacs import address
from totalspineseg_server.pacs.found_series import StoredSeries, find_series
from totalspineseg_server.pacs.listing import Listing
from totalspineseg_server.pacs.pacs_datastore import PacsDatastore
from totalspineseg_server.segments import to_wire
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.site import has_corrections, site_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_studies(tmp_path_factory.mktemp("files"))


def labeled(displayed: PacsDatastore, folder: Path, *series: str) -> None:
    """Save a finished label from a client that does not speak DICOM."""
    label = folder / "label.nii.gz"
    label.write_bytes(b"label")
    for uid in series:
        displayed.save_label(uid, str(label), "final", {})


def cut(pacs: Pacs, series: str, last: int = 40) -> list[Any]:
    """Remove the last images of a series, and return all of them."""
    whole = pacs.series[series]
    pacs.series[series] = [image for image in whole if image.InstanceNumber <= last]
    return whole


def test_a_series_that_cannot_be_fetched_again_stays(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image and its label were removed before the PACS was asked for more, and it did not answer."""
    pacs, sent = Pacs(files), list[str]()
    displayed = datastore(pacs, tmp_path, sent)
    whole = cut(pacs, FIRST)
    old = displayed.get_image_uri(FIRST)
    labeled(displayed, tmp_path, FIRST)
    pacs.series[FIRST] = whole
    displayed.changed()

    def broken(study: str, series: str) -> None:
        raise requests.ConnectionError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(pacs, "retrieve_series", broken)
        with pytest.raises(requests.ConnectionError):
            displayed.get_image_uri(FIRST)
    assert read_image(Path(old)).data.shape[2] == 40
    assert displayed.get_labeled_images() == [FIRST]
    assert [path.name for path in (tmp_path / "dicom").iterdir()] == [FIRST]
    assert read_image(Path(displayed.get_image_uri(FIRST))).data.shape[2] == 48
    assert displayed.get_labeled_images() == []
    assert len(list(displayed.series_folder(FIRST).iterdir())) == 48


def test_a_series_with_a_gap_replaces_nothing(tmp_path: Path, files: Path) -> None:
    pacs = Pacs(files)
    displayed = datastore(pacs, tmp_path)
    whole = cut(pacs, FIRST)
    old = displayed.get_image_uri(FIRST)
    pacs.series[FIRST] = [image for image in whole if image.InstanceNumber != 44]
    displayed.changed()
    for _ in range(2):
        with pytest.raises(ImageError, match="evenly spaced"):
            displayed.get_image_uri(FIRST)
    assert pacs.fetched == [FIRST] * 2, "what cannot be read is not fetched again and again"
    assert read_image(Path(old)).data.shape[2] == 40
    assert [path.name for path in (tmp_path / "dicom").iterdir()] == [FIRST]
    pacs.series[FIRST] = whole
    displayed.changed()
    assert read_image(Path(displayed.get_image_uri(FIRST))).data.shape[2] == 48


def test_the_index_is_free_while_the_pacs_is_asked_for_its_list(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for the number of images kept everybody from submitting."""
    pacs, go_on, free = Pacs(files), threading.Event(), threading.Event()
    displayed = datastore(pacs, tmp_path)
    labeled(displayed, tmp_path, FIRST)
    displayed.changed()
    answer = pacs.answer

    def slow() -> None:
        threading.Thread(target=lambda: (displayed.waiting(), free.set())).start()
        go_on.wait(10)
        answer()

    monkeypatch.setattr(pacs, "answer", slow)
    asking = threading.Thread(target=displayed.status)
    asking.start()
    in_time = free.wait(5)
    go_on.set()
    asking.join()
    assert in_time
    assert displayed.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}


def test_what_a_crash_left_of_a_download_goes(tmp_path: Path, files: Path) -> None:
    """Half a series stayed on the disk for good."""
    left, begun = (tmp_path / "dicom" / f".partial-{name}" for name in ("left", "begun"))
    for folder in (left, begun):
        folder.mkdir(parents=True)
        (folder / "00000.dcm").write_bytes(b"image")
    os.utime(left, (0, 0))
    assert datastore(Pacs(files), tmp_path).get_image_uri(FIRST)
    assert (left.exists(), begun.exists()) == (False, True)


def test_labels_wait_for_the_pacs(tmp_path: Path, files: Path) -> None:
    """The reader saw an error, although the label was stored and counted."""
    pacs, sent = Pacs(files), list[str]()
    displayed = datastore(pacs, tmp_path, sent)
    for uid in (FIRST, SECOND):
        displayed.get_image_uri(uid)
    pacs.down = True
    labeled(displayed, tmp_path, FIRST, SECOND)
    again = datastore(pacs, tmp_path, sent)
    assert (again.waiting(), sent) == ((FIRST, SECOND), []), "after a restart, too"
    again.send_all()
    assert again.waiting() == (FIRST, SECOND)
    pacs.down = False
    for _ in range(2):
        again.send_all()
        assert (again.waiting(), sent) == ((), [FIRST, SECOND])
    labeled(again, tmp_path, FIRST)
    assert (again.waiting(), sent) == ((), [FIRST, SECOND, FIRST])


def test_a_pacs_that_is_still_down_is_asked_once(tmp_path: Path, files: Path) -> None:
    pacs, asked = Pacs(files), list[str]()

    def publisher(series: str, file: Path, info: Mapping[str, Any]) -> None:
        asked.append(series)
        raise requests.ConnectionError("no answer")

    displayed = PacsDatastore(pacs, tmp_path, {"Modality": "MR"}, publisher=publisher)
    labeled(displayed, tmp_path, FIRST, SECOND)
    asked.clear()
    displayed.send_all()
    assert asked == [FIRST]


def test_a_label_that_is_not_dicom_does_not_wait(tmp_path: Path, files: Path) -> None:
    """The label would keep all others from the PACS forever."""

    def publisher(series: str, file: Path, info: Mapping[str, Any]) -> None:
        raise EmptySegmentationError("The label has no voxels. Draw one.")

    displayed = PacsDatastore(Pacs(files), tmp_path, {"Modality": "MR"}, publisher=publisher)
    with pytest.raises(EmptySegmentationError):
        labeled(displayed, tmp_path, FIRST)
    assert displayed.waiting() == ()


@pytest.mark.parametrize(
    "fault",
    [StorageError("disk full"), MemoryShortageError("too little memory"), RuntimeError("a fault")],
)
def test_a_label_that_the_server_could_not_write_waits(tmp_path: Path, files: Path, fault: Exception) -> None:
    """The label was recorded as sent, never reached the PACS, and kept later labels waiting."""
    faults, sent = {FIRST: fault, SECOND: StorageError("disk full")}, list[str]()

    def publisher(series: str, file: Path, info: Mapping[str, Any]) -> None:
        if series in faults:
            raise faults[series]
        sent.append(series)

    displayed = PacsDatastore(Pacs(files), tmp_path, {"Modality": "MR"}, publisher=publisher)
    if isinstance(fault, RuntimeError):
        with pytest.raises(RuntimeError):
            labeled(displayed, tmp_path, FIRST)
    else:
        labeled(displayed, tmp_path, FIRST)
    labeled(displayed, tmp_path, SECOND)
    assert displayed.waiting() == (FIRST, SECOND)
    del faults[SECOND]
    displayed.send_all()
    assert (sent, displayed.waiting()) == ([SECOND], (FIRST,))
    del faults[FIRST]
    displayed.send_all()
    assert (sent, displayed.waiting()) == ([SECOND, FIRST], ())


def test_who_waited_for_a_silent_pacs_does_not_ask_again(files: Path) -> None:
    """Many requests waited one after the other, each until the connection timed out."""
    pacs = Pacs(files)
    pacs.down = True
    listing = Listing(pacs, {"Modality": "MR"})
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            listing.all()
    assert pacs.searches == 1
    pacs.down = False
    listing.changed()
    assert set(listing.offered()) == {FIRST, SECOND}


def unreachable(*_: object) -> Any:
    raise AssertionError("unreachable")


@pytest.mark.slow
def test_slicer_submits_while_the_pacs_is_down(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader saw "a server behind this one did not answer", and nobody knew whether the label counted."""
    pacs, grid = Pacs(files), Grid(CODES.shape, PIR)
    work = tmp_path / "work"
    app = pacs_app(pacs, tmp_path, monkeypatch)
    monkeypatch.setattr(studies, "app_instance", lambda: app)
    front = FastAPI()
    errors.install(front)
    front.include_router(studies.router(1 << 20))
    label = tmp_path / "label.nii.gz"
    write_volume(label, to_wire(CODES), grid)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]

    def submit() -> Any:
        sent = {"params": json.dumps({"label_info": names})}
        return TestClient(front, raise_server_exceptions=False).put(
            "/datastore/label", params={"image": FIRST}, data=sent, files={"label": (label.name, label.read_bytes())}
        )

    assert app.datastore().get_image_uri(FIRST), "Slicer has loaded it"
    pacs.down = True
    app.datastore().changed()
    answer = submit()
    assert (answer.status_code, answer.json()["warning"]) == (200, front_messages.PACS_REFUSED_LABEL), answer.text
    (stored,) = CorrectionStore(work).of_image(FIRST)
    assert (stored.status, stored.id) == ("accepted", answer.json()["correction"])
    (case,) = site_material(app._site).training
    assert has_corrections(work) and not has_corrections(work / "pacs")
    (alone,) = site_material(site_of(work, app._site.models)).training
    assert (alone.name, alone.read().subject) == (case.name, case.read().subject), "without the server, too"
    np.testing.assert_array_equal(case.read().codes.data, CODES)

    pacs.down = False
    app.datastore().changed()
    app.next_sample({"strategy": "first"})
    wait_for(lambda: any(series[0].Modality == "SEG" for series in pacs.series.values()))
    (seg,) = [series[0] for series in pacs.series.values() if series[0].Modality == "SEG"]
    np.testing.assert_array_equal(map_names(read_seg(seg_bytes(seg), grid), grid).codes, CODES)
    assert len(CorrectionStore(work).of_image(FIRST)) == 1
    assert submit().json()["warning"] == ""


def test_a_work_folder_without_series(tmp_path: Path) -> None:
    series = StoredSeries(tmp_path)
    assert series.image_file(FIRST) is None
    assert series.subject(FIRST) != series.subject(SECOND)


@contextmanager
def http_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Address of a server that answers every GET as the test says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def search(url: str) -> Any:
    with address.make_session(url) as session:
        return find_series(address.make_client(address.Address(url), session), {"Modality": "MR"})


def test_an_overloaded_pacs_is_reported_at_once() -> None:
    """After half a minute there was an error that looked like this server's own fault."""
    asked: list[str] = []

    def overloaded(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_error(503)

    with http_server(overloaded) as url, pytest.raises(requests.HTTPError, match="503"):
        search(url)
    assert len(asked) == 1


def test_a_segmentation_counts_although_the_pacs_goes_down_after_storing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stored, but not counted, and nobody was told."""
    monkeypatch.setattr(proxy, "configured_session", requests.Session)
    with http_server(lambda _: None) as url:
        assert proxy.Pacs().holds(address.Address(url), "1.2.3")


def test_nobody_waits_for_a_pacs_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection that hung kept everybody from the list of images."""
    monkeypatch.setattr(address, "TIMEOUT_SECONDS", (5.0, 0.2))
    gave_up = threading.Event()

    def silent(_: BaseHTTPRequestHandler) -> None:
        gave_up.wait(10)

    with http_server(silent) as url:
        with pytest.raises(requests.Timeout):
            search(url)
        gave_up.set()
