"""Tests of checking whether an image is still the labeled one, by its content, which is read only if necessary."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import totalspineseg_server.corrections.image_fingerprints as module
from totalspineseg_server.corrections.datastore import StudiesDatastore
from totalspineseg_server.corrections.image_fingerprints import DRAWN_ON, IMPRINT, ImageCheck, imprint_of
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
    label = {DRAWN_ON: read(image), IMPRINT: imprint_of(image)}
    if content is not None:
        image.write_bytes(content)
        # File systems tell times apart by milliseconds at best.
        os.utime(image, (0, 0))
    seen: list[Path] = []
    monkeypatch.setattr(module, "sha256_of", lambda path: seen.append(path) or read(path))
    check = ImageCheck()
    for _ in range(3):
        assert check.check(image, label) == (imprint_of(image) if same else None)
    assert len(seen) == reads


def test_an_image_replaced_before_its_label_was_shown_is_not_finished(tmp_path: Path) -> None:
    """A label of the previous image counted for good, because the new file was never read."""
    image, label = tmp_path / "studies" / "a.nii", tmp_path / "label.nii"
    image.parent.mkdir()
    for file in (image, label):
        file.write_bytes(b"first")
    drawn_on = sha256_of(image)
    studies = StudiesDatastore(str(image.parent), auto_reload=False)
    image.write_bytes(b"other")
    studies.save_label("a", str(label), "final", {DRAWN_ON: drawn_on})
    assert (studies.get_labeled_images(), studies.get_label_uri("a", "final")) == ([], "")
    image.write_bytes(b"first")
    os.utime(image, (0, 0))
    assert studies.get_labeled_images() == ["a"]


def test_many_who_ask_at_once_have_an_image_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the studies were copied, each request for a list read all images anew, all at the same time."""
    image, read, askers = tmp_path / "a.nii", sha256_of, 4
    image.write_bytes(b"first")
    label, together = {DRAWN_ON: read(image)}, threading.Barrier(askers)
    seen: list[Path] = []

    def slowly(path: Path) -> str:
        seen.append(path)
        time.sleep(0.2)
        return read(path)

    monkeypatch.setattr(module, "sha256_of", slowly)
    check = ImageCheck()

    def ask(_: int) -> bool:
        together.wait()
        return check.check(image, label) is not None

    with ThreadPoolExecutor(askers) as pool:
        assert all(pool.map(ask, range(askers)))
    assert len(seen) == 1
