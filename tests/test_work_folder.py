"""Studies that are only read, such as a mounted archive: what the server writes lies in a folder of its own."""

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.config import settings
from monailabel.utils.others import class_utils

from lib.anatomy import CODE_OF
from lib.cli.site import has_corrections, site_of
from lib.corrections.datastore import StudiesDatastore
from lib.corrections.store import Sender
from lib.errors import StorageError
from lib.registry.store import ModelStore
from lib.server import serve
from lib.trainers.material import site_material
from lib.volume_io import write_volume
from pacs_serving import wait_for
from phantom import RAS, image_of, lumbar_codes

APP_DIR = Path(__file__).resolve().parents[1] / "apps" / "totalspineseg"
CODES = lumbar_codes()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    write_volume(folder / "a.nii.gz", image_of(CODES), RAS)
    return folder


def test_nothing_is_written_to_studies_with_a_work_folder(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a PACS could be served without writing to it: index, labels and history of a folder lay among its images."""
    monkeypatch.setenv("MONAI_LABEL_RELOAD_APP_LIB", "false")
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    found = class_utils.get_class_of_subclass_from_file("main", str(APP_DIR / "main.py"), "MONAILabelApp")
    work, label = tmp_path / "work", tmp_path / "label.nii.gz"
    app = found(app_dir=str(APP_DIR), studies=str(archive), conf={"weights": "none", "work": str(work)})
    assert app.next_sample({"strategy": "first"})["id"] == "a"
    write_volume(label, np.where(CODE_OF["L4"] == CODES, 1, 0).astype(np.uint8), RAS)
    sender = Sender("ada", "slicer", "label.nii.gz")
    kept = app.submit_label("a", label, "final", {"label_info": [{"name": "L4"}]}, sender)
    assert app.info()["datastore"]["completed"] == 1
    assert [path.name for path in archive.rglob("*")] == ["a.nii.gz"]
    assert has_corrections(work)
    (source,) = site_material(site_of(work, ModelStore(tmp_path / "model"))).training
    assert (source.provenance["correction"], source.read().image.data.shape) == (kept.id, CODES.shape)


def test_images_that_come_into_such_studies_are_offered_at_once(archive: Path, tmp_path: Path) -> None:
    studies = StudiesDatastore(str(tmp_path / "work"), images=str(archive))
    try:
        (archive / "a.nii.gz").rename(archive / "b.nii.gz")
        wait_for(lambda: studies.list_images() == ["b"])
        moved = archive.rename(tmp_path / "elsewhere")
    finally:
        studies._observer.stop()
    assert StudiesDatastore(str(tmp_path / "work"), images=str(moved), auto_reload=False).list_images() == ["b"]


def test_a_folder_that_cannot_be_written_is_named_at_the_start(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ended with a traceback that named a lock."""
    with pytest.raises(StorageError, match=r"can write to is required, got .*label.*--work"):
        serve(str(archive), work=str(archive / "a.nii.gz" / "label"), demo=False)

    def read_only(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(StorageError, match=r"got .*archive.*Read-only file system"):
        serve(str(archive), demo=False)
