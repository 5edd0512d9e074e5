"""Tests of segmentations that reached the PACS another way: none is missed, and none delays a large PACS."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from lib.anatomy import CODE_OF
from lib.corrections.outcomes import Outcome
from lib.corrections.receipts import Sender
from lib.corrections.store import CorrectionStore
from lib.dicom.seg_object import seg_reference
from lib.dicom.seg_writer import seg_bytes, write_seg
from lib.geometry import Volume
from lib.pacs import adoption
from lib.pacs.adoption import Adoption
from lib.pacs.series import PAGE
from lib.volume_io import read_image, write_volume
from pacs_serving import wait_for
from pacs_stand_in import CODES, FIRST, SECOND, Pacs, datastore, named, pacs_app, two_studies
from phantom import PIR, CodeReader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_studies(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def drawn(files: Path) -> bytes:
    """A segmentation of FIRST as another program's reader stores it."""
    seg = write_seg(Volume(CODES, PIR), files / "1-sagittal", model="x", version="1", corrected_by="")
    seg.Manufacturer = "A viewer"
    return seg_bytes(seg)


def read(drawn: bytes) -> Dataset:
    seg = dcmread(BytesIO(drawn))
    seg.SOPInstanceUID, seg.SeriesInstanceUID = generate_uid(), generate_uid()
    return seg


def unreachable(*_: object) -> Any:
    raise AssertionError("unreachable")


@pytest.fixture
def app(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return pacs_app(Pacs(files), tmp_path, monkeypatch)


def test_what_a_reader_just_finished_elsewhere_is_not_offered(
    app: Any, tmp_path: Path, drawn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = app.datastore()._client
    assert app.next_sample({"strategy": "first"})["id"] == FIRST
    monkeypatch.setattr(app._adoption, "look_through", lambda: None)
    seg = read(drawn)
    pacs.add(seg)
    for _ in range(2):
        assert app.next_sample({"strategy": "first"})["id"] == SECOND
    (kept,) = CorrectionStore(tmp_path / "work").of_image(FIRST)
    assert (kept.status, kept.client, kept.file_name) == ("accepted", "pacs", f"{seg.SOPInstanceUID}.dcm")
    assert app.outcomes.of(seg.SOPInstanceUID).correction == kept.id


def test_what_ended_the_server_is_not_fetched_again(app: Any, drawn: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segmentation that took all memory was submitted, and ended the server, at every next sample."""

    def lint(*_: object) -> Any:
        tries.append(1)
        raise MemoryError

    tries: list[int] = []
    monkeypatch.setattr(app._inbox, "_lint", lint)
    seg = read(drawn)
    app.datastore()._client.add(seg)
    for _ in range(2):
        app._adoption.of_image(FIRST)
    assert [w.receipt.file_name for w in app.waiting_submissions()] == [f"{seg.SOPInstanceUID}.dcm"]
    assert len(tries) == 1


def test_what_was_taken_back_is_not_found_in_the_pacs_again(app: Any, drawn: bytes) -> None:
    store, seg = app.datastore(), read(drawn)
    store._client.add(seg)
    app._adoption.of_image(FIRST)
    assert FIRST in store.get_labeled_images()
    (kept,) = app._corrections.in_force(FIRST)
    assert app.withdraw_label(FIRST, "final", "ada") == (kept.id,)
    app._adoption.of_all()
    assert FIRST not in store.get_labeled_images()
    assert app._corrections.in_force(FIRST) == ()


def test_what_a_label_had_replaced_does_not_come_back_when_that_is_taken_back(
    app: Any, tmp_path: Path, drawn: bytes
) -> None:
    """An older segmentation of the PACS, passed over so far, became the finished label that nobody had asked for."""
    pacs, labeled = app.datastore()._client, app.datastore().get_labeled_images
    submit_from_slicer(app, tmp_path)
    pacs.add(made_at(datetime.now() - timedelta(days=30), drawn))
    app.withdraw_label(FIRST, "final", "ada")
    for _ in range(2):
        app._adoption.of_image(FIRST)
    assert FIRST not in labeled()
    pacs.add(made_at(datetime.now() + timedelta(hours=1), drawn))
    app._adoption.of_image(FIRST)
    assert FIRST in labeled()


def test_what_is_exported_and_found_at_once_is_kept_once(
    app: Any, tmp_path: Path, drawn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the PACS in the moment before the viewer's export was recorded, it stood twice in the history."""
    seg, take = read(drawn), app._inbox.submit
    begun, again, go_on = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        (again if begun.is_set() else begun).set()
        assert go_on.wait(20)
        return take(*arguments, **more)

    monkeypatch.setattr(app._inbox, "submit", slow)
    app.datastore()._client.add(seg)
    exporting = threading.Thread(target=export, args=(app, seg, tmp_path))
    finding = threading.Thread(target=app._adoption.of_image, args=(FIRST,))
    exporting.start()
    assert begun.wait(20)
    finding.start()
    again.wait(2)
    go_on.set()
    exporting.join()
    finding.join()
    (kept,) = CorrectionStore(tmp_path / "work").of_image(FIRST)
    assert (kept.status, kept.client) == ("accepted", "ohif")
    assert app.outcomes.of(seg.SOPInstanceUID).correction == kept.id


def test_one_instance_counts_once_however_it_is_encoded_and_other_content_again(
    app: Any, tmp_path: Path, drawn: bytes
) -> None:
    seg, history = read(drawn), CorrectionStore(tmp_path / "work")
    first = export(app, seg, tmp_path)
    seg.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    seg.is_implicit_VR = True
    assert export(app, seg, tmp_path) == first
    assert len(history.of_image(FIRST)) == 1
    seg.SegmentSequence[0].SegmentLabel = "mystery"
    parked = export(app, seg, tmp_path)
    assert (first.status, parked.status) == ("accepted", "parked")
    assert export(app, seg, tmp_path).status == "parked"
    assert [kept.status for kept in history.of_image(FIRST)] == ["accepted", "parked"]


def submit_from_slicer(app: Any, folder: Path) -> None:
    """A label of FIRST."""
    label = folder / "label.nii.gz"
    grid = read_image(Path(app.datastore().get_image_uri(FIRST))).grid
    write_volume(label, np.where(CODE_OF["L4"] == CODES, 1, 0).astype(np.uint8), grid)
    slicer = Sender("ada", "slicer", "label.nii.gz")
    app.submit_label(FIRST, label, "final", {"label_info": [{"name": "L4"}]}, slicer)


def made_at(moment: datetime, drawn: bytes) -> Dataset:
    """A segmentation of FIRST that says so."""
    seg = read(drawn)
    seg.ContentDate, seg.ContentTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
    return seg


def export(app: Any, seg: Dataset, folder: Path) -> Outcome:
    """As the viewer stores it."""
    file = folder / "exported.dcm"
    seg.save_as(file, write_like_original=False)
    outcome: Outcome = app.submit_segmentation(
        file, seg_reference(file), Sender("ada", "ohif", f"{seg.SOPInstanceUID}.dcm")
    )
    app.outcomes.keep(outcome)
    return outcome


OHIF = {"SoftwareVersions": "0", "DeviceSerialNumber": "1"}
"""How dcmjs, with which OHIF writes, gives itself away; its dates are UTC."""


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Moves this machine to a time zone."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "minutes", "written_in", "header", "taken"),
    [
        ("Europe/Berlin", 30, timezone.utc, OHIF, True),
        ("America/New_York", -30, timezone.utc, OHIF, False),
        ("Asia/Tokyo", 30, timezone.utc, {"TimezoneOffsetFromUTC": "+0000"}, True),
        ("Asia/Tokyo", -30, timezone(timedelta(hours=9)), {"TimezoneOffsetFromUTC": "+0900"}, False),
        ("America/New_York", 30, None, {}, True),
        ("Europe/Berlin", -30, None, {}, False),
    ],
    ids=["OHIF, east", "OHIF, west", "offset, newer", "offset, older", "local, newer", "local, older"],
)
def test_of_a_label_and_a_segmentation_the_newer_counts_in_every_time_zone(
    app: Any,
    tmp_path: Path,
    drawn: bytes,
    in_zone: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    zone: str,
    minutes: int,
    written_in: timezone | None,
    header: dict[str, str],
    taken: bool,
) -> None:
    """In Berlin what a reader drew in OHIF half an hour after a label from 3D Slicer never counted, and no log said so;
    in New York an older one took the place of a newer label."""
    in_zone(zone)
    submit_from_slicer(app, tmp_path)
    seg = made_at(datetime.now(written_in) + timedelta(minutes=minutes), drawn)
    for keyword, value in header.items():
        setattr(seg, keyword, value)
    app.datastore()._client.add(seg)
    for _ in range(2):
        app._adoption.of_all()
    clients = [kept.client for kept in CorrectionStore(tmp_path / "work").of_image(FIRST)]
    assert clients == (["slicer", "pacs"] if taken else ["slicer"])
    assert caplog.text.count("is skipped") == (0 if taken else 1)


def test_all_others_are_found_beside(app: Any, tmp_path: Path, drawn: bytes) -> None:
    app.datastore()._client.add(read(drawn))
    assert app.next_sample({"strategy": "last"})["id"] == SECOND
    wait_for(lambda: CorrectionStore(tmp_path / "work").of_image(FIRST))


def test_what_another_program_made_alone_is_no_reading(tmp_path: Path, files: Path, drawn: bytes) -> None:
    """The result of another vendor's model, newer than a reader's, was taken as finished by a reader, and taught."""
    pacs, seg = Pacs(files), read(drawn)
    for item in seg.SegmentSequence:
        item.SegmentAlgorithmType = "AUTOMATIC"
    pacs.add(seg)
    segmentations = datastore(pacs, tmp_path).segmentations
    assert segmentations.newest([FIRST]) == {}
    seg = read(drawn)
    seg.SegmentSequence[0].SegmentAlgorithmType = "AUTOMATIC"
    pacs.add(seg)
    assert segmentations.newest([FIRST])[FIRST].instance == seg.SOPInstanceUID, "a reader drew the others"


def test_the_next_sample_of_a_large_pacs_takes_one_question(tmp_path: Path, files: Path, drawn: bytes) -> None:
    """Every request listed every segmentation of the PACS, page by page."""
    pacs = Pacs(files)
    pacs.series |= {f"1.{k}": named(f"1.{k}", "SEG") for k in range(2 * PAGE)}
    seg = read(drawn)
    pacs.add(seg)
    shown = datastore(pacs, tmp_path)
    assert FIRST in shown.series()
    searches = pacs.searches
    assert set(shown.segmentations.newest([FIRST], shown.series()[FIRST].study)) == {FIRST}
    assert (pacs.searches - searches, pacs.described) == (1, [seg.SeriesInstanceUID])


def test_a_pacs_is_looked_through_once_at_a_time_and_not_all_the_time(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, go_on = list[int](), threading.Event()
    looking = Adoption(datastore(Pacs(files), tmp_path), CorrectionStore(tmp_path), unreachable, tuple)

    def slow() -> None:
        looks.append(1)
        go_on.wait(10)

    monkeypatch.setattr(looking, "of_all", slow)
    for _ in range(3):
        looking.look_through()
    wait_for(lambda: looks)
    go_on.set()
    wait_for(lambda: not looking._looking.locked())
    monkeypatch.setattr(adoption, "REST", 0)
    looking._due += 1000
    looking.look_through()
    wait_for(lambda: not looking._looking.locked())
    assert looks == [1]
    looking._due = 0
    looking.look_through()
    wait_for(lambda: looks == [1, 1])


def test_one_series_does_not_wait_for_the_segmentation_of_another(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    looking = Adoption(datastore(Pacs(files), tmp_path), CorrectionStore(tmp_path), unreachable, tuple)

    def take(series: str, reference: object) -> None:
        begun.set()
        assert series != FIRST or go_on.wait(10)

    monkeypatch.setattr(looking, "_take", take)
    threads = [
        threading.Thread(target=looking._take_all, args=({FIRST: None},)),
        threading.Thread(target=lambda: (looking._take_all({SECOND: None}), done.set())),
    ]
    for thread in threads:
        thread.start()
        assert begun.wait(5)
    in_time = done.wait(5)
    go_on.set()
    for thread in threads:
        thread.join()
    assert in_time


def test_a_look_that_failed_is_not_the_last(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs = Pacs(files)
    looking = Adoption(datastore(pacs, tmp_path), CorrectionStore(tmp_path), unreachable, tuple)
    monkeypatch.setattr(adoption, "FRESH_SECONDS", 0.0)
    pacs.down = True
    for count in (1, 2):
        looking.look_through()
        wait_for(lambda: not looking._looking.locked())
        looking._datastore.changed()
        assert pacs.searches == count


def test_a_segmentation_that_the_pacs_cannot_give_hides_no_other(tmp_path: Path, files: Path, drawn: bytes) -> None:
    """Nobody got a next sample, because of one damaged object."""
    pacs, segs = Pacs(files), [read(drawn) for _ in range(2)]
    for seg in segs:
        pacs.add(seg)
    pacs.damaged = {segs[0].SeriesInstanceUID}
    found = datastore(pacs, tmp_path).segmentations.newest([FIRST])
    assert found[FIRST].instance == segs[1].SOPInstanceUID


class Readers:
    """Networks that read the phantom's codes."""

    def get(self, step: int) -> CodeReader:
        return CodeReader(step)

    def version(self, step: int) -> str:
        return CodeReader(step).version


def test_series_are_scored_and_offered_by_their_scores(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = Pacs(files)
    app = pacs_app(pacs, tmp_path, monkeypatch)
    vars(app._services)["networks"] = Readers()
    scored = app.scoring({"method": "doubt"})
    assert {FIRST, SECOND} == set(scored)
    assert all(0 < entry["doubt"] < 1 for entry in scored.values()), scored
    fetched = list(pacs.fetched)
    assert app.scoring({"method": "doubt"}) == {series: {"skipped": True} for series in scored}
    assert pacs.fetched == fetched
    assert app.scoring_progress() == {"total": 2, "scored": 2, "failed": 0}
    offered = [app.next_sample({"strategy": "doubtful_first", "client_id": client}) for client in ("ada", "bob")]
    assert {sample["id"] for sample in offered} == {FIRST, SECOND}
    assert offered[0]["score"]["doubt"] >= offered[1]["score"]["doubt"] > 0
