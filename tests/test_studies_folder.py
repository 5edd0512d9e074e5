"""Tests of what the server removes from the studies folder, and what it keeps."""

import errno
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.interfaces.exception import ImageNotFoundException

from pacs_serving import wait_for
from phantom import RAS, image_of, lumbar_codes, own_image
from serving import Server
from totalspineseg_server.corrections import studies_folder
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume

pytestmark = pytest.mark.slow

GRID = Grid((4, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]))


def volume(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_volume(file, np.arange(64, dtype=np.uint8).reshape(GRID.shape), GRID)
    return file


def test_a_removed_image_is_gone_with_its_displayed_labels(tmp_path: Path) -> None:
    image = volume(tmp_path / "studies" / "one.nii.gz")
    volume(tmp_path / "studies" / "two.nii.gz")
    studies = StudiesDatastore(str(tmp_path / "studies"), auto_reload=False)
    for tag in ("final", "original"):
        studies.save_label("one", str(image), tag, {IMAGE_HASH: sha256_of(image)})
    stored = volume(tmp_path / "studies" / ".totalspineseg" / "corrections" / "one" / "codes.nii.gz")
    studies.remove_image("one")
    studies.refresh()
    assert studies.list_images() == ["two"]
    assert (list((tmp_path / "studies").rglob("*one.*")), stored.is_file()) == ([], True), "nor a note of who drew it"
    with pytest.raises(ImageNotFoundException):
        studies.remove_image("one")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"], ids=["same ending", "another ending"])
def test_an_upload_never_takes_the_place_of_a_file_that_was_just_copied(tmp_path: Path, ending: str) -> None:
    """A scan that had been in the folder for only a few seconds was overwritten by another patient's."""
    studies = StudiesDatastore(str(tmp_path / "studies"), auto_reload=False)
    copied, other = volume(tmp_path / "studies" / f"one{ending}"), tmp_path / "other.nii.gz"
    content = copied.read_bytes()
    write_volume(other, np.ones(GRID.shape, dtype=np.uint8), GRID)
    with pytest.raises(FileExistsError, match="'one'"):
        studies.add_image("one", str(other), {})
    assert ([path.name for path in copied.parent.glob("one.*")], copied.read_bytes()) == ([copied.name], content)
    shutil.copy(copied, tmp_path / f"same{ending}")
    assert studies.add_image("one", str(tmp_path / f"same{ending}"), {"ward": "3b"}) == "one"
    assert (Path(studies.get_image_uri("one")), studies.get_image_info("one")["ward"]) == (copied, "3b")
    assert [path.name for path in copied.parent.glob("one.*")] == [copied.name]


@pytest.mark.parametrize("during", [False, True], ids=["alone", "another one comes meanwhile"])
def test_the_list_is_free_while_a_large_image_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: bool
) -> None:
    """Every request for the list waited until a gigabyte was copied to a slow disk."""
    folder, copy = tmp_path / "studies", studies_folder.copy_file
    studies, begun, go_on = StudiesDatastore(str(folder), auto_reload=False), threading.Event(), threading.Event()
    refused: list[FileExistsError] = []

    def slow(source: Path, target: Path) -> None:
        begun.set()
        assert go_on.wait(20)
        copy(source, target)

    def add() -> None:
        try:
            studies.add_image("one", str(volume(tmp_path / "new.nii.gz")), {})
        except FileExistsError as error:
            refused.append(error)

    monkeypatch.setattr(studies_folder, "copy_file", slow)
    adding, asking = threading.Thread(target=add), threading.Thread(target=studies.list_images)
    adding.start()
    assert begun.wait(20)
    asking.start()
    asking.join(10)
    is_free = not asking.is_alive()
    if during:
        write_volume(folder / "one.nii.gz", np.ones(GRID.shape, dtype=np.uint8), GRID)
    go_on.set()
    adding.join(20)
    asking.join(20)
    assert is_free
    assert len(refused) == during
    assert [path.name for path in folder.glob("*one*")] == ["one.nii.gz"]
    assert [*folder.glob(".partial-*")] == []


def test_an_image_that_was_removed_by_hand_can_be_uploaded_at_once(tmp_path: Path) -> None:
    """For some seconds the answer was a fault of the server."""
    copied = volume(tmp_path / "studies" / "one.nii")
    studies = StudiesDatastore(str(tmp_path / "studies"), auto_reload=False)
    copied.unlink()
    studies.add_image("one", str(volume(tmp_path / "new.nii.gz")), {})
    assert Path(studies.get_image_uri("one")).read_bytes() == (tmp_path / "new.nii.gz").read_bytes()


def test_nothing_takes_the_name_of_an_image_whose_archive_is_away(tmp_path: Path) -> None:
    volume(tmp_path / "archive" / "one.nii.gz")
    studies = StudiesDatastore(str(tmp_path / "work"), images=str(tmp_path / "archive"), auto_reload=False)
    (tmp_path / "archive").rename(tmp_path / "away")
    (tmp_path / "archive").mkdir()
    with pytest.raises(StorageError, match="Mount the folder"):
        studies.add_image("one", str(volume(tmp_path / "new.nii.gz")), {})
    assert (studies.list_images(), list((tmp_path / "archive").iterdir())) == (["one"], [])


def test_nothing_of_a_label_in_another_format_comes_back(tmp_path: Path) -> None:
    """A prediction saved as .nrrd was shown again when the newer one was deleted, or while its image was missing."""
    image, old = volume(tmp_path / "one.nii.gz"), tmp_path / ".new" / "one.nrrd"
    studies = StudiesDatastore(str(tmp_path), auto_reload=False)
    old.parent.mkdir()
    old.write_bytes(b"old")
    folder = tmp_path / "labels" / "original"
    studies.save_label("one", str(old), "original", {IMAGE_HASH: sha256_of(image)})
    studies.save_label("one", str(image), "original", {IMAGE_HASH: sha256_of(image)})
    assert sorted(path.name for path in folder.iterdir()) == [".one.nii.gz.json", "one.nii.gz"]
    shutil.copy(old, folder)
    studies.remove_label("one", "original")
    studies.refresh()
    assert (studies.get_label_uri("one", "original"), list(folder.iterdir())) == ("", [])


def test_no_label_of_a_removed_image_finishes_another_one(tmp_path: Path) -> None:
    """A label may be copied by hand in another format, under the same tag or under one that the index did not know."""
    image = volume(tmp_path / "one.nii.gz")
    studies = StudiesDatastore(str(tmp_path), auto_reload=False)
    for tag in ("final", "step1"):
        (tmp_path / "labels" / tag).mkdir(parents=True)
    studies.save_label("one", str(image), "final", {IMAGE_HASH: sha256_of(image)})
    for file in ("final/one.nrrd", "step1/one.nii"):
        shutil.copy(image, tmp_path / "labels" / file)
    shutil.copy(image, tmp_path / "labels" / "final" / "other.nrrd")
    studies.remove_image("one")
    studies.add_image("one", str(volume(tmp_path / ".new" / "one.nii.gz")), {})
    studies.refresh()
    assert studies.status()["label_tags"] == {}
    assert [path.name for path in (tmp_path / "labels").rglob("*.*")] == ["other.nrrd"]


def test_an_image_that_cannot_be_removed_keeps_its_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image lost its finished label and was offered again."""
    studies = StudiesDatastore(str(tmp_path), auto_reload=False)
    image = volume(tmp_path / "image" / "one.nii.gz")
    studies.add_image("one", str(image), {})
    studies.save_label("one", str(image), "final", {})

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageError, match=r"one.nii.gz.*Read-only"):
            studies.remove_image("one")
    assert Path(studies.get_label_uri("one", "final")).is_file()
    assert studies.get_labeled_images() == ["one"]


def test_only_the_link_is_removed_not_its_file(server: Server) -> None:
    """The scan in the archive to which the link points was deleted, and the link stayed."""
    archived = server.studies.parent / "archive" / "scan.nii.gz"
    archived.parent.mkdir()
    write_volume(archived, own_image("archived", image_of(lumbar_codes())), RAS)
    link = server.studies / "link.nii.gz"
    link.symlink_to(archived)
    wait_for(lambda: "link" in requests.get(f"{server.url}/datastore/?output=all", timeout=20).json()["objects"])
    answer = requests.delete(f"{server.url}/datastore/image", params={"id": "link"}, timeout=20)
    assert answer.status_code == 200, answer.text
    assert (archived.is_file(), link.is_symlink()) == (True, False)
    assert requests.get(f"{server.url}/datastore/image", params={"image": "link"}, timeout=20).status_code == 404


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudiesDatastore:
    monkeypatch.setattr(studies_folder, "LISTED_SECONDS", 0.05)
    return StudiesDatastore(str(tmp_path))


def test_many_who_ask_at_once_list_the_folder_once(
    followed: StudiesDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of a copy of thousands had the whole folder looked through, which kept the server busy for good."""
    lists, listed = [], studies_folder.studies_files
    monkeypatch.setattr(studies_folder, "studies_files", lambda folder: (lists.append(1), listed(folder))[1])
    for number in range(200):
        (tmp_path / f"{number}.nii.gz").touch()
    wait_for(lambda: len(followed.list_images()) == 200)
    lists.clear()
    monkeypatch.setattr(studies_folder, "LISTED_SECONDS", 3600)
    for number in range(200):
        followed.get_image_info(f"{number}")
    assert lists == []


def test_nobody_waits_for_a_folder_that_is_slow_to_list(
    followed: StudiesDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request waited while a network drive was listed."""
    (tmp_path / "one.nii.gz").touch()
    wait_for(lambda: followed.list_images() == ["one"])
    listed, begun, go_on = studies_folder.studies_files, threading.Event(), threading.Event()

    def slow(folder: Path) -> list[str]:
        begun.set()
        assert go_on.wait(20)
        return listed(folder)

    monkeypatch.setattr(studies_folder, "studies_files", slow)
    time.sleep(0.1)
    first = threading.Thread(target=followed.list_images)
    first.start()
    assert begun.wait(20)
    others: list[list[str]] = []
    other = threading.Thread(target=lambda: others.append(followed.list_images()))
    other.start()
    other.join(10)
    go_on.set()
    first.join(20)
    assert others == [["one"]]


def test_a_folder_that_cannot_be_read_for_a_moment_costs_nothing(
    followed: StudiesDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one fault of a network drive no new file was offered anymore until the server was restarted."""
    (tmp_path / "one.nii.gz").touch()
    wait_for(lambda: followed.list_images() == ["one"])

    def stale(folder: Path) -> list[str]:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(studies_folder, "studies_files", stale)
        time.sleep(0.1)
        assert followed.list_images() == ["one"]
    (tmp_path / "two.nii.gz").touch()
    wait_for(lambda: followed.list_images() == ["one", "two"])
