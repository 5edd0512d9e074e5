"""Tests that what clients are shown follows from the corrections, whatever became of the label files."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_corrections_store import GRID, Desk
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.corrections import image_records, label_files
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import LabelError, StorageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.io.volumes import read_labels, write_volume


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def opened(desk: Desk) -> StudiesDatastore:
    return StudiesDatastore(str(desk.root), auto_reload=False, corrections=desk.store)


def shown_correction(studies: StudiesDatastore) -> Any:
    return studies.get_label_info("img", "final").get("correction")


def test_a_label_file_that_was_deleted_is_written_again(desk: Desk) -> None:
    studies, stored = opened(desk), desk.submit()
    for _ in range(2):
        assert studies.get_labeled_images() == ["img"]
        assert studies.json()["objects"]["img"]["labels"]["final"]["info"]["correction"] == stored.id
        wire = read_labels(Path(studies.get_label_uri("img", "final"))).data
        assert set(np.unique(wire)) == {0, WIRE_LABELS["L4"], WIRE_LABELS["L5"]}
        shutil.rmtree(desk.root / "labels")


def test_a_correction_stored_before_a_kill_is_displayed_after_it(desk: Desk) -> None:
    """The server ended between the two: the reader's label counted in trainings, and nobody saw it."""
    studies = opened(desk)
    first = desk.submit()
    assert studies.get_label_uri("img", "final")
    second = desk.submit()
    assert shown_correction(studies) == second.id != first.id
    assert Path(studies.get_label_uri("img", "final")).is_file()
    assert studies.get_label_info("img", "final")["name"] == "img.nii.gz"
    assert shown_correction(opened(desk)) == second.id


def test_a_withdrawal_before_a_kill_counts_after_it(desk: Desk) -> None:
    """The label stayed for good, because a second step had to remove it."""
    studies, first, second = opened(desk), desk.submit(), desk.submit()
    assert studies.get_label_uri("img", "final")
    desk.store.withdrawals.add("img", second.id, "ada")
    assert shown_correction(studies) == first.id
    desk.store.withdrawals.add("img", first.id, "ada")
    assert (studies.get_labeled_images(), studies.get_label_uri("img", "final")) == ([], "")


def test_an_image_without_a_name_has_no_label(desk: Desk) -> None:
    studies = opened(desk)
    assert (studies.get_label_info("", "final"), studies.get_label_uri("", "final")) == ({}, "")


def test_undo_takes_the_newest_label_back_and_no_other(desk: Desk) -> None:
    """A page that had been open for an hour took back a label that somebody else had submitted meanwhile."""
    studies, first, second = opened(desk), desk.submit(), desk.submit()
    with pytest.raises(LabelError, match="Open the scan again"):
        desk.inbox.undo("img", first.id, user="bob")
    assert shown_correction(studies) == second.id
    assert desk.inbox.undo("img", second.id, user="ada") == first.id
    assert shown_correction(studies) == first.id
    assert desk.inbox.undo("img", first.id, user="ada") == ""
    assert studies.get_labeled_images() == []
    with pytest.raises(LabelError, match="Open the scan again"):
        desk.inbox.undo("img", first.id, user="ada")


def test_a_correction_of_another_image_under_this_name_is_not_shown(desk: Desk) -> None:
    studies = opened(desk)
    desk.submit()
    write_volume(desk.image, np.full(GRID.shape, 3, np.uint8), GRID)
    assert (studies.get_labeled_images(), studies.get_label_uri("img", "final")) == ([], "")


def test_a_correction_comes_before_a_file_that_somebody_copied_there(desk: Desk) -> None:
    theirs = desk.root / "labels" / "final" / "img.nii.gz"
    theirs.parent.mkdir(parents=True)
    shutil.copy(desk.label, theirs)
    studies, stored = opened(desk), desk.submit()
    assert shown_correction(studies) == stored.id
    assert Path(studies.get_label_uri("img", "final")).read_bytes() != desk.label.read_bytes()
    assert theirs.with_name("img.nii.gz.not-submitted").read_bytes() == desk.label.read_bytes()


def test_a_label_that_is_replaced_when_the_disk_is_full_stays_known(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the note of the new label was written, the old label, which was still there, counted as somebody else's."""
    studies = opened(desk)
    studies.save_label("img", str(desk.label), "original", {"model": "first"})

    def full(source: Path, target: Path) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(label_files, "copy_file", full)
    with pytest.raises(StorageError):
        studies.save_label("img", str(desk.image), "original", {"model": "second"})
    for each in (studies, opened(desk)):
        assert each.get_label_info("img", "original")["model"] == "first"
        assert each.get_label_uri("img", "original")


def older_studies(desk: Desk, **of_label: Any) -> Path:
    """A label and an image as the first versions left them, with the index alone."""
    label = desk.root / "labels" / "original" / "img.nii.gz"
    label.parent.mkdir(parents=True)
    shutil.copy(desk.label, label)
    info = {"ts": 1, "name": "img.nii.gz", IMAGE_HASH: sha256_of(desk.image), "model": "totalspineseg", **of_label}
    entry = {
        "image": {"ext": ".nii.gz", "info": {"ts": 1, "name": "img.nii.gz", "ward": "3b"}},
        "labels": {"original": {"ext": ".nii.gz", "info": info}},
    }
    content = {"name": "new-dataset", "description": "", "images_dir": ".", "objects": {"img": entry}}
    (desk.root / "datastore_v2.json").write_text(json.dumps(content), encoding="utf-8")
    return label


def test_the_index_of_an_older_version_is_read_and_never_written(desk: Desk) -> None:
    label = older_studies(desk)
    index = (desk.root / "datastore_v2.json").read_bytes()
    studies = opened(desk)
    assert studies.get_image_info("img")["ward"] == "3b"
    assert (studies.get_label_info("img", "original")["model"], studies.get_label_uri("img", "original")) == (
        "totalspineseg",
        str(label),
    )
    studies.update_image_info("img", {"seen": True})
    studies.update_label_info("img", "original", {"seen": True})
    again = opened(desk)
    assert {"ward", "seen"} <= set(again.get_image_info("img"))
    assert {"model", "seen"} <= set(again.get_label_info("img", "original"))
    shutil.copy(desk.image, desk.root / ".aside")
    again.remove_image("img")
    shutil.move(desk.root / ".aside", desk.image)
    assert "ward" not in opened(desk).get_image_info("img"), "it may be another patient's"
    assert (desk.root / "datastore_v2.json").read_bytes() == index


def test_images_that_an_older_version_read_are_not_read_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first list after an update would read every finished scan of a large site."""
    stat = desk.image.stat()
    older_studies(desk, image_imprint=[stat.st_size, stat.st_mtime_ns])
    monkeypatch.setattr(image_records, "sha256_of", pytest.fail)
    assert opened(desk).get_label_uri("img", "original")


def test_a_file_added_after_an_older_index_is_not_the_servers(desk: Desk) -> None:
    label = older_studies(desk)
    os.utime(label, (2e9, 2e9))
    assert opened(desk).get_label_uri("img", "original") == ""


@pytest.mark.parametrize("content", ["{", "[]", '{"objects": [1]}', '{"objects": {"img": 3}}', '{"objects": null}'])
def test_a_damaged_older_index_costs_nothing_but_what_it_knew(desk: Desk, content: str) -> None:
    (desk.root / "datastore_v2.json").write_text(content, encoding="utf-8")
    studies, stored = opened(desk), desk.submit()
    assert (studies.get_labeled_images(), shown_correction(studies)) == (["img"], stored.id)
