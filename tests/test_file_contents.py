"""Tests of remembering what files hold: contents are read only if necessary, and values again after a change."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import totalspineseg_server.corrections.image_records as module
from totalspineseg_server.corrections.image_records import ContentHashes, Remembered
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.files import sha256_of


@pytest.mark.parametrize(
    ("content", "same", "reads"),
    [(None, True, 0), (b"first", True, 1), (b"other", False, 1), (b"another", False, 0)],
    ids=["untouched", "touched", "same size", "another size"],
)
def test_an_image_is_read_once_and_only_if_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, same: bool, reads: int
) -> None:
    image, read = tmp_path / "a.nii", sha256_of
    image.write_bytes(b"first")
    image_hash = ContentHashes(tmp_path / "hashes.json").of(image)
    if content is not None:
        image.write_bytes(content)
        # File systems tell times apart by milliseconds at best.
        os.utime(image, (0, 0))
    seen: list[Path] = []
    monkeypatch.setattr(module, "sha256_of", lambda path: seen.append(path) or read(path))
    contents = ContentHashes(tmp_path / "hashes.json")
    for _ in range(3):
        assert contents.is_content(image, image_hash) is same
    assert len(seen) == reads


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1, "b": [1, 2], "c": ["x", 1, 2]}'])
def test_hashes_that_cannot_be_read_are_computed_again(tmp_path: Path, damage: str) -> None:
    (tmp_path / "hashes.json").write_text(damage, encoding="utf-8")
    (tmp_path / "a.nii").write_bytes(b"first")
    assert ContentHashes(tmp_path / "hashes.json").of(tmp_path / "a.nii") == sha256_of(tmp_path / "a.nii")


def test_a_file_that_changes_at_once_is_read_at_once(tmp_path: Path) -> None:
    """Two changes within a millisecond have one time."""
    file, remembered = tmp_path / "a", Remembered[str]()
    for text in ("one", "two", "six"):
        file.write_text(text, encoding="utf-8")
        assert remembered.value("a", [file], lambda: file.read_text(encoding="utf-8")) == text
    os.utime(file, (0, 0))
    reads: list[int] = []
    for _ in range(2):
        remembered.value("a", [file], lambda: (reads.append(1), file.read_text(encoding="utf-8"))[1])
    assert len(reads) == 1, "it is read once while it stays"


def test_an_image_replaced_before_its_label_was_displayed_is_not_finished(tmp_path: Path) -> None:
    """A label of the previous image counted for good, because the new file was never read."""
    image, label = tmp_path / "studies" / "a.nii", tmp_path / "label.nii"
    image.parent.mkdir()
    for file in (image, label):
        file.write_bytes(b"first")
    image_hash = sha256_of(image)
    studies = StudiesDatastore(str(image.parent), auto_reload=False)
    image.write_bytes(b"other")
    studies.save_label("a", str(label), "final", {IMAGE_HASH: image_hash})
    assert (studies.get_labeled_images(), studies.get_label_uri("a", "final")) == ([], "")
    image.write_bytes(b"first")
    os.utime(image, (0, 0))
    assert studies.get_labeled_images() == ["a"]


def test_an_image_is_read_once_for_many_simultaneous_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the studies were copied, each request for a list read all images again, all at the same time."""
    image, read, askers = tmp_path / "a.nii", sha256_of, 4
    image.write_bytes(b"first")
    image_hash, together = read(image), threading.Barrier(askers)
    seen: list[Path] = []

    def slowly(path: Path) -> str:
        seen.append(path)
        time.sleep(0.2)
        return read(path)

    monkeypatch.setattr(module, "sha256_of", slowly)
    contents = ContentHashes(tmp_path / "hashes.json")

    def ask(_: int) -> bool:
        together.wait()
        return contents.is_content(image, image_hash)

    with ThreadPoolExecutor(askers) as pool:
        assert all(pool.map(ask, range(askers)))
    assert len(seen) == 1
