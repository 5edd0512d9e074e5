"""Tests that clients may give images any name, and that each image has its own file inside the studies."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from totalspineseg_server.corrections.ids import file_stem, id_of_stem, is_plain_stem, is_usable_id
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.site import folder_site

GRID = Grid((4, 4, 4), np.eye(4))
OF_3D_SLICER = ("5: t2_tse_sag", "T2/STIR", "t2 <sag>", "5 t2?", 'a "b"', "a|b", "a*", "c:\\x")
CLIMBING = ("..", ".", "../up", "/etc/passwd", ".hidden", "../../up.nii.gz")
LIKE_CODES = ("100%", "5%3A t2_tse_sag", "5%253A t2", "a%2fb", "%2E", "%", "%25", "a%FFb")
LONG = ("x" * 200, "\u810a" * 80)
PLAIN = ("sub-01_T2w", "1.2.3", "a b", "\u00e4", *LONG)


@pytest.mark.parametrize("image_id", [*OF_3D_SLICER, *CLIMBING, *LIKE_CODES, *PLAIN], ids=ascii)
def test_an_id_and_the_name_of_its_file_lead_to_each_other(image_id: str) -> None:
    assert is_usable_id(image_id)
    assert is_plain_stem(file_stem(image_id))
    assert id_of_stem(file_stem(image_id)) == image_id
    if is_plain_stem(image_id):
        assert file_stem(id_of_stem(image_id)) == image_id


def test_no_two_ids_share_a_file() -> None:
    """If the volumes of two patients shared a file, their corrections would be mixed."""
    ids = {*OF_3D_SLICER, *CLIMBING, *LIKE_CODES, *PLAIN}
    for _ in range(3):
        ids |= {file_stem(image_id) for image_id in ids}
    assert len({file_stem(image_id) for image_id in ids}) == len(ids)


@pytest.mark.parametrize(
    "image_id",
    ["", "a\nb", "a\x00b", "a\x7f", "x" * 201, ":" * 70, "%" + "25" * 4000, "\u810a" * 81, "a\ud800", "a\udcff:"],
    ids=ascii,
)
def test_an_unreadable_or_impossible_name_is_not_an_id(image_id: str) -> None:
    """A long Chinese name was reported as a full disk, because file systems count bytes."""
    assert not is_usable_id(image_id)


def test_a_file_name_that_is_not_utf_8_does_not_stop_the_server(tmp_path: Path) -> None:
    """After a file name in an old code page, the index could not be read anymore."""
    for name in (b"plain.nii", b"a\xe4.nii"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    for _ in range(2):
        assert StudiesDatastore(str(tmp_path), auto_reload=False).list_images() == ["plain"]


@pytest.mark.parametrize("image_id", [*OF_3D_SLICER, *CLIMBING, *LIKE_CODES, *LONG], ids=ascii)
def test_an_image_of_any_name_is_stored_in_the_studies_with_its_labels(image_id: str, tmp_path: Path) -> None:
    """Volumes that 3D Slicer had loaded from DICOM could not be uploaded, segmented or submitted."""
    image, label, folder = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", tmp_path / "deep" / "studies"
    write_volume(image, np.arange(64, dtype=np.uint8).reshape(GRID.shape), GRID)
    write_volume(label, np.ones(GRID.shape, dtype=np.uint8), GRID)
    folder.mkdir(parents=True)
    studies = StudiesDatastore(str(folder), auto_reload=False)
    assert studies.add_image(image_id, str(image), {}) == image_id
    assert studies.save_label(image_id, str(label), "final", {IMAGE_HASH: sha256_of(image)}) == image_id
    before = {path.relative_to(folder) for path in folder.rglob("*.nii.gz")}
    assert {path.parent for path in before} == {Path(), Path("labels/final")}
    # As after a restart, also where what was known beside the files is lost.
    for _ in range(2):
        again = StudiesDatastore(str(folder), auto_reload=False)
        assert again.list_images() == [image_id]
        assert again.get_labeled_images() == [image_id]
        assert Path(again.get_image_uri(image_id)).read_bytes() == image.read_bytes()
        displayed = again.label_file(image_id, "final")
        assert displayed is not None
        assert displayed.read_bytes() == label.read_bytes()
        shutil.rmtree(folder / ".totalspineseg", ignore_errors=True)
    assert {path.relative_to(folder) for path in folder.rglob("*.nii.gz")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "image.nii.gz", "label.nii.gz"]
    found = folder_site(folder, ModelStore(tmp_path / "model")).image_file(image_id)
    assert found == Path(again.get_image_uri(image_id))
    write_volume(found, np.arange(64, 128, dtype=np.uint8).reshape(GRID.shape), GRID)
    assert again.get_labeled_images() == [], "the label of what the image was before"
    again.remove_label(image_id, "final")
    assert again.label_file(image_id, "final") is None
    again.remove_image(image_id)
    assert not list(folder.rglob("*.nii.gz"))
