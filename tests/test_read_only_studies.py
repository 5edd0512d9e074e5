"""Tests of studies that can only be read, and of a full disk: whatever can be read is shown."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.client.client import MONAILabelClient, MONAILabelClientException
from monailabel.config import settings

from pacs_serving import wait_for
from serving import Server
from totalspineseg_server import cli
from totalspineseg_server.app import App as RealApp
from totalspineseg_server.corrections import image_records
from totalspineseg_server.corrections.receipts import Sender, receipt_of
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import StorageError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.processes import free_port
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.server import DEFAULT_STUDIES, studies_folder
from totalspineseg_server.training.site import has_corrections, site_of

# The client leaves its sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

GRID = Grid((4, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
SENDER = Sender(user="ada", client="slicer-7", file_name="label.nii.gz")
L4 = {"label_info": [{"name": "L4"}]}


def volume(file: Path, values: int = 64) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_volume(file, (np.arange(64) % values).astype(np.uint8).reshape(GRID.shape), GRID)
    return file


@contextmanager
def unwritable(server: Server) -> Iterator[None]:
    """A server that can neither lock its index nor record anything; even root cannot write where a file lies in place
    of a folder."""
    lock, history = server.studies / ".lock", server.studies / ".totalspineseg"
    away = server.studies.parent / "away"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    history.rename(away)
    history.touch()
    try:
        yield
    finally:
        history.unlink()
        away.rename(history)
        lock.rmdir()


def test_what_cannot_be_recorded_is_answered_with_a_warning(server: Server, tmp_path: Path) -> None:
    """On a full disk or a read-only folder, nobody could look at a scan or at a computed result."""
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
    client.infer("totalspineseg", "z-last", {})
    with unwritable(server):
        sample = client.next_sample("last", {})
        assert (sample["id"] != "", "record" in sample["warning"]) == (True, True)
        result, report = client.infer("totalspineseg", "z-last", {})
        assert "record" in report["warning"]
        assert (Path(result).is_file(), report["label_names"]["L1"] > 0) == (True, True)
        with pytest.raises(MONAILabelClientException, match=r"507;.*totalspineseg/received"):
            client.save_label("z-last", result, params=L4)
    assert f"write to '{server.studies}/.totalspineseg/received' " in server.log.read_text(encoding="utf-8")
    assert "warning" not in client.next_sample("last", {})
    assert client.infer("totalspineseg", "z-last", {})[1]["warning"] == ""


def test_a_work_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start ended with a traceback about a lock."""
    monkeypatch.setattr("uvicorn.Server.run", pytest.fail)
    (tmp_path / "file").touch()
    (tmp_path / "studies").mkdir()
    # Not even root can make a folder in a file.
    closed, studies = str(tmp_path / "file" / "work"), str(tmp_path / "studies")
    port = ["--port", str(free_port())]
    assert cli.main(["serve", *port, "--no-demo", "--studies", studies, "--work", closed]) == cli.EXIT_USAGE
    sentence = capsys.readouterr().err
    assert (sentence.count("\n"), "cannot be written" in sentence, "with --work" in sentence) == (1, True, True)


@pytest.mark.parametrize("more", [[], ["--no-demo"], ["--work", "work"]], ids=["plain", "no demo", "work"])
def test_a_mistyped_studies_folder_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """The folder was made and filled with demo studies, which a reader took for real ones."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", "--port", str(free_port()), "--studies", "stduies", *more]) == cli.EXIT_USAGE
    printed = capsys.readouterr().err
    assert (printed.count("\n"), "does not exist" in printed, "mount" in printed) == (1, True, True)
    assert not (tmp_path / "stduies").exists()


@pytest.mark.parametrize(
    ("name", "more"),
    [("archive", []), ("archive", ["--work", "work"]), (DEFAULT_STUDIES, ["--work", "work"])],
    ids=["plain", "work", "default and work"],
)
def test_a_folder_that_is_not_mounted_is_not_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, more: list[str]
) -> None:
    """With --work, an archive that was not mounted looked like a folder without images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uvicorn.Server.run", pytest.fail)
    (tmp_path / name).mkdir()
    assert cli.main(["serve", "--port", str(free_port()), "--studies", name, *more]) == cli.EXIT_USAGE
    printed = capsys.readouterr().err
    assert (printed.count("\n"), "is empty" in printed, "--no-demo" in printed) == (1, True, True)
    assert list(tmp_path.rglob("*")) == [tmp_path / name]


def test_only_the_default_folder_is_filled_with_demo_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "totalspineseg_server.synthesis.demo_studies", lambda folder, *_: (folder / "demo.nii.gz").touch()
    )
    folder = studies_folder(Path(DEFAULT_STUDIES).resolve(), demo=True, read_only=False)
    assert [file.name for file in folder.iterdir()] == ["demo.nii.gz"]
    (tmp_path / "empty").mkdir()
    assert not list(studies_folder(tmp_path / "empty", demo=False, read_only=False).iterdir())


def test_a_full_disk_does_not_keep_the_server_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StudiesDatastore(str(tmp_path), auto_reload=False)
    volume(tmp_path / "one.nii.gz")

    def full(path: Path, content: object, **_: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(image_records, "write_json", full)
        studies = StudiesDatastore(str(tmp_path), auto_reload=False)
    assert studies.list_images() == ["one"]
    studies.update_image_info("one", {"seen": True})
    assert StudiesDatastore(str(tmp_path), auto_reload=False).get_image_info("one")["seen"]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app on read-only studies, with another folder for what it writes."""
    volume(tmp_path / "studies" / "one.nii.gz")
    volume(tmp_path / "studies" / "two.nii.gz")
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    conf = {"weights": str(tmp_path / "none"), "work": str(tmp_path / "work")}
    return RealApp(app_dir=str(tmp_path), studies=str(tmp_path / "studies"), conf=conf)


def submit(app: Any, label: Path) -> Any:
    return app.inbox.submit(receipt_of("one", label, tag="final", sender=SENDER, params=L4), label)


@pytest.mark.slow
def test_nothing_is_written_to_studies_that_have_a_work_folder(app: Any, tmp_path: Path) -> None:
    """An archive could not be mounted read-only, because labels, index and history were stored in it."""
    studies, work = tmp_path / "studies", tmp_path / "work"
    submit(app, volume(tmp_path / "label.nii.gz", 2))
    assert sorted(path.name for path in studies.rglob("*")) == ["one.nii.gz", "two.nii.gz"]
    assert (work / "studies" / "labels" / "final" / "one.nii.gz").is_file()
    assert app.datastore().get_labeled_images() == ["one"]
    volume(studies / "three.nii.gz")
    wait_for(lambda: "three" in app.datastore().list_images())
    assert has_corrections(work)
    site = site_of(work, ModelStore(tmp_path / "model"))
    assert [(c.image, c.status) for c in site.corrections.all()] == [("one", "accepted")]
    assert site.image_file("one") == studies / "one.nii.gz"


def test_an_archive_that_is_away_for_a_moment_costs_nothing(app: Any, tmp_path: Path) -> None:
    """Everything known about its labels was missing in the index when it came back."""
    store = app.datastore()
    stored = submit(app, volume(tmp_path / "label.nii.gz", 2))
    shutil.move(tmp_path / "studies", tmp_path / "away")
    store.refresh()
    (tmp_path / "studies").mkdir()
    store.refresh()
    shutil.move(tmp_path / "away" / "one.nii.gz", tmp_path / "studies")
    store.refresh()
    assert (store.list_images(), store.get_labeled_images()) == (["one"], ["one"])
    assert store.get_label_info("one", "final")["correction"] == stored.id


def test_studies_that_moved_keep_their_labels(app: Any, tmp_path: Path) -> None:
    """The work folder knows where they lay before."""
    submit(app, volume(tmp_path / "label.nii.gz", 2))
    shutil.move(tmp_path / "studies", tmp_path / "moved")
    again = StudiesDatastore(str(tmp_path / "work" / "studies"), images=str(tmp_path / "moved"), auto_reload=False)
    assert again.get_labeled_images() == ["one"]
    assert Path(again.get_image_uri("two")) == tmp_path / "moved" / "two.nii.gz"
    again.update_image_info("two", {"seen": True})
    index = json.loads((tmp_path / "work" / "studies" / "images.json").read_text(encoding="utf-8"))
    assert index["images_dir"] == str(tmp_path / "moved")
