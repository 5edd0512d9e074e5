"""Tests of segmentations from a viewer as submissions, and of scores for the series of a PACS."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from pacs_stand_in import CODES, FIRST, SECOND, Pacs, pacs_app, two_studies
from phantom import PIR, CodeReader
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.receipts import Sender, receipt_of
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.dicom.seg_object import seg_reference
from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_seg
from totalspineseg_server.pacs.outcomes import Outcome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_studies(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def painted(files: Path) -> bytes:
    """Return a segmentation of FIRST as a reader with another program stores it."""
    seg = write_seg(Volume(CODES, PIR), files / "1-sagittal", model="x", version="1", corrected_by="")
    seg.Manufacturer = "A viewer"
    return seg_bytes(seg)


def read(painted: bytes) -> Dataset:
    seg = dcmread(BytesIO(painted))
    seg.SOPInstanceUID, seg.SeriesInstanceUID = generate_uid(), generate_uid()
    return seg


@pytest.fixture
def app(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return pacs_app(Pacs(files), tmp_path, monkeypatch)


def test_one_instance_counts_once_however_it_is_encoded_and_other_content_again(
    app: Any, tmp_path: Path, painted: bytes
) -> None:
    seg, history = read(painted), CorrectionStore(tmp_path / "work")
    first = export(app, seg, tmp_path)
    seg.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    seg.is_implicit_VR = True
    assert export(app, seg, tmp_path) == first
    assert len(history.of_image(FIRST)) == 1
    seg.SegmentSequence[0].SegmentLabel = "mystery"
    parked = export(app, seg, tmp_path)
    assert (first.status, parked.status) == ("accepted", "parked")
    assert export(app, seg, tmp_path).status == "parked"
    assert [stored.status for stored in history.of_image(FIRST)] == ["accepted", "parked"]


def test_a_segmentation_that_reached_the_pacs_another_way_counts_once_it_is_sent(
    app: Any, tmp_path: Path, painted: bytes
) -> None:
    """A segmentation that the server finds in the PACS does not count, because nobody knows whether a reader finished
    it."""
    file, seg = tmp_path / "label.dcm", read(painted)
    app.datastore()._client.add(seg)
    assert app.next_sample({"strategy": "first"})["id"] == FIRST
    assert CorrectionStore(tmp_path / "work").of_image(FIRST) == ()
    seg.save_as(file, write_like_original=False)
    sent = receipt_of(FIRST, file, tag="final", sender=Sender("ada", "curl", "seg.dcm"), params={})
    app.inbox.submit(sent, file)
    (correction,) = CorrectionStore(tmp_path / "work").in_force(FIRST)
    assert CODE_OF["L4"] in correction.present
    assert app.next_sample({"strategy": "first"})["id"] == SECOND


def export(app: Any, seg: Dataset, folder: Path) -> Outcome:
    """Store a segmentation as the viewer does."""
    file = folder / "exported.dcm"
    seg.save_as(file, write_like_original=False)
    outcome: Outcome = app.submit_segmentation(
        file, seg_reference(file), Sender("ada", "ohif", f"{seg.SOPInstanceUID}.dcm")
    )
    app.outcomes.keep(outcome)
    return outcome


class Readers:
    """Networks that read the phantom's codes."""

    def get(self, step: int) -> CodeReader:
        return CodeReader(step)

    def version(self, step: int) -> str:
        return CodeReader(step).version


def test_series_are_scored_and_offered_by_their_scores(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs = Pacs(files)
    app = pacs_app(pacs, tmp_path, monkeypatch)
    vars(app._services)["networks"] = Readers()
    scored = app.scoring({"method": "doubt"})
    assert {FIRST, SECOND} == set(scored)
    assert all(0 < entry["doubt"] < 1 for entry in scored.values()), scored
    fetched = list(pacs.fetched)
    assert app.scoring({"method": "doubt"}) == {series: {"skipped": True} for series in scored}
    assert pacs.fetched == fetched
    assert app.scoring_progress() == {"total": 2, "scored": 2, "failed": 0}
    offered = [app.next_sample({"strategy": "doubtful_first", "client_id": client}) for client in ("ada", "bob")]
    assert {sample["id"] for sample in offered} == {FIRST, SECOND}
    assert offered[0]["score"]["doubt"] >= offered[1]["score"]["doubt"] > 0
