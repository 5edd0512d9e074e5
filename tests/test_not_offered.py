"""Tests of files in a studies folder that are not offered, and of label maps from others."""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from dicom_series import save, slices
from totalspineseg_server.cohort.inputs import find_cases, pair_localizers
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.training.site import folder_site

GRID = Grid((4, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s12--ab.nii.gz\n"


def volume(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_volume(file.with_name("new.nii.gz"), np.arange(64, dtype=np.uint8).reshape(GRID.shape), GRID)
    return file.with_name("new.nii.gz").rename(file)


def linked(file: Path, target: str) -> None:
    file.symlink_to(target)


def written(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def as_ct(header: Dataset, _: int) -> None:
    header.Modality = "CT"


def studies_in(folder: Path) -> StudiesDatastore:
    return StudiesDatastore(str(folder), auto_reload=False)


LEFT = {
    "deeper BIDS": (lambda f: volume(f / "raw" / "sub-01" / "anat" / "sub-01_T2w.nii.gz"), "raw/", "sub- folders"),
    "BIDS pointer": (lambda f: written(f / "sub-01" / "anat" / "sub-01_T2w.nii.gz", LFS), "sub-01/", "git lfs pull"),
    "almost BIDS": (lambda f: volume(f / "sub-01" / "anat" / "T2w.nii.gz"), "sub-01/", "Link or copy"),
    "deep": (lambda f: volume(f / "a" / "b" / "c" / "d" / "e.nii.gz"), "a/", "a/b/c/d/e.nii.gz"),
    "CT": (lambda f: save(f / "patient" / "study" / "series", slices(), as_ct), "patient/", "only MR"),
    "DICOM file": (lambda f: slices()[0].save_as(f / "IM01", write_like_original=False), "IM01", "convert"),
    "MetaImage": (lambda f: written(f / "x.MHA", b"ObjectType = Image"), "x.MHA", "Convert it"),
    "Analyze": (lambda f: written(f / "x.img", b"x"), "x.img", "Convert"),
    "FreeSurfer": (lambda f: written(f / "x.MGZ", b"x"), "x.MGZ", "Convert"),
    "archive": (lambda f: written(f / "patient" / "x.zip", b"PK"), "patient/", "Link or copy"),
    "pipe": (lambda f: os.mkfifo(f / "x.nii.gz"), "x.nii.gz", "remove it"),
    "link to itself": (lambda f: linked(f / "x.nii.gz", "x.nii.gz"), "x.nii.gz", "correct the link"),
    "broken link": (lambda f: linked(f / "x.nii.gz", "nowhere.nii.gz"), "x.nii.gz", "restore the file"),
    "annex link": (lambda f: linked(f / "x.nii.gz", ".git/annex/objects/ab/x"), "x.nii.gz", "datalad get"),
    "LFS pointer": (lambda f: written(f / "x.nii.gz", LFS), "x.nii.gz", "git lfs pull"),
    "annex pointer": (lambda f: written(f / "x.NII", ANNEX), "x.NII", "git annex get"),
    "bad name": (lambda f: written(f / "a:b.nii", b"x"), "a:b.nii", "Rename it"),
}


@pytest.mark.parametrize(("make", "name", "remedy"), LEFT.values(), ids=LEFT.keys())
def test_what_is_not_offered_is_named(
    tmp_path: Path, make: Callable[[Path], object], name: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder of images gave an empty list, and pointer files were listed as images."""
    folder = tmp_path / "studies"
    volume(folder / "one.nii.gz")
    written(folder / "README.md", b"text")
    (folder / "empty").mkdir()
    make(folder)
    with caplog.at_level(logging.WARNING):
        studies = studies_in(folder)
        studies.refresh()
    assert studies.list_images() == ["one"]
    left = studies.status()["not_offered"]
    assert list(left) == [name] and remedy in left[name]
    assert sum(name in record.message and remedy in record.message for record in caplog.records) == 1


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("totalspineseg_server.corrections.folder_contents.os.scandir", refuse)
    assert "Grant" in studies_in(tmp_path).status()["not_offered"]["closed/"]


def test_a_folder_with_a_long_name_is_named(tmp_path: Path) -> None:
    """The sentence about the folder was taken for a file name that was too long."""
    volume(tmp_path / ("d" * 250) / "x.nii.gz")
    assert "d" * 250 in studies_in(tmp_path).status()["not_offered"]["d" * 250 + "/"]


def test_nobody_waits_while_folders_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and lists of images waited while 2000 files of each subfolder were read."""
    volume(tmp_path / "one.nii.gz")
    studies, other = studies_in(tmp_path), studies_in(tmp_path)
    answers: list[object] = []

    def looked(*_: object, **__: object) -> dict[str, str]:
        for ask in (studies.status, lambda: other.update_image_info("one", {"seen": True})):
            thread = threading.Thread(target=lambda ask=ask: answers.append(ask()), daemon=True)
            thread.start()
            thread.join(10)
        return {}

    monkeypatch.setattr("totalspineseg_server.corrections.studies_folder.not_offered", looked)
    studies.refresh()
    assert len(answers) == 2


def test_many_files_of_one_kind_are_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "studies", slices(size=(13, 11, 30)))
    with caplog.at_level(logging.WARNING):
        assert len(studies_in(tmp_path / "studies").status()["not_offered"]) == 30
    assert len([record for record in caplog.records if "Not offered" in record.message]) == 1


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii.Gz", ".NII", ".Nrrd"])
def test_endings_of_images_are_read_in_any_case(tmp_path: Path, ending: str) -> None:
    """Files with endings in upper case were never offered, and nothing said so."""
    image = tmp_path / f"one{ending}"
    plain = volume(tmp_path / ".new" / f"one{ending.lower()}")
    if ending.lower() == ".nii.gz":
        shutil.copy(plain, image)
    else:
        write_volume(image, np.arange(64, dtype=np.uint8).reshape(GRID.shape), GRID)
    studies = studies_in(tmp_path)
    assert (studies.list_images(), studies.status()["not_offered"]) == (["one"], {})
    assert Path(studies.get_image_uri("one")) == image
    np.testing.assert_array_equal(read_image(image).data.ravel(), np.arange(64))
    studies.save_label("one", str(image), "final", {IMAGE_HASH: sha256_of(image)})
    assert studies.get_labeled_images() == ["one"]
    assert folder_site(tmp_path, None).image_file("one") == image  # type: ignore[arg-type]
    with pytest.raises(FileExistsError):
        write_volume(tmp_path / ".new" / "other.nii", np.ones(GRID.shape, np.uint8), GRID)
        studies.add_image("one", str(tmp_path / ".new" / "other.nii"), {})


def test_a_localizer_is_found_whatever_the_case_of_its_ending(tmp_path: Path) -> None:
    volume(tmp_path / "in" / "a.nii.gz")
    volume(tmp_path / "loc" / "a.NII.GZ")
    (case,) = pair_localizers(find_cases(tmp_path / "in"), tmp_path / "loc")
    assert case.localizer == tmp_path / "loc" / "a.NII.GZ"


@pytest.mark.parametrize("content", [LFS, ANNEX])
def test_a_pointer_is_not_called_a_damaged_image(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "a.nii.gz", content)
    with pytest.raises(ImageError, match="fetch it with"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("known", [False, True], ids=["copied", "of a stock server"])
def test_label_maps_that_were_there_before_are_not_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, known: bool
) -> None:
    """Their values were read as this server's ids: 41, L1 in a table of codes, was shown as a disc."""
    volume(tmp_path / "one.nii.gz")
    theirs = volume(tmp_path / "labels" / "final" / "one.nii.gz")
    if known:
        index = {"name": "x", "description": "", "objects": {"one": {
            "image": {"info": {"ts": 1, "name": "one.nii.gz"}, "ext": ".nii.gz"},
            "labels": {"final": {"info": {"ts": 1, "name": "one.nii.gz"}, "ext": ".nii.gz"}},
        }}}  # fmt: skip
        (tmp_path / "datastore_v2.json").write_text(json.dumps(index), encoding="utf-8")
    content = theirs.read_bytes()
    with caplog.at_level(logging.WARNING):
        studies = studies_in(tmp_path)
    assert (studies.get_labeled_images(), studies.get_unlabeled_images()) == ([], ["one"])
    assert (studies.get_label_uri("one", "final"), studies.status()["label_tags"]) == ("", {})
    advice = studies.status()["not_offered"]["labels/final/one.nii.gz"]
    assert all(word in advice for word in ("name its segments", "submit it", "totalspineseg prepare"))
    assert "labels/final/one.nii.gz" in caplog.text
    assert studies.json()["objects"]["one"]["labels"] == {}
    own = volume(tmp_path / ".new" / "one.nii.gz")
    own.write_bytes(content + b"\0")
    studies.save_label("one", str(own), "final", {IMAGE_HASH: sha256_of(tmp_path / "one.nii.gz")})
    studies.refresh()
    assert studies.get_labeled_images() == ["one"]
    assert theirs.with_name("one.nii.gz.not-submitted").read_bytes() == content, "somebody's work"
    assert studies.status()["not_offered"] == {}
    (tmp_path / "datastore_v2.json").unlink(missing_ok=True)
    assert studies_in(tmp_path).get_labeled_images() == ["one"], "its own labels it knows again"


def test_a_label_without_an_image_is_named(tmp_path: Path) -> None:
    volume(tmp_path / "one.nii.gz")
    volume(tmp_path / "labels" / "final" / "two.nii.gz")
    assert "image that is not here" in studies_in(tmp_path).status()["not_offered"]["labels/final/two.nii.gz"]
