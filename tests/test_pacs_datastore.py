"""Tests of a PACS as a datastore, with a stand-in: lists, fetching, faults."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests

from pacs_serving import patient_slices
from pacs_stand_in import CODES, Pacs, datastore, named, two_studies
from phantom import PIR
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.receipts import Receipt, Sender
from totalspineseg_server.errors import ImageError, StorageError
from totalspineseg_server.io.dicom.seg_object import SegReference
from totalspineseg_server.io.volumes import read_image
from totalspineseg_server.pacs import found_series as pacs_series
from totalspineseg_server.pacs.found_series import PAGE, find_series
from totalspineseg_server.pacs.pacs_datastore import PacsDatastore
from totalspineseg_server.pacs.pacs_messages import NOT_PUT_BACK
from totalspineseg_server.pacs.submissions import submit_segmentation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_studies(tmp_path_factory.mktemp("files"))


def test_series_are_listed_page_by_page() -> None:
    pacs = Pacs()
    pacs.series = {f"1.{k}": named(f"1.{k}") for k in range(2 * PAGE + 1)}
    assert [series.uid for series in find_series(pacs, {"Modality": "MR"})] == list(pacs.series)
    assert pacs.searches == 3


def test_a_server_that_ignores_the_offset_is_asked_no_more() -> None:
    pacs = Pacs()
    pacs.pages = False
    pacs.series = {f"1.{k}": named(f"1.{k}") for k in range(PAGE)}
    assert len(find_series(pacs, {"Modality": "MR"})) == PAGE
    assert pacs.searches == 2


def test_a_pacs_with_more_series_than_are_listed_is_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later series of a hospital's PACS were never offered, and nothing said why."""
    pacs = Pacs()
    pacs.series = {f"1.{k}": named(f"1.{k}") for k in range(2 * PAGE + 1)}
    monkeypatch.setattr(pacs_series, "MAX_SERIES", 2 * PAGE)
    assert len(find_series(pacs, {"Modality": "MR"})) == 2 * PAGE
    assert f"first {2 * PAGE} series" in caplog.text


@pytest.mark.parametrize(
    ("description", "count", "offered"),
    [
        ("T2 TSE sag", 15, True),
        ("Enhanced T2", 1, True),
        ("localizer", 9, False),
        ("3-plane loc", 9, False),
        ("LOC", 3, False),
        ("Scout", 9, False),
        ("Survey_32ch", 9, False),
        ("T2 local shim", 15, True),
        ("screenshots", 2, False),
    ],
)
def test_what_is_offered(tmp_path: Path, description: str, count: int, offered: bool) -> None:
    pacs = Pacs()
    pacs.series = {"1.1": named("1.1", description=description, count=count), "1.2": named("1.2", "CT")}
    assert datastore(pacs, tmp_path).list_images() == (["1.1"] if offered else [])


def test_whether_a_series_changed_is_known_without_fetching_it(tmp_path: Path) -> None:
    """A score is valid only for what was scored, but fetching a whole PACS for the next sample would take hours."""
    pacs = Pacs()
    pacs.series = {"1.1": named("1.1", count=15)}
    before = datastore(pacs, tmp_path).fingerprint("1.1")
    assert (bool(before), pacs.fetched) == (True, [])
    assert datastore(pacs, tmp_path).fingerprint("1.9") == ""
    pacs.series = {"1.1": named("1.1", count=16)}
    assert datastore(pacs, tmp_path).fingerprint("1.1") not in ("", before)


def test_a_series_is_fetched_once_and_read_as_it_lies(tmp_path: Path, files: Path) -> None:
    pacs = Pacs(files)
    store = datastore(pacs, tmp_path)
    assert pacs.fetched == []
    paths = {store.get_image_uri("2.25.70001.1") for _ in range(3)}
    (path,) = paths
    assert pacs.fetched == ["2.25.70001.1"]
    image = read_image(Path(path))
    np.testing.assert_array_equal(image.data, patient_slices(1)[0])
    np.testing.assert_allclose(image.affine, PIR, atol=1e-6)
    assert len(list(store.series_folder("2.25.70001.1").iterdir())) == CODES.shape[2]


def test_two_who_need_a_series_fetch_it_once_and_leave_no_lock(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ran for months kept a lock for every series that was ever requested."""
    pacs = Pacs(files)
    store = datastore(pacs, tmp_path)
    retrieve, begun, go_on = pacs.retrieve_series, threading.Event(), threading.Event()

    def slow(study: str, series: str) -> list[Any]:
        begun.set()
        go_on.wait(10)
        return retrieve(study, series)

    monkeypatch.setattr(pacs, "retrieve_series", slow)
    readers = [threading.Thread(target=store.get_image_uri, args=("2.25.70001.1",)) for _ in range(2)]
    readers[0].start()
    assert begun.wait(10)
    readers[1].start()
    readers[1].join(0.3)
    assert list(store._fetching._locks) == ["2.25.70001.1"]
    go_on.set()
    for reader in readers:
        reader.join(60)
    assert pacs.fetched == ["2.25.70001.1"]
    assert not store._fetching._locks


def test_a_series_fetched_again_has_the_same_bytes(tmp_path: Path, files: Path) -> None:
    """A series with another hash counts as another image in a training, which left the correction out."""
    contents = {
        Path(datastore(Pacs(files), tmp_path / str(k)).get_image_uri("2.25.70001.1")).read_bytes() for k in range(2)
    }
    assert len(contents) == 1


@pytest.mark.parametrize("image_id", ["", "9.9", "../x", "2.25.70001.1/../x", "a"])
def test_no_such_series(tmp_path: Path, files: Path, image_id: str) -> None:
    pacs = Pacs(files)
    assert datastore(pacs, tmp_path).get_image_uri(image_id) == ""
    assert pacs.fetched == []


def test_what_is_not_a_volume_is_no_longer_offered(tmp_path: Path, files: Path) -> None:
    """The next sample was the same unreadable series forever."""
    pacs = Pacs(files)
    for instance in pacs.series["2.25.70001.2"]:
        instance.SeriesDescription = "T2"
    store = datastore(pacs, tmp_path)
    assert "2.25.70001.2" in store.list_images()
    with pytest.raises(ImageError, match="not parallel"):
        store.get_image_uri("2.25.70001.2")
    assert "2.25.70001.2" not in store.list_images()


def test_a_series_that_was_still_arriving_is_fetched_again(tmp_path: Path, files: Path) -> None:
    """The spine stayed cut off for good, because somebody had opened the series too early."""
    pacs = Pacs(files)
    whole = pacs.series["2.25.70001.1"]
    store = datastore(pacs, tmp_path)
    pacs.series["2.25.70001.1"] = [i for i in whole if i.InstanceNumber <= 40]
    assert read_image(Path(store.get_image_uri("2.25.70001.1"))).data.shape == (80, 252, 40)
    pacs.series["2.25.70001.1"] = whole
    store.changed()
    assert read_image(Path(store.get_image_uri("2.25.70001.1"))).data.shape == (80, 252, 48)
    assert len(list(store.series_folder("2.25.70001.1").iterdir())) == 48
    assert pacs.fetched == ["2.25.70001.1"] * 2


def test_a_volume_that_nothing_is_known_of_is_replaced(tmp_path: Path, files: Path) -> None:
    """A server that was killed while it made room left one, maybe of fewer images than the PACS has by now."""
    store = datastore(Pacs(files), tmp_path)
    left = store._volume("2.25.70001.1")
    left.write_bytes(b"another")
    assert Path(store.get_image_uri("2.25.70001.1")) == left
    assert read_image(left).data.shape == (80, 252, 48)


def test_labels_on_an_outdated_grid_stay_away_after_a_restart(tmp_path: Path, files: Path) -> None:
    """After a restart, the label of the incomplete series was shown for the complete one."""
    pacs = Pacs(files)
    whole = pacs.series["2.25.70001.1"]
    store = datastore(pacs, tmp_path)
    pacs.series["2.25.70001.1"] = [i for i in whole if i.InstanceNumber <= 40]
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"label")
    store.save_label("2.25.70001.1", str(label), "final", {IMAGE_HASH: "ab"})
    folder = tmp_path / "labels" / "final"
    label.rename(folder / "2.25.70001.1.nrrd")
    assert len(list(folder.iterdir())) == 3
    pacs.series["2.25.70001.1"] = whole
    store.changed()
    assert store.get_image_uri("2.25.70001.1")
    assert list(folder.iterdir()) == [], "in no format, nor a note of who drew it"
    assert datastore(pacs, tmp_path).get_labeled_images() == []


def test_a_pacs_that_counts_more_than_it_gives_is_asked_once(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time such a series was opened, it was fetched again and lost its finished label."""
    pacs = Pacs(files)
    arguments = pacs.series["2.25.70001.1"]
    monkeypatch.setattr(pacs, "retrieve_series", lambda study, series: pacs.fetched.append(series) or arguments[:-1])
    store = datastore(pacs, tmp_path)
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"label")
    store.save_label("2.25.70001.1", str(label), "final", {})
    assert store.get_image_uri("2.25.70001.1")
    assert store.get_labeled_images() == ["2.25.70001.1"]
    assert datastore(pacs, tmp_path).get_image_uri("2.25.70001.1")
    assert pacs.fetched == ["2.25.70001.1"]


def test_a_series_refused_while_it_was_arriving_is_offered_again(tmp_path: Path, files: Path) -> None:
    pacs = Pacs(files)
    whole = pacs.series["2.25.70001.1"]
    store = datastore(pacs, tmp_path)
    pacs.series["2.25.70001.1"] = [i for i in whole if i.InstanceNumber not in (20, 21)]
    with pytest.raises(ImageError, match="evenly spaced"):
        store.get_image_uri("2.25.70001.1")
    assert "2.25.70001.1" not in store.list_images()
    pacs.series["2.25.70001.1"] = whole
    store.changed()
    assert "2.25.70001.1" in store.list_images()
    assert read_image(Path(store.get_image_uri("2.25.70001.1"))).data.shape == (80, 252, 48)


def test_what_is_here_is_used_when_the_pacs_does_not_answer(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = Pacs(files)
    store = datastore(pacs, tmp_path)
    path = store.get_image_uri("2.25.70001.1")

    def silent(**_: object) -> None:
        raise requests.ConnectionError("no answer")

    monkeypatch.setattr(pacs, "search_for_series", silent)
    store.changed()
    assert store.get_image_uri("2.25.70001.1") == path
    assert store.offers("2.25.70001.1")
    with pytest.raises(requests.ConnectionError):
        store.offers("2.25.70001.2")


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (OSError(28, "No space left on device"), StorageError),
        (ValueError("Missing required elements from file_meta"), ImageError),
        (AttributeError("is_little_endian"), ImageError),
        (MemoryError(), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_broken_download_leaves_nothing(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, seen: type[BaseException]
) -> None:
    """A fault that was not one of the file system left a folder, which the next start removed only after a day."""
    pacs = Pacs(files)
    store = datastore(pacs, tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        for instance in pacs.series["2.25.70001.1"]:
            patch.setattr(type(instance), "save_as", fail)
        with pytest.raises(seen):
            store.get_image_uri("2.25.70001.1")
    assert list((tmp_path / "dicom").iterdir()) == []
    if seen is not ImageError:
        assert store.get_image_uri("2.25.70001.1")


def test_two_who_need_the_files_of_a_series_do_not_stumble_over_each_other(tmp_path: Path, files: Path) -> None:
    """The second download found the folder of the first one and failed."""
    pacs = Pacs(files)
    store = datastore(pacs, tmp_path)
    folder = store.series_folder("2.25.70001.1")
    shutil.rmtree(folder)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(store.series_folder, ["2.25.70001.1"] * 4))
    assert set(found) == {folder}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_patient_s_series_are_one_subject(tmp_path: Path, files: Path) -> None:
    """One series of a patient could be used for training and another for comparison."""
    pacs = Pacs(files)
    for instance in pacs.series["2.25.70002.1"]:
        instance.PatientID = "P1"
    store = datastore(pacs, tmp_path)
    for series in ("2.25.70001.1", "2.25.70002.1"):
        store.get_image_uri(series)
    first, second, unknown = (store.subject(uid) for uid in ("2.25.70001.1", "2.25.70002.1", "9.9"))
    assert first == second != unknown
    assert "P1" not in first
    assert datastore(pacs, tmp_path / "cleaned").subject("2.25.70001.1") == first


@pytest.mark.parametrize(("frame", "shared"), [("2.25.70001.9", True), ("2.25.70001.8", False), ("", True)])
def test_a_repositioned_patient_has_other_coordinates(tmp_path: Path, files: Path, frame: str, shared: bool) -> None:
    """A finished label from before a break named the levels after it by their position, with certainty."""
    pacs = Pacs(files)
    for instance in pacs.series["2.25.70002.1"]:
        instance.StudyInstanceUID, instance.FrameOfReferenceUID = "2.25.70001", frame
    store = datastore(pacs, tmp_path)
    assert store.get_image_uri("2.25.70001.1")
    assert store.siblings("2.25.70001.1") == (), "whose coordinates are not known yet"
    assert store.get_image_uri("2.25.70002.1")
    assert store.siblings("2.25.70001.1") == (("2.25.70002.1",) if shared else ())
    assert store.same_space("2.25.70001.1", "2.25.70002.1") is shared


def test_images_are_stored_in_the_pacs_and_not_here(tmp_path: Path, files: Path) -> None:
    with pytest.raises(ValueError, match="PACS"):
        datastore(Pacs(files), tmp_path).add_image("x", "x.nii.gz", {})
    with pytest.raises(ImageError, match="Remove the series there"):
        datastore(Pacs(files), tmp_path).remove_image("x")


@pytest.mark.parametrize(
    ("info", "published"),
    [({}, 1), ({"instance": "1.2", "renumbered": False}, 0), ({"instance": "1.2", "renumbered": True}, 1)],
    ids=["slicer", "from the PACS", "from there with other names"],
)
def test_finished_labels_go_to_the_pacs_unless_they_are_from_there(
    tmp_path: Path, files: Path, info: dict[str, Any], published: int
) -> None:
    sent: list[str] = []
    store = datastore(Pacs(files), tmp_path, sent)
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"label")
    assert store.get_unlabeled_images() == ["2.25.70001.1", "2.25.70002.1"]
    store.save_label("2.25.70001.1", str(label), "original", dict(info))
    assert sent == []
    store.save_label("2.25.70001.1", str(label), "final", dict(info))
    assert len(sent) == published
    assert store.get_labeled_images() == ["2.25.70001.1"]
    assert store.get_unlabeled_images() == ["2.25.70002.1"]
    assert datastore(Pacs(files), tmp_path).get_labeled_images() == ["2.25.70001.1"], "after a restart"


def test_a_submission_is_reported_as_counted_although_the_pacs_refuses_the_new_names(
    tmp_path: Path, files: Path
) -> None:
    """A correction that was stored and counted was reported as not counted."""

    def publisher(*_: object) -> None:
        raise requests.ConnectionError("no answer")

    store = PacsDatastore(Pacs(files), tmp_path, {"Modality": "MR"}, publisher=publisher)
    reference = SegReference("1.2", "1.3", "1.4", ("2.25.70001.1",), "Reader", ("L4",))
    stored = SimpleNamespace(
        id="c1",
        status="accepted",
        image="2.25.70001.1",
        tag="final",
        step=2,
        present=(44,),
        findings=(),
        message="The others follow.",
    )
    history, file = CorrectionStore(tmp_path / "history"), tmp_path / "label.nii.gz"
    file.write_bytes(b"label")

    def submit(sent: Receipt, _: Path) -> Any:
        store.save_label(sent.image, str(file), "final", {"instance": "1.2", "renumbered": True})
        return stored

    outcome = submit_segmentation(store, submit, history, file, reference, Sender("", "ohif", "l"))
    assert outcome.status == "accepted"
    assert outcome.message.endswith(NOT_PUT_BACK)
