"""Tests that every submission is kept once, whole, with its history, despite a full disk and two writers."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pacs_serving import wait_for
from totalspineseg_server.anatomy import CODE_OF, WIRE_LABELS
from totalspineseg_server.corrections import ids, label_files
from totalspineseg_server.corrections.answers import name_taken
from totalspineseg_server.corrections.correction_store import STEP1_TAG, Correction, CorrectionStore, is_safe_tag
from totalspineseg_server.corrections.image_records import ImageRecords, OlderIndex
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.interpretation import Lint
from totalspineseg_server.corrections.label_files import correction_file, info_of
from totalspineseg_server.corrections.predictions import MapStore, PredictionRecord, PredictionStore
from totalspineseg_server.corrections.receipts import Receipts, Sender, receipt_of
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import BusyError, LabelError, StorageError
from totalspineseg_server.files import PARTIAL_PREFIX, sha256_of
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.io.volumes import read_labels, write_volume

pytestmark = pytest.mark.slow

GRID = Grid((4, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
SENDER = Sender(user="ada", client="slicer-7", file_name="my label.nii.gz")
L4_L5: Mapping[str, Any] = {"label_info": [{"name": "L4", "idx": 7}, {"name": "L5", "idx": 8}]}


class Scene:
    """Images, and what clients are shown of them."""

    def __init__(self, image_file: Callable[[str], Path | None], publish: Callable[..., object]) -> None:
        self.image_file = image_file
        self.records = ImageRecords(Path("no records"), OlderIndex())
        self._publish = publish

    def series_folder(self, image_id: str) -> Path | None:
        return None

    def show(self, correction: Correction, codes: Volume, more: Mapping[str, Any] | None = None) -> None:
        with correction_file(codes) as file:
            self._publish(correction.image, str(file), correction.displayed_tag, info_of(correction, more))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        pass


class Desk:
    """An inbox on a folder with one image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = CorrectionStore(root)
        self.predictions = PredictionStore(root)
        self.receipts = Receipts(root)
        self.lint: Lint = lambda codes, grid: ({"kind": "gap"},)
        self.images = {"img": root / "img.nii.gz"}
        scene = Scene(lambda image: self.images.get(image), lambda *label: self._publish(*label))
        self.inbox = Inbox(
            self.receipts, self.store, self.predictions, MapStore(root), scene, lambda *label: self.lint(*label)
        )
        self.published: list[tuple[str, np.ndarray, str, dict[str, Any]]] = []
        self.image = root / "img.nii.gz"
        self.label = root / "label.nii.gz"
        image = np.zeros(GRID.shape, dtype=np.uint8)
        image[1] = 9
        write_volume(self.image, image, GRID)
        labels = np.zeros(GRID.shape, dtype=np.uint8)
        labels[1], labels[2] = 1, 2
        write_volume(self.label, labels, GRID)

    def submit(
        self, params: Mapping[str, Any] = L4_L5, tag: str = "final", sender: Sender = SENDER, image: str = "img"
    ) -> Any:
        return self.inbox.submit(receipt_of(image, self.label, tag=tag, sender=sender, params=params), self.label)

    def _publish(self, image: str, file: str, tag: str, info: dict[str, Any]) -> None:
        self.published.append((image, read_labels(Path(file)).data, tag, info))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_an_understood_label_is_kept_and_published_in_wire_ids(desk: Desk) -> None:
    saved = desk.submit()
    (stored,) = desk.store.of_image("img")
    assert stored == saved
    assert (stored.status, stored.step, stored.user, stored.client) == ("accepted", 2, "ada", "slicer-7")
    assert stored.findings == ({"kind": "gap"},)
    assert stored.image_sha256 == sha256_of(desk.image)
    assert (desk.store.path(stored) / stored.raw).read_bytes() == desk.label.read_bytes()
    codes = desk.store.codes(stored)
    assert sorted(set(codes.ravel().tolist())) == [0, CODE_OF["L4"], CODE_OF["L5"]]
    ((image, wire, tag, info),) = desk.published
    assert (image, tag) == ("img", "final")
    assert sorted(set(wire.ravel().tolist())) == [0, WIRE_LABELS["L4"], WIRE_LABELS["L5"]]
    assert [entry["name"] for entry in info["label_info"]] == list(WIRE_LABELS)
    assert info["correction"] == saved.id


@pytest.mark.parametrize("params", [{}, {"label_info": [{"name": "nose"}]}], ids=["no names", "unknown name"])
def test_a_label_not_understood_is_parked_and_not_published(desk: Desk, params: Mapping[str, Any]) -> None:
    with pytest.raises(LabelError, match="kept but not used"):
        desk.submit(params)
    (parked,) = desk.store.of_image("img")
    assert parked.status == "parked"
    assert parked.reason
    assert (desk.store.path(parked) / parked.raw).read_bytes() == desk.label.read_bytes()
    assert desk.published == []
    assert desk.store.latest_accepted("img") is None
    with pytest.raises(ValueError, match="accepted correction"):
        desk.store.codes(parked)


def test_a_step_1_label_in_progress_does_not_stand_for_a_finished_one(desk: Desk) -> None:
    """An unfinished step-1 map counted as a reader's names and hid the finished map."""
    for tag in ("draft", STEP1_TAG):
        desk.submit({"label_info": [{"name": "vertebrae"}, {"name": "L4-L5"}]}, tag=tag)
    assert [tag for _, _, tag, _ in desk.published] == [f"draft-{STEP1_TAG}", STEP1_TAG]


def test_a_corrected_step_1_label_never_counts_as_finished(desk: Desk) -> None:
    """A step-1 map that was submitted as final was learned with all vertebrae as sacrum."""
    desk.submit({"label_info": [{"name": "vertebrae"}, {"name": "L4-L5"}]})
    assert [tag for _, _, tag, _ in desk.published] == [STEP1_TAG]
    assert desk.store.latest_accepted("img") is None
    assert [one.step for one in desk.store.in_force("img")] == [1]


def test_nothing_overwrites_an_earlier_correction(desk: Desk) -> None:
    first, second = desk.submit(), desk.submit()
    assert first.id < second.id
    assert [c.id for c in desk.store.of_image("img")] == [first.id, second.id]
    latest = desk.store.latest_accepted("img")
    assert latest is not None
    assert latest.id == second.id


def test_simultaneous_saves_lose_nothing(desk: Desk) -> None:
    threads = [threading.Thread(target=desk.submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(desk.store.of_image("img")) == 12
    assert len(list(desk.store.all())) == 12
    assert not list(desk.root.rglob(f"{PARTIAL_PREFIX}*"))


def test_of_two_labels_at_once_the_newer_one_is_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients saw the label of one reader, and the training used that of the other."""
    own, first_is_kept, second_is_shown = desk.store.file, threading.Event(), threading.Event()

    def slow(*parts: Any) -> Any:
        saved = own(*parts)
        if not first_is_kept.is_set():
            first_is_kept.set()
            second_is_shown.wait(0.5)
        return saved

    monkeypatch.setattr(desk.store, "file", slow)
    first = threading.Thread(target=desk.submit)
    first.start()
    first_is_kept.wait()
    desk.submit()
    second_is_shown.set()
    first.join()
    displayed, newest = desk.published[-1][3]["correction"], desk.store.latest_accepted("img")
    assert newest is not None
    assert displayed == newest.id


@pytest.mark.parametrize("call", range(13))
def test_a_full_disk_leaves_nothing_under_a_final_name(desk: Desk, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk left an entry without its codes, which then failed every reader."""
    real, count = os.fsync, iter(range(99))

    def full(handle: int) -> None:
        if next(count) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk space"):
        desk.submit()
    monkeypatch.undo()
    assert not [p for p in desk.root.rglob("*") if p.name.startswith(PARTIAL_PREFIX)]
    assert desk.published == []
    assert desk.submit().status == "accepted"
    assert all(desk.store.codes(saved).any() for saved in desk.store.of_image("img"))
    assert desk.receipts.waiting() == ()


def prediction(image: str, client: str) -> PredictionRecord:
    return PredictionRecord(ids.new_id(), image, "totalspineseg", {"step1": "a"}, {"total": 1.0}, {}, None, client)


def test_a_correction_knows_the_prediction_it_corrects(desk: Desk) -> None:
    mine, others = prediction("img", "slicer-7"), prediction("img", "slicer-8")
    for record in (mine, others, prediction("other", "slicer-7")):
        desk.predictions.keep(record)
    assert desk.submit().prediction["id"] == mine.id
    assert desk.submit({**L4_L5, "prediction": others.id}).prediction["id"] == others.id
    assert desk.submit({**L4_L5, "prediction": "../../etc"}).prediction["id"] == mine.id
    assert desk.predictions.latest("img", "nobody") == others
    assert desk.predictions.latest("none") is None
    assert desk.predictions.of_image("img") == (mine, others)


def test_a_damaged_record_of_a_prediction_costs_no_correction(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The submission was refused before its file was stored."""
    desk.predictions.keep(prediction("img", "slicer-7"))
    (record,) = desk.root.rglob("record.json")
    record.write_text("{", encoding="utf-8")
    for stated in (None, "p-other"):
        correction = desk.submit({**L4_L5, "prediction": stated})
        assert (correction.status, correction.prediction) == ("accepted", None)
    assert "is skipped" in caplog.text


def test_a_label_sent_for_another_image_than_the_one_it_corrects_is_parked(desk: Desk) -> None:
    """T1w and T2w of a patient have the same grid: the label of one was filed as that of the other."""
    for key, image in (("p-other", "other"), ("p-session", ""), ("p-own", "img")):
        desk.predictions.keep(PredictionRecord(key, image, "totalspineseg", {}, {}, {}, None, "slicer-7"))
    with pytest.raises(LabelError, match=r"'img'.*'other'"):
        desk.submit({**L4_L5, "prediction": "p-other"})
    assert [c.status for c in desk.store.of_image("img")] == ["parked"]
    for stated in ("p-own", "p-session", "nobody's", "", None, 7):
        assert desk.submit({**L4_L5, "prediction": stated}).status == "accepted"


def test_with_authentication_a_correction_knows_the_prediction_of_its_user(desk: Desk) -> None:
    """Predictions were stored under the user's name but searched under the program's, so that anybody's last prediction
    was used."""
    mine, others = prediction("img", "ada"), prediction("img", "bob")
    for record in (mine, others):
        desk.predictions.keep(record)
    assert desk.submit().prediction["id"] == mine.id


def test_whoever_corrects_a_prediction_on_a_replaced_image_is_warned(desk: Desk) -> None:
    """A label of the old image was filed as one of the new image, whose prediction nobody had seen."""
    for sha, expected in (("ab", ["gap", "image_replaced"]), (sha256_of(desk.image), ["gap"])):
        desk.predictions.keep(replace(prediction("img", "slicer-7"), image_sha256=sha))
        assert [finding["kind"] for finding in desk.submit().findings] == expected


@pytest.mark.parametrize(
    ("client", "corrected", "tag", "reported"),
    [
        ("slicer-8", "theirs", "final", True),
        ("slicer-8", "mine", "final", True),
        ("slicer-7", "theirs", "final", True),
        ("slicer-7", "mine", "final", False),
        ("slicer-8", "later", "final", False),
        ("slicer-8", "theirs", "draft", False),
    ],
    ids=["other name", "other name, same prediction", "same name", "one's own", "knew of it", "a draft"],
)
def test_whoever_finishes_a_scan_after_somebody_else_is_warned(
    desk: Desk, client: str, corrected: str, tag: str, reported: bool
) -> None:
    """Two readers had the same scan: the second label replaced the first, and neither reader was told."""
    known = {"mine": prediction("img", "slicer-7"), "theirs": prediction("img", client)}
    for record in known.values():
        desk.predictions.keep(record)
    desk.submit({**L4_L5, "prediction": known["mine"].id})
    known["later"] = prediction("img", client)
    desk.predictions.keep(known["later"])
    sender = replace(SENDER, client=client)
    second = desk.submit({**L4_L5, "prediction": known[corrected].id}, tag, sender=sender)
    messages = [found["message"] for found in second.findings if found["kind"] == "finished_meanwhile"]
    assert len(messages) == int(reported)
    assert all(re.search(r"'slicer-7'.* \d\d:\d\d UTC", message) for message in messages)


@pytest.mark.parametrize(
    ("first", "second", "reported"),
    [("final", "final", False), ("final", "step1", True), ("step1", "final", True)],
    ids=["a finished label beside a map", "a map sent as a map", "a map sent as finished"],
)
def test_whoever_replaces_no_label_is_not_warned(desk: Desk, first: str, second: str, reported: bool) -> None:
    """A finished label was said to replace a step-1 map, which is shown separately."""
    step1 = {"label_info": [{"name": "vertebrae"}, {"name": "L4-L5"}]}
    record = prediction("img", "slicer-8")
    desk.predictions.keep(record)
    desk.submit(step1, first)
    sent = {**(step1 if reported else L4_L5), "prediction": record.id}
    saved = desk.submit(sent, second, sender=replace(SENDER, client="slicer-8"))
    assert [found["kind"] for found in saved.findings].count("finished_meanwhile") == int(reported)


@pytest.mark.parametrize(
    "image_id",
    ["a b", "1.2.840.113", "..", ".hidden", "a/b", "../../etc/passwd", "ä" * 150, "x" * 400, "a%2Fb", "", "a\x00b"],
    ids=repr,
)
def test_image_ids_become_one_harmless_folder_name(image_id: str) -> None:
    if not image_id:
        with pytest.raises(ValueError, match="image id"):
            ids.folder_name(image_id)
        return
    name = ids.folder_name(image_id)
    assert "/" not in name
    assert "\x00" not in name
    assert not name.startswith(".")
    assert len(name.encode()) <= ids.MAX_FOLDER_NAME


def test_different_ids_have_different_folders() -> None:
    images = ["a/b", "a%2Fb", "a_b", "a b", "a", "A", "x" * 400, "x" * 401, ".a", "%2Ea"]
    assert len({ids.folder_name(image) for image in images}) == len(images)


def test_a_damaged_record_is_named(desk: Desk) -> None:
    saved = desk.submit()
    record = desk.store.path(saved) / "record.json"
    record.write_text("{", encoding="utf-8")
    reasons: list[str] = []
    for text in ("{", json.dumps({"id": "x"})):
        record.write_text(text, encoding="utf-8")
        assert list(desk.store.readable(lambda _, error: reasons.append(str(error)))) == []
        assert (desk.store.of_image("img"), desk.store.any_of("img")) == ((), True)
    assert "cannot be read" in reasons[0]
    assert "lacks image, status" in reasons[1]


def test_a_label_counts_again_once_its_record_can_be_read_again(desk: Desk) -> None:
    """It stayed hidden until the next start, because its folder had not changed."""
    saved = desk.submit()
    record = desk.store.path(saved) / "record.json"
    whole = record.read_text(encoding="utf-8")
    record.write_text("{", encoding="utf-8")
    # The folder has not changed for long, so its corrections are remembered.
    os.utime(record.parent.parent, (0, 0))
    assert desk.store.in_force("img") == ()
    record.write_text(whole, encoding="utf-8")
    assert [known.id for known in desk.store.in_force("img")] == [saved.id]


@pytest.mark.parametrize(
    ("tag", "safe"), [("final", True), ("v-2_b", True), ("..", False), ("a/b", False), ("", False), ("a.b", False)]
)
def test_safe_tags(tag: str, safe: bool) -> None:
    assert is_safe_tag(tag) is safe


@pytest.fixture
def studies(desk: Desk, tmp_path: Path) -> StudiesDatastore:
    folder = tmp_path / "studies"
    folder.mkdir()
    write_volume(folder / "b.nii.b.nii.gz", np.ones(GRID.shape, np.uint8), GRID)
    write_volume(folder / ".partial-x.nii.gz", np.ones(GRID.shape, np.uint8), GRID)
    return StudiesDatastore(str(folder), auto_reload=False)


def test_only_whole_images_with_plain_names_are_offered(studies: StudiesDatastore) -> None:
    assert studies.list_images() == ["b.nii.b"]


def test_a_renamed_image_is_offered_at_once(tmp_path: Path) -> None:
    """rsync writes under a temporary name: its images were not offered until another file came."""
    followed = StudiesDatastore(str(tmp_path))
    (tmp_path / ".one.nii.gz.Xy12ab").write_bytes(b"image")
    (tmp_path / ".one.nii.gz.Xy12ab").rename(tmp_path / "one.nii.gz")
    wait_for(lambda: followed.list_images() == ["one"])
    (tmp_path / "one.nii.gz").rename(tmp_path / "two.nii.gz")
    wait_for(lambda: followed.list_images() == ["two"])
    (tmp_path / "two.nii.gz").rename(tmp_path / "two.nii.gz.away")
    wait_for(lambda: followed.list_images() == [])


@pytest.mark.parametrize("ending", [".nrrd", ".nii"])
def test_two_files_with_one_id_are_reported(
    studies: StudiesDatastore, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second of x.nii.gz and x.nrrd was silently never offered."""
    folder = studies._place
    for name in (f"x{ending}", "x.nii.gz"):
        write_volume(folder / name, np.ones(GRID.shape, np.uint8), GRID)
    left_out = {f"x{ending}": name_taken("x.nii.gz")}
    for _ in range(2):
        studies.refresh()
        assert studies.status()["not_offered"] == left_out
    assert caplog.text.count(f"Not offered: 'x{ending}'") == 1
    assert Path(studies.get_image_uri("x")).name == "x.nii.gz"
    caplog.clear()
    again = StudiesDatastore(str(folder), auto_reload=False, read_only=True)
    assert (again.status()["not_offered"], caplog.text.count("Not offered")) == (left_out, 1)
    (folder / "x.nii.gz").unlink()
    studies.refresh()
    assert studies.status()["not_offered"] == {}
    write_volume(folder / "x.nii.gz", np.ones(GRID.shape, np.uint8), GRID)
    studies.refresh()
    # What was offered before stays: labels may have been drawn on it.
    assert studies.status()["not_offered"] == {"x.nii.gz": name_taken(f"x{ending}")}
    assert Path(studies.get_image_uri("x")).name == f"x{ending}"


def test_an_upload_never_replaces_an_image(studies: StudiesDatastore, desk: Desk) -> None:
    """An upload under a known id replaced the scan that finished labels belonged to."""
    assert studies.add_image("new", str(desk.image), {}) == "new"
    assert studies.add_image("new", str(desk.image), {}) == "new"
    with pytest.raises(FileExistsError, match="Another image here"):
        studies.add_image("new", str(desk.label), {})
    for unreadable in ("a\nb", "x" * 201):
        with pytest.raises(ValueError, match="without control characters"):
            studies.add_image(unreadable, str(desk.image), {})
    odd = desk.root / "x.txt"
    odd.write_text("no", encoding="utf-8")
    with pytest.raises(ValueError, match=r"ends in"):
        studies.add_image("", str(odd), {})


def test_a_label_is_replaced_whole_and_survives_a_full_disk(
    studies: StudiesDatastore, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.add_image("img", str(desk.image), {})
    studies.save_label("img", str(desk.label), "final", {"a": 1})
    before = Path(studies.get_label_uri("img", "final")).read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk space"):
        studies.save_label("img", str(desk.image), "final", {"a": 2})
    monkeypatch.undo()
    assert Path(studies.get_label_uri("img", "final")).read_bytes() == before
    assert studies.get_label_info("img", "final")["a"] == 1
    with pytest.raises(ValueError, match="label tag"):
        studies.save_label("img", str(desk.label), "../x", {})
    with pytest.raises(KeyError):
        studies.save_label("nobody", str(desk.label), "final", {})


def test_two_processes_keep_each_others_labels(studies: StudiesDatastore, desk: Desk) -> None:
    """Batch inference overwrote a label that was submitted meanwhile with its old index, and its history was gone."""
    studies.add_image("one", str(desk.image), {})
    studies.add_image("two", str(desk.image), {})
    other = StudiesDatastore(str(studies._place), auto_reload=False)
    studies.save_label("one", str(desk.label), "final", {"who": "ada"})
    other.save_label("two", str(desk.label), "original", {"who": "batch"})
    # What the first one knows is old by now.
    studies.update_image_info("one", {"strategy": "first"})
    other.update_label_info("two", "original", {"seen": True})
    studies.refresh()
    fresh = StudiesDatastore(str(studies._place), auto_reload=False)
    assert fresh.get_label_info("one", "final")["who"] == "ada"
    assert fresh.get_label_info("two", "original")["who"] == "batch"
    assert fresh.get_image_info("one")["strategy"] == "first"
    assert fresh.get_label_info("two", "original")["seen"]
    assert fresh.status()["completed"] == 1


def test_nobody_waits_forever_for_an_index_that_another_process_holds(
    studies: StudiesDatastore, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hung while it held the index stopped every submission, and every reader, for good."""
    studies.add_image("img", str(desk.image), {})
    monkeypatch.setattr(label_files, "INDEX_SECONDS", 1)

    def show(image_id: str, file: Path, tag: str, info: dict[str, Any]) -> None:
        studies.save_label(image_id, str(file), tag, info)

    monkeypatch.setattr(desk, "_publish", show)
    hold = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(studies._place / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        sent = ThreadPoolExecutor().submit(desk.submit)
        wait_for(lambda: desk.store.of_image("img"))
        assert studies.status()["total"] == 2, "readers need not wait"
        assert not sent.done()
        with pytest.raises(BusyError, match=rf"process {holder.pid}\b.*kept"):
            sent.result()
    (saved,) = desk.store.of_image("img")
    assert saved.status == "accepted"
    desk.submit()
    assert studies.get_label_info("img", "final")["correction"] != saved.id
