"""Tests of a BIDS tree as studies: its images are offered where they lie, under names that say which is which."""

from pathlib import Path

import numpy as np
import pytest

from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.site import folder_site

GRID = Grid((4, 4, 4), np.diag([1.0, 1.0, 2.0, 1.0]))
FILES = {
    "sub-01_T2w": "sub-01/anat/sub-01_T2w.nii.gz",
    "sub-01_T1w": "sub-01/anat/sub-01_T1w.nii",
    "sub-02_ses-1_T2w": "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz",
    "loose": "loose.nii.gz",
}


def volume(file: Path, value: int = 64) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_volume(file, (np.arange(64) % value).astype(np.uint8).reshape(GRID.shape), GRID)
    return file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for way in (*FILES.values(), "derivatives/labels/sub-01/anat/sub-01_T2w.nii.gz", "sub-02/ses-1/anat/other.nii.gz"):
        volume(tmp_path / "bids" / way)
    (tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T2w.json").write_text("{}", encoding="utf-8")
    return tmp_path / "bids"


def opened(tree: Path) -> StudiesDatastore:
    return StudiesDatastore(str(tree), auto_reload=False)


def test_the_images_of_a_bids_tree_are_offered_by_their_names(tree: Path) -> None:
    studies = opened(tree)
    assert studies.list_images() == sorted(FILES)
    assert {image: Path(studies.get_image_uri(image)) for image in FILES} == {k: tree / v for k, v in FILES.items()}
    assert studies.siblings("sub-01_T2w") == ("sub-01_T1w",)
    assert list(studies.status()["not_offered"]) == ["derivatives/"]
    site = folder_site(tree, ModelStore(tree / ".model"))
    assert {image: site.image_file(image) for image in FILES} == {image: tree / way for image, way in FILES.items()}


def test_a_label_of_an_image_in_a_bids_tree_lies_in_the_labels_folder(tree: Path, tmp_path: Path) -> None:
    label = volume(tmp_path / "label.nii.gz", 2)
    studies = opened(tree)
    studies.save_label("sub-01_T2w", str(label), "final", {IMAGE_HASH: sha256_of(tree / FILES["sub-01_T2w"])})
    assert opened(tree).get_labeled_images() == ["sub-01_T2w"]
    assert (tree / "labels" / "final" / "sub-01_T2w.nii.gz").is_file()
    assert sorted(path.name for path in (tree / "sub-01" / "anat").iterdir()) == [
        "sub-01_T1w.nii", "sub-01_T2w.json", "sub-01_T2w.nii.gz",
    ]  # fmt: skip


def test_an_upload_does_not_take_the_name_of_an_image_in_the_tree(tree: Path, tmp_path: Path) -> None:
    """The scan of the tree would have vanished behind it, with its labels."""
    with pytest.raises(FileExistsError, match="'sub-01_T2w'"):
        opened(tree).add_image("sub-01_T2w", str(volume(tmp_path / "other.nii.gz", 3)), {})
