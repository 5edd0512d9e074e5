"""Tests of the server with a real Orthanc: lists, filters, fetching, results as DICOM SEG, and stored corrections."""

import json
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import requests
from orthanc import fill
from pydicom.uid import generate_uid

from pacs_serving import PacsServer, Study, pacs_server, phantom_slices, stored, wait_for, write_study
from phantom import PIR, lumbar_codes
from totalspineseg_server.anatomy import CODE_OF, WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.geometry import Volume, to_ras
from totalspineseg_server.io.dicom.seg_reader import read_seg
from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_seg
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.segments import from_wire
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.site import Site

pytestmark = [
    pytest.mark.ohif,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
SECONDS = 300
CODES = lumbar_codes()
SERIES_CODES = np.ascontiguousarray(CODES.transpose(1, 2, 0)[::-1, ::-1])
"""The truth in the order of the series: column, row, slice."""
EDITED = SERIES_CODES.copy()
EDITED[:30][EDITED[:30] == CODE_OF["L4"]] = 0
"""An annotator erased a part of L4."""
GRID = phantom_slices()[1]
FINISHED, READ, RESULT, TWICE, CASE, PARKED, SLICER, RENAMED, LAST = range(9)
"""Each test that changes a study has a study of its own, so that the tests run alone and in any order. FINISHED is
offered first until its test has run; from then on READ is, which no test finishes."""
LATE = 25
"""Its UID lies between READ's and LAST's."""
NAMES = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon", "Zeta", "Eta", "Theta", "Iota")
DATES = "20260101-20260109"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacsServer]:
    with pacs_server(tmp_path_factory.mktemp("pacs"), NAMES) as running:
        yield running


def get(server: PacsServer, path: str, **query: Any) -> requests.Response:
    return requests.get(f"{server.url}{path}", params=query, timeout=SECONDS)


def search(server: PacsServer, level: str, **query: Any) -> list[dict[str, Any]]:
    answer = get(server, f"/proxy/dicom/qido/{level}", **query)
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


def next_sample(server: PacsServer, strategy: str = "first") -> dict[str, Any]:
    answer = requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=SECONDS)
    assert answer.status_code == 200
    sample: dict[str, Any] = answer.json()
    return sample


def store_body(*files: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a STOW request as OHIF sends it."""
    parts = b"".join(b"--here\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
    return parts + b"--here--", {"content-type": 'multipart/related; type="application/dicom"; boundary=here'}


def store(server: PacsServer, *files: bytes) -> requests.Response:
    body, headers = store_body(*files)
    return requests.post(f"{server.proxy}/wado/studies", data=body, headers=headers, timeout=SECONDS)


def outcome(server: PacsServer, instance: str) -> dict[str, Any]:
    answer = get(server, f"/submissions/{instance}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def submitted(server: PacsServer, seg: pydicom.Dataset) -> dict[str, Any]:
    """Return the outcome of a segmentation that a viewer stored."""
    assert store(server, seg_bytes(seg)).status_code == 200
    return outcome(server, seg.SOPInstanceUID)


def painted(
    study: Study,
    codes: npt.NDArray[np.uint8],
    *,
    rename: dict[str, str] | None = None,
    when: datetime | None = None,
    manufacturer: str = "A viewer",
) -> pydicom.Dataset:
    """Return a segmentation as a reader would store it with the viewer."""
    seg = write_seg(Volume(codes, PIR), study.folder, model="x", version="1", when=when, corrected_by="")
    seg.Manufacturer = manufacturer
    for segment in seg.SegmentSequence:
        segment.SegmentLabel = (rename or {}).get(segment.SegmentLabel, segment.SegmentLabel)
    return seg


def fetched(server: PacsServer, study: Study, series: str, instance: str) -> bytes:
    """Return an object from the PACS."""
    path = f"studies/{study.uid}/series/{series}/instances/{instance}"
    accept = {"accept": 'multipart/related; type="application/dicom"'}
    content = requests.get(f"{server.orthanc.dicomweb}/{path}", headers=accept, timeout=SECONDS).content
    return content[content.index(b"\r\n\r\n") + 4 : content.rindex(b"\r\n--")]


def objects(server: PacsServer) -> dict[str, Any]:
    """Return the offered images, by series."""
    found: dict[str, Any] = get(server, "/datastore/", output="all").json()["objects"]
    return found


def is_finished(server: PacsServer, study: Study) -> bool:
    return "final" in objects(server)[study.series]["labels"]


def corrections(server: PacsServer, study: Study) -> Any:
    return CorrectionStore(server.work).of_image(study.series)


def test_mr_is_listed_without_localizers(server: PacsServer) -> None:
    """MONAI Label lists only CT, and offers localizers, which are not volumes."""
    listed = set(objects(server))
    assert listed >= {study.series for study in server.studies}
    assert not listed & {study.localizer for study in server.studies}
    assert get(server, "/info/").json()["datastore"]["total"] == len(listed)


def test_the_proxy_passes_filters_paging_and_accept(server: PacsServer) -> None:
    """The viewer's filter found every study, whatever was typed."""
    assert len(search(server, "studies", StudyDate=DATES)) == len(NAMES)
    (found,) = search(server, "studies", PatientName="Beta*")
    assert found["0020000D"]["Value"] == [server.studies[1].uid]
    assert len(search(server, "studies", PatientName="*eta*", StudyDate="20260101-20260103")) == 1
    pages = [search(server, "studies", StudyDate=DATES, limit=4, offset=offset) for offset in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 4, 1]
    assert len({entry["0020000D"]["Value"][0] for page in pages for entry in page}) == len(NAMES)
    xml = {"accept": "application/dicom+xml"}
    assert "xml" in requests.get(f"{server.proxy}/qido/studies", headers=xml, timeout=SECONDS).headers["content-type"]
    assert get(server, "/proxy/dicom/qido/studies").headers["cache-control"] == "no-store"


def test_links_of_the_pacs_lead_through_the_server(server: PacsServer) -> None:
    (found,) = search(server, "series", SeriesInstanceUID=server.studies[READ].series)
    link = found["00081190"]["Value"][0]
    assert link.startswith(f"{server.proxy}/wado/studies/")
    assert requests.get(f"{link}/metadata", timeout=SECONDS).status_code == 200


def test_frames_come_through(server: PacsServer) -> None:
    study = server.studies[READ]
    instance = stored(server, study.series)[0]
    path = f"studies/{study.uid}/series/{study.series}/instances/{instance}/frames/1"
    accept = {"accept": 'multipart/related; type="application/octet-stream"'}
    ours, theirs = (
        requests.get(f"{base}/{path}", headers=accept, timeout=SECONDS)
        for base in (f"{server.proxy}/wado", server.orthanc.dicomweb)
    )
    assert ours.status_code == theirs.status_code == 200
    assert len(ours.content) == len(theirs.content) > 80 * 252 * 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/proxy/dicom/wado/system", 422),
        ("GET", "/proxy/dicom/wado/%2e%2e/system", 400),
        ("GET", "/proxy/dicom/wado/studies/%2e%2e/%2e%2e/system", 400),
        ("GET", "/proxy/dicom/wado/studies/a%2f%2e%2e%2f%2e%2e%2fsystem", 400),
        ("GET", "/proxy/dicom/wado/@127.0.0.1:1/studies", 422),
        ("GET", "/proxy/dicom/wado/http://127.0.0.1:1/studies", 422),
        ("GET", "/proxy/dicom/wado/studies%3fx=1", 422),
        ("GET", "/proxy/dicom/wado/studies%23/x", 422),
        ("GET", "/proxy/dicom/wado/studies/1%0d%0aHost:%20x", 400),
        ("GET", "/proxy/dicom/other/studies", 422),
        ("POST", "/proxy/dicom/wado/studies/1.2/series/1.3", 405),
        ("POST", "/proxy/dicom/qido/instances", 405),
        ("DELETE", "/proxy/dicom/wado/studies/1.2", 405),
        ("PUT", "/proxy/dicom/wado/studies", 405),
        ("GET", "/proxy/dicom/studies", 404),
    ],
)
def test_the_proxy_leads_to_dicomweb_alone(server: PacsServer, method: str, path: str, status: int) -> None:
    """Orthanc's own interface on the same port can delete studies and run scripts."""
    request = requests.Request(method, server.url).prepare()
    request.url = f"{server.url}{path}"
    with requests.Session() as session:
        answer = session.send(request, timeout=SECONDS, allow_redirects=False)
    assert answer.status_code == status, answer.text


def test_a_result_lies_on_the_grid_of_the_series(server: PacsServer) -> None:
    """The viewer copies the voxels in the order of the file: columns, rows, slices along the normal."""
    study = server.studies[READ]
    answer = requests.post(
        f"{server.url}/infer/totalspineseg",
        params={"image": study.series, "output": "image"},
        files={"params": (None, json.dumps({"result_extension": ".nrrd"}))},
        timeout=SECONDS,
    )
    assert answer.status_code == 200, answer.text
    file = server.work / "result.nrrd"
    file.write_bytes(answer.content)
    wire = read_labels(file)
    np.testing.assert_array_equal(from_wire(wire.data), SERIES_CODES)
    np.testing.assert_allclose(wire.affine, PIR, atol=1e-4)


def test_a_result_comes_as_dicom_seg(server: PacsServer) -> None:
    """The result was refused, or MONAI Label's own writer called a mask {2, 11} "cord, canal"."""
    study = server.studies[RESULT]
    answer = requests.post(
        f"{server.url}/infer/totalspineseg", params={"image": study.series, "output": "dicom_seg"}, timeout=SECONDS
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    seg = pydicom.dcmread(BytesIO(answer.content))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == study.series
    assert seg.StudyInstanceUID == study.uid
    np.testing.assert_array_equal(map_names(read_seg(answer.content, GRID), GRID).codes, SERIES_CODES)
    # A viewer that stores it unchanged has corrected nothing.
    assert store(server, answer.content).status_code == 200
    assert outcome(server, seg.SOPInstanceUID)["status"] == "prediction"
    assert corrections(server, study) == ()
    assert not is_finished(server, study)


def test_a_localizer_is_refused_with_a_sentence(server: PacsServer) -> None:
    answer = requests.post(
        f"{server.url}/infer/totalspineseg", params={"image": server.studies[READ].localizer}, timeout=SECONDS
    )
    assert answer.status_code == 422
    assert "not parallel" in answer.json()["detail"]


def test_what_is_stored_counts_by_name_and_is_not_offered_again(server: PacsServer) -> None:
    """A correction made in OHIF never reached the server, and the finished study was offered for two hours."""
    study = server.studies[FINISHED]
    assert next_sample(server)["id"] == study.series
    completed = get(server, "/info/").json()["datastore"]["completed"]
    seg = painted(study, EDITED, rename={"L5-S": "L5-S1"})
    reported = submitted(server, seg)
    assert reported["status"] == "accepted"
    assert "15 structures" in reported["message"]
    (saved,) = corrections(server, study)
    assert (saved.status, saved.step, saved.client, saved.tag) == ("accepted", 2, "ohif", "final")
    assert reported["correction"] == saved.id
    assert reported["findings"] == [dict(finding) for finding in saved.findings]
    np.testing.assert_array_equal(CorrectionStore(server.work).codes(saved), EDITED)
    assert (CorrectionStore(server.work).path(saved) / saved.raw).read_bytes()[128:132] == b"DICM"
    assert stored(server, seg.SeriesInstanceUID) == [seg.SOPInstanceUID]
    assert get(server, "/info/").json()["datastore"]["completed"] == completed + 1
    assert next_sample(server)["id"] == server.studies[READ].series
    label = get(server, "/datastore/label", label=study.series, tag="final")
    file = server.work / "final.nii.gz"
    file.write_bytes(label.content)
    np.testing.assert_array_equal(from_wire(read_labels(file).data), EDITED)


def test_a_second_export_is_stored_beside_the_first(server: PacsServer) -> None:
    study = server.studies[TWICE]
    assert store(server, seg_bytes(painted(study, EDITED))).status_code == 200
    before = corrections(server, study)
    assert len(before) == 1
    codes = np.where(CODE_OF["L1"] == SERIES_CODES, 0, SERIES_CODES).astype(np.uint8)
    seg = painted(study, codes)
    assert store(server, seg_bytes(seg)).status_code == 200
    after = corrections(server, study)
    assert after[:-1] == before
    np.testing.assert_array_equal(CorrectionStore(server.work).codes(after[-1]), codes)
    assert any("T12" in f["message"] or "L1" in f["message"] or "L2" in f["message"] for f in after[-1].findings)
    assert "Please check" in outcome(server, seg.SOPInstanceUID)["message"]


def test_what_is_not_understood_is_parked_and_reported(server: PacsServer) -> None:
    study = server.studies[PARKED]
    seg = painted(study, SERIES_CODES, rename={"L3": "tumor"})
    reported = submitted(server, seg)
    assert reported["status"] == "parked"
    assert "'tumor'" in reported["message"]
    (saved,) = corrections(server, study)
    assert saved.status == "parked"
    assert not is_finished(server, study)


def test_a_segmentation_of_a_series_that_is_not_offered_is_not_counted(server: PacsServer) -> None:
    seg = painted(server.studies[READ], SERIES_CODES)
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = server.studies[READ].localizer
    assert submitted(server, seg)["status"] == "refused"


def test_what_the_pacs_refuses_is_not_counted(server: PacsServer) -> None:
    before = len(corrections(server, server.studies[READ]))
    seg = painted(server.studies[READ], SERIES_CODES)
    content = seg_bytes(seg)
    body, _ = store_body(content)
    wrong = {"content-type": 'multipart/related; type="application/dicom"; boundary=elsewhere'}
    answer = requests.post(f"{server.proxy}/wado/studies", data=body, headers=wrong, timeout=SECONDS)
    assert stored(server, seg.SeriesInstanceUID) == []
    assert get(server, f"/submissions/{seg.SOPInstanceUID}").status_code == 404
    assert len(corrections(server, server.studies[READ])) == before
    assert answer.status_code < 600


def test_images_pass_and_count_as_nothing(server: PacsServer) -> None:
    image = pydicom.dcmread(server.studies[READ].folder / "000.dcm")
    image.SOPInstanceUID = generate_uid()
    image.SeriesInstanceUID = generate_uid()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.Modality = "OT"
    assert store(server, seg_bytes(image)).status_code == 200
    assert stored(server, image.SeriesInstanceUID) == [image.SOPInstanceUID]


def test_a_label_from_slicer_goes_to_the_pacs_by_name(server: PacsServer, tmp_path: Path) -> None:
    from totalspineseg_server.io.volumes import write_volume
    from totalspineseg_server.segments import to_wire

    study = server.studies[SLICER]
    file = tmp_path / "label.nii.gz"
    write_volume(file, to_wire(SERIES_CODES), GRID)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": study.series},
        data={"params": json.dumps({"label_info": names})},
        files={"label": ("label.nii.gz", file.read_bytes())},
        timeout=SECONDS,
    )
    assert answer.status_code == 200, answer.text
    found = search(server, "series", StudyInstanceUID=study.uid, Modality="SEG")
    uid = found[0]["0020000E"]["Value"][0]
    (instance,) = stored(server, uid)
    seg = fetched(server, study, uid, instance)
    np.testing.assert_array_equal(map_names(read_seg(seg, GRID), GRID).codes, SERIES_CODES)
    assert len(corrections(server, study)) == 1


def test_levels_that_follow_a_renamed_one_are_put_back(server: PacsServer) -> None:
    """The PACS kept the names as they were sent, but the history had others."""
    study = server.studies[RENAMED]
    answer = requests.post(f"{server.url}/infer/totalspineseg", params={"image": study.series}, timeout=SECONDS)
    assert answer.status_code == 200
    seg = painted(study, SERIES_CODES, rename={"L5": "L6"})
    assert store(server, seg_bytes(seg)).status_code == 200
    (saved,) = corrections(server, study)
    assert saved.renumbered is not None
    assert "follow" in outcome(server, seg.SOPInstanceUID)["message"]
    found = {entry["0020000E"]["Value"][0] for entry in search(server, "series", StudyInstanceUID=study.uid)}
    (ours,) = found - {study.series, study.localizer, seg.SeriesInstanceUID}
    (instance,) = stored(server, ours)
    content = fetched(server, study, ours, instance)
    codes = CorrectionStore(server.work).codes(saved)
    assert (codes == CODE_OF["L6"]).any()
    np.testing.assert_array_equal(map_names(read_seg(content, GRID), GRID).codes, codes)
    assert len(corrections(server, study)) == 1


def test_corrections_of_the_pacs_become_cases(server: PacsServer) -> None:
    """Images come from the folder of fetched series, labels from the history."""
    study = server.studies[CASE]
    codes = np.where(CODE_OF["L1"] == SERIES_CODES, 0, SERIES_CODES).astype(np.uint8)
    assert submitted(server, painted(study, codes))["status"] == "accepted"
    (corrected,) = corrections(server, study)

    def image_file(image: str) -> Path | None:
        path = server.work / "pacs" / f"{image}.nii"
        return path if path.is_file() else None

    site = Site(server.work, ModelStore(server.app / "model"), CorrectionStore(server.work), image_file)
    found = site_material(site)
    assert found.skipped == ()
    sources = {source.provenance["correction"]: source for source in (*found.training, *found.holdout)}
    scan = sources[corrected.id].read()
    assert scan.image.data.shape == scan.codes.data.shape == SERIES_CODES.shape
    codes = to_ras(scan.codes).data
    assert not (codes == CODE_OF["L1"]).any()
    assert ((codes == CODE_OF["L2"]) == (CODE_OF["L2"] == CODES)).all()


def test_new_series_are_offered_soon(server: PacsServer, tmp_path: Path) -> None:
    late = write_study(tmp_path / "late", LATE, "Late")
    fill(server.orthanc, tmp_path / "late")
    wait_for(lambda: late.series in objects(server))


def test_no_patient_in_the_log(server: PacsServer) -> None:
    study = server.studies[READ]
    assert study.series in objects(server)
    assert search(server, "studies", PatientName=f"{NAMES[READ]}*")
    assert get(server, "/datastore/image", image=study.series).ok
    assert next_sample(server)
    text = server.log.read_text(encoding="utf-8")
    assert not [name for name in (*NAMES, "Phantom", "PatientID", "'P1'") if name in text]
