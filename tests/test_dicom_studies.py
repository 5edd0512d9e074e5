"""Tests of folders of DICOM series as studies: each series is an image, converted when somebody needs it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset

from dicom_series import OBLIQUE, picture, save, slices
from totalspineseg_server.corrections.label_files import IMAGE_HASH
from totalspineseg_server.corrections.studies_folder import StudiesDatastore
from totalspineseg_server.errors import ImageError, StorageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.site import folder_site

T2, T1, OTHER = "P1/st/a 5 T2 sag", "P1/st/b 6 T1", "P2 1 T2"
STUDY = "1.2.826.0.1.3680043.8.498.1"


def series(number: int, description: str, patient: str, study: str = STUDY) -> list[FileDataset]:
    tags: dict[str, Any] = {"SeriesNumber": number, "SeriesDescription": description, "PatientID": patient}
    tags |= {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{number}", "FrameOfReferenceUID": f"{study}.9"}
    return slices(**tags)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    save(folder / "P1" / "st" / "a", series(5, "T2 sag", "Anna"))
    save(folder / "P1" / "st" / "b", series(6, "T1", "Anna"))
    save(folder / "P2", series(1, "T2", "Bob", f"{STUDY}.7"))
    return folder


def opened(tree: Path) -> StudiesDatastore:
    return StudiesDatastore(str(tree), auto_reload=False)


def test_each_series_is_an_image_whose_name_says_which(tree: Path) -> None:
    studies = opened(tree)
    assert studies.list_images() == sorted((T2, T1, OTHER))
    assert studies.status()["not_offered"] == {}
    assert not list(tree.rglob("*.nii")), "nothing is converted for a list"
    volume = Path(studies.get_image_uri(T2))
    np.testing.assert_array_equal(read_image(volume).data, picture())
    np.testing.assert_allclose(read_image(volume).affine, OBLIQUE, atol=1e-4)
    assert studies.series_folder(T2) == tree / "P1" / "st" / "a"
    assert (studies.siblings(T2), studies.siblings(OTHER)) == ((T1,), ())


def test_a_series_is_converted_once_until_it_changes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = opened(tree)
    volume = Path(studies.get_image_uri(T2))
    content = volume.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("totalspineseg_server.io.dicom.series.read_series", pytest.fail)
        assert Path(opened(tree).get_image_uri(T2)) == volume
    volume.unlink()
    assert Path(studies.get_image_uri(T2)).read_bytes() == content, "another hash would be another image"
    studies.save_label(T2, str(volume), "final", {IMAGE_HASH: sha256_of(volume)})
    assert studies.get_labeled_images() == [T2]
    for file in (tree / "P1" / "st" / "a").iterdir():
        file.unlink()
    save(tree / "P1" / "st" / "a", series(5, "T2 sag", "Anna")[:-1])
    studies.refresh()
    assert read_image(Path(studies.get_image_uri(T2))).data.shape[2] == picture().shape[2] - 1
    assert studies.get_labeled_images() == [], "the label was drawn on more slices"


def test_a_series_that_is_not_a_volume_is_no_longer_offered(tree: Path) -> None:
    """The next sample was the same unreadable series forever."""
    whole = series(1, "T2", "Bob", f"{STUDY}.7")
    shutil.rmtree(tree / "P2")
    save(tree / "P2", [whole[0], whole[2], whole[3], whole[4]])
    studies = opened(tree)
    with pytest.raises(ImageError, match="evenly spaced"):
        studies.get_image_uri(OTHER)
    assert studies.list_images() == sorted((T2, T1))
    for look in (studies.status, studies.refresh, studies.status):
        look()
        assert "evenly spaced" in studies.status()["not_offered"]["P2/"], "it was gone without a reason"


def test_series_of_one_patient_have_one_role_and_nobody_reads_whose_they_are(tree: Path) -> None:
    studies = opened(tree)
    files = {image: Path(studies.get_image_uri(image)) for image in (T2, T1, OTHER)}
    site = folder_site(tree, ModelStore(tree / ".model"))
    assert {image: site.image_file(image) for image in files} == files
    for subject in (studies.subject, site.subject):
        assert subject(T2) == subject(T1) != subject(OTHER)
    assert not any(b"Anna" in path.read_bytes() for path in (tree / ".totalspineseg").rglob("*.json"))


def test_a_damaged_record_of_an_image_is_not_replaced_by_an_empty_one(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next offer of the image wrote a record without its patient, who could then be used to train and to judge."""
    opened(tree).get_image_uri(T2)
    (record,) = (tree / ".totalspineseg" / "images").iterdir()
    patient = opened(tree).subject(T2)
    whole = record.read_bytes()
    record.write_bytes(whole[:-9])
    studies, site = opened(tree), folder_site(tree, ModelStore(tree / ".model"))
    for _ in range(2):
        with pytest.raises(StorageError, match=record.name):
            studies.update_image_info(T2, {"seen": True})
        assert "strategy" not in studies.get_image_info(T2)
        studies.get_image_uri(T2)
    assert [record.name in line.getMessage() for line in caplog.records] == [True], "it is said once"
    assert record.read_bytes() == whole[:-9]
    for subject in (studies.subject, site.subject):
        with pytest.raises(StorageError, match="backup"):
            subject(T2)
    record.write_bytes(whole)
    studies.update_image_info(T2, {"seen": True})
    assert (studies.get_image_info(T2)["seen"], studies.subject(T2), site.subject(T2)) == (True, patient, patient)


def test_information_about_a_series_is_stored_although_it_is_not_converted(tree: Path) -> None:
    opened(tree).update_image_info(T1, {"strategy": {"first": {"ts": 1.0}}})
    shutil.rmtree(tree / ".totalspineseg" / "volumes")
    assert opened(tree).get_image_info(T1)["strategy"] == {"first": {"ts": 1.0}}


def test_series_that_share_a_folder_are_named_with_the_reason(tree: Path) -> None:
    for number, file in enumerate(sorted((tree / "P1" / "st" / "b").iterdir())):
        file.rename(tree / "P2" / f"z{number}")
    studies = opened(tree)
    assert studies.list_images() == [T2]
    assert "folder of its own" in studies.status()["not_offered"]["P2/"]


def test_a_series_beside_an_offered_one_is_not_left_out_in_silence(tree: Path) -> None:
    """A patient's folder with one series on offer hid why the others were missing."""
    for number, file in enumerate(sorted((tree / "P2").iterdir())):
        shutil.copy(file, tree / "P1" / "st" / "b" / f"z{number}")
    studies = opened(tree)
    assert studies.list_images() == sorted((T2, OTHER))
    left = studies.status()["not_offered"]
    assert list(left) == ["P1/st/b/"] and "folder of its own" in left["P1/st/b/"]


@pytest.mark.parametrize("stray", ["Thumbs.db", "VERSION", "0readme.txt"])
def test_a_file_of_another_program_beside_the_slices_hides_no_series(tree: Path, stray: str) -> None:
    (tree / "P2" / stray).write_bytes(b"\0" * 500)
    assert OTHER in opened(tree).list_images()


def test_a_series_whose_modality_was_removed_is_offered(tree: Path) -> None:
    def without(header: Dataset, _: int) -> None:
        del header.Modality

    shutil.rmtree(tree / "P2")
    save(tree / "P2", series(1, "T2", "Bob", f"{STUDY}.7"), without)
    assert OTHER in opened(tree).list_images()


def test_an_upload_and_a_removal_leave_the_series_alone(tree: Path, tmp_path: Path) -> None:
    studies, other = opened(tree), tmp_path / "other.nii"
    write_volume(other, picture() + 1, read_image(Path(studies.get_image_uri(T2))).grid)
    with pytest.raises(FileExistsError):
        studies.add_image(T2, str(other), {})
    with pytest.raises(ImageError, match="Remove the folder"):
        studies.remove_image(T2)
    assert studies.list_images() == sorted((T2, T1, OTHER))


def test_an_archive_of_series_may_only_be_read(tree: Path, tmp_path: Path) -> None:
    """With a work folder, an archive without a single image file was taken for one that is not mounted."""
    studies = StudiesDatastore(str(tmp_path / "work"), images=str(tree), auto_reload=False)
    assert studies.list_images() == sorted((T2, T1, OTHER))
    assert Path(studies.get_image_uri(T2)).parent == tmp_path / "work" / "volumes"
    tree.rename(tmp_path / "away")
    tree.mkdir()
    studies.refresh()
    assert studies.list_images() == sorted((T2, T1, OTHER))
