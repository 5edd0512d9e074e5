"""Tests that a submission is stored before it is read, so that it can be read again after any failure."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from test_corrections_store import L4_L5, SENDER, Desk
from totalspineseg_server.corrections import interpretation, receipts
from totalspineseg_server.corrections.answers import NOT_TRIED
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.receipts import Waiting
from totalspineseg_server.errors import (
    ImageError,
    LabelError,
    MemoryShortageError,
    StorageError,
    SubmissionError,
    UnknownImageError,
)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def waiting(desk: Desk) -> Waiting:
    """The waiting submission, whose file is the one that was sent."""
    (found,) = desk.receipts.waiting()
    assert (desk.receipts.folder(found.receipt) / found.receipt.raw).read_bytes() == desk.label.read_bytes()
    return found


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (MemoryError(), MemoryShortageError),
        (MemoryShortageError("a smaller image is required"), MemoryShortageError),
        (TypeError("a field of a later version"), SubmissionError),
        (RecursionError(), SubmissionError),
        (OSError(5, "Input/output error"), SubmissionError),
        (OSError(28, "No space left on device"), StorageError),
        (StorageError("no room"), StorageError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
@pytest.mark.parametrize("place", ["lint", "read_image", "sha256_of", "file", "likely"])
def test_what_fails_while_a_label_is_read_loses_nothing(
    desk: Desk, place: str, error: Exception, heard: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory, a fault of the linter or an odd record lost the submission with a bare 500."""
    with monkeypatch.context() as patch:
        if place == "lint":
            patch.setattr(desk, "lint", fails(error))
        if place == "read_image":
            patch.setattr(interpretation, "read_image", fails(error))
        if place == "sha256_of":
            own = interpretation.sha256_of
            patch.setattr(interpretation, "sha256_of", lambda path: fails(error)() if path == desk.image else own(path))
        if place == "file":
            patch.setattr(desk.store, "file", fails(error))
        if place == "likely":
            patch.setattr(desk.inbox._interpreter, "likely", fails(error))
        for _ in range(2):
            with pytest.raises(heard, match=r"kept.*(?i:submit it again)"):
                desk.submit()
            assert type(error).__name__ in waiting(desk).reason
    assert (desk.store.of_image("img"), desk.published) == ((), [])
    stored = waiting(desk).receipt
    assert (stored.image, stored.sender, stored.params) == ("img", SENDER, L4_L5)
    assert desk.submit().id == stored.id, "sent again, it is the same submission"
    assert [c.id for c in desk.store.of_image("img")] == [stored.id]
    assert (desk.receipts.waiting(), len(desk.published)) == ((), 1)


def killed_while_reading(desk: Desk, then: Callable[[], object]) -> None:
    """Do something in a separate process that is killed with SIGKILL when the linter is reached."""

    def run() -> None:
        desk.lint = lambda codes, grid: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
        then()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_kill_9_after_a_label_was_stored_costs_nothing(desk: Desk) -> None:
    """When the server was killed while it read a label, nothing of the label was left."""
    killed_while_reading(desk, desk.submit)
    found = waiting(desk)
    assert found.reason == NOT_TRIED
    again = Desk(desk.root)
    assert again.inbox.interpret_waiting(again=False) == ()
    (stored,) = again.store.of_image("img")
    assert (stored.id, stored.status, stored.received) == (found.receipt.id, "accepted", found.receipt.received)
    assert len(again.published) == 1


def test_the_lock_of_a_label_that_was_filed_goes_at_the_next_start(desk: Desk) -> None:
    """After kill -9, hidden files stayed among the submissions for good."""
    lock = desk.root / "received" / f".{desk.submit().id}.lock"
    lock.touch()
    Desk(desk.root).inbox.interpret_waiting(again=False)
    assert not lock.exists()


@pytest.mark.parametrize(("params", "status"), [(L4_L5, "accepted"), ({}, "parked")], ids=["accepted", "parked"])
def test_a_server_that_starts_leaves_alone_what_another_one_reads(
    desk: Desk, params: dict[str, Any], status: str
) -> None:
    """A starting server filed a label that another server was reading, whose client was then told that the disk was
    full."""
    other = Desk(desk.root)
    looked: list[int] = []
    own = desk.receipts.folder

    def folder(receipt: receipts.Receipt) -> Path:
        looked.append(len(other.inbox.interpret_waiting(again=False)))
        return own(receipt)

    desk.receipts.folder = folder  # type: ignore[method-assign]
    heard = nullcontext() if status == "accepted" else pytest.raises(LabelError, match="kept but not used")
    with heard:
        desk.submit(params)
    assert looked[0] == 1
    assert [c.status for c in desk.store.of_image("img")] == [status]
    assert (len(desk.published), other.published) == (int(status == "accepted"), [])
    assert not list((desk.root / "received").glob(".*"))


@pytest.mark.parametrize(("params", "status"), [(L4_L5, "accepted"), ({}, "parked")], ids=["accepted", "parked"])
def test_a_label_that_another_server_read_first_is_answered_as_that_one_filed_it(
    desk: Desk, params: dict[str, Any], status: str
) -> None:
    other = Desk(desk.root)
    own = desk.receipts.keep

    def keep(receipt: receipts.Receipt, file: Path) -> None:
        own(receipt, file)
        other.inbox.interpret_waiting(again=False)

    desk.receipts.keep = keep  # type: ignore[method-assign]
    if status == "accepted":
        assert desk.submit(params) == desk.store.latest_accepted("img")
    else:
        with pytest.raises(LabelError, match=r"name.*kept but not used"):
            desk.submit(params)
    assert [c.status for c in desk.store.of_image("img")] == [status]
    assert (desk.published, len(other.published)) == ([], int(status == "accepted"))


def test_a_label_that_ends_the_server_is_not_read_again_by_itself(desk: Desk) -> None:
    """A label that uses all memory must not end the server at every start."""
    killed_while_reading(desk, desk.submit)
    killed_while_reading(desk, lambda: desk.inbox.interpret_waiting(again=False))
    (left,) = desk.inbox.interpret_waiting(again=False)
    assert "stopped while" in left.reason
    assert desk.inbox.interpret_waiting(again=True) == ()
    assert [c.status for c in desk.store.of_image("img")] == ["accepted"]


@pytest.mark.parametrize("file", ["codes.nii.gz", "record.json"])
def test_kill_9_while_a_label_is_filed_costs_nothing(desk: Desk, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.store.file = fails(RuntimeError())  # type: ignore[method-assign]
    with pytest.raises(SubmissionError):
        desk.submit()
    (desk.receipts.folder(waiting(desk).receipt) / file).write_bytes(b"half a file")
    again = Desk(desk.root)
    assert again.inbox.interpret_waiting(again=True) == ()
    (stored,) = again.store.of_image("img")
    assert again.store.codes(stored).any()


def test_a_label_that_waited_does_not_hide_a_newer_one(desk: Desk) -> None:
    desk.lint = fails(MemoryError())
    with pytest.raises(MemoryShortageError):
        desk.submit()
    desk.lint = lambda codes, grid: ()
    newer = desk.submit({**L4_L5, "unreviewed": "L5"})
    assert desk.inbox.interpret_waiting(again=True) == ()
    late, newest = desk.store.of_image("img")
    assert (late.id < newest.id, newest) == (True, newer)
    assert [info["correction"] for _, _, _, info in desk.published] == [newer.id]
    assert [c.id for c in desk.store.in_force("img")] == [late.id, newer.id]


def test_a_label_that_waited_is_displayed_as_renumbered(desk: Desk) -> None:
    """A PACS kept the names as they were sent."""
    desk.lint = fails(MemoryError())
    with pytest.raises(MemoryShortageError):
        desk.submit()
    desk.lint = lambda codes, grid: ()
    own, followed = desk.store.file, {"message": "The others follow."}
    desk.store.file = (  # type: ignore[method-assign]
        lambda folder, record, codes=None: own(folder, replace(record, renumbered=followed), codes)
    )
    assert desk.inbox.interpret_waiting(again=True) == ()
    ((_, _, _, info),) = desk.published
    assert info["renumbered"] is True


def test_a_label_that_waited_does_not_come_back_after_the_next_was_taken_back(desk: Desk) -> None:
    desk.lint = fails(MemoryError())
    with pytest.raises(MemoryShortageError):
        desk.submit()
    desk.lint = lambda codes, grid: ()
    newer = desk.submit({**L4_L5, "unreviewed": "L5"})
    assert desk.inbox.withdraw("img", "final", user="ada") == (newer.id,)
    desk.inbox.interpret_waiting(again=True)
    assert len(desk.store.of_image("img")) == 2
    assert (desk.store.in_force("img"), len(desk.published)) == ((), 1)


def test_a_label_that_cannot_be_shown_is_filed_all_the_same(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(desk, "_publish", fails(TypeError("a field")))
        with pytest.raises(SubmissionError, match="kept, but not shown"):
            desk.submit()
    assert [c.status for c in desk.store.of_image("img")] == ["accepted"]


@pytest.mark.parametrize("tag", ["a b", "../x", "x" * 200])
def test_a_label_with_an_odd_tag_is_stored(desk: Desk, tag: str) -> None:
    """The label was refused before its file was stored."""
    with pytest.raises(LabelError, match=r"tag.*kept but not used"):
        desk.submit(tag=tag)
    (parked,) = desk.store.of_image("img")
    assert (parked.status, parked.tag) == ("parked", tag)


@pytest.mark.parametrize("image", ["nobody", "", "../etc", "img "])
def test_a_label_of_no_image_is_stored_for_a_while(desk: Desk, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_UNFILED", 2)
    for tag in ("a", "b", "c"):
        with pytest.raises(UnknownImageError, match=r"no image .*kept for a while"):
            desk.submit(tag=tag, image=image)
    assert [one.receipt.tag for one in desk.receipts.unfiled()] == ["b", "c"]
    assert all("no image" in one.reason for one in desk.receipts.unfiled())
    assert (desk.receipts.waiting(), list(desk.store.all())) == ((), [])
    if image == "nobody":
        desk.images["nobody"] = desk.image
        assert desk.inbox.interpret_waiting(again=True) == ()
        assert list(desk.store.all()) == [], "another one's image that has the name since"


def test_a_damaged_note_of_a_waiting_label_hides_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One unreadable note ended the reading of everything that waited."""
    with monkeypatch.context() as patch:
        patch.setattr(desk, "lint", fails(MemoryError()))
        for tag in ("a", "b"):
            with pytest.raises(MemoryShortageError):
                desk.submit(tag=tag)
    first, second = desk.receipts.waiting()
    note = desk.receipts.folder(first.receipt) / receipts.RECEIPT_FILE
    note.write_text(note.read_text(encoding="utf-8")[:20], encoding="utf-8")
    assert desk.receipts.waiting() == (second,)
    assert first.receipt.id in caplog.text
    assert desk.inbox.interpret_waiting(again=True) == ()
    assert [c.tag for c in desk.store.of_image("img")] == ["b"]
    assert note.is_file()


def test_a_label_of_a_series_that_is_not_a_volume_does_not_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was reported as a fault of the server, and failed again whenever it was read again."""
    monkeypatch.setattr(desk, "images", SimpleNamespace(get=fails(ImageError("the slices overlap"))))
    with pytest.raises(LabelError, match=r"overlap\. .*kept for a while"):
        desk.submit()
    assert desk.receipts.waiting() == ()
    assert [one.reason for one in desk.receipts.unfiled()] == ["the slices overlap"]


def test_a_label_whose_reading_failed_stays_that_of_the_image_it_was_sent_for(desk: Desk) -> None:
    """Uploads of a client are forgotten at the next start; the label must not be filed under another patient then."""
    desk.images["of Ada"] = desk.root / "ada.nii.gz"
    desk.images["of Ada"].write_bytes(desk.image.read_bytes())
    desk.lint = fails(MemoryError())
    desk.inbox.uploads.record_refusal(SENDER.client, "img", "ab")
    desk.inbox.uploads.record_upload(SENDER.client, "of Ada", "ab")
    with pytest.raises(MemoryShortageError):
        desk.submit()
    again = Desk(desk.root)
    again.images["of Ada"] = desk.images["of Ada"]
    again.inbox.interpret_waiting(again=True)
    assert (again.store.of_image("img"), len(again.store.of_image("of Ada"))) == ((), 1)


def test_a_history_of_an_earlier_version_opens_unchanged(tmp_path: Path) -> None:
    """Old entries have the file, its codes and one record, and say nothing about what was not reviewed."""
    (tmp_path / "new").mkdir()
    desk = Desk(tmp_path / "new")
    accepted = desk.submit()
    with pytest.raises(LabelError):
        desk.submit({})
    for entry in (tmp_path / "new" / "corrections" / "img").iterdir():
        (entry / "received.json").unlink()
        record = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        del record["unreviewed"], record["renumbered"]
        (entry / "record.json").write_text(json.dumps(record), encoding="utf-8")
    store = CorrectionStore(tmp_path / "new")
    old, parked = store.of_image("img")
    assert asdict(old) == asdict(accepted)
    assert (parked.status, store.codes(old).any()) == ("parked", True)
    assert desk.submit().id > parked.id


def test_text_that_is_not_utf_8_is_stored_as_a_client_sent_it(desk: Desk) -> None:
    """Half a surrogate pair in a segment's name could not be written, and the label was lost."""
    with pytest.raises(LabelError, match="kept but not used"):
        desk.submit({"label_info": [{"name": "L4 \ud800"}, {"name": "L5"}]})
    (parked,) = desk.store.of_image("img")
    assert parked.label_info[0]["name"] == "L4 \ud800"
