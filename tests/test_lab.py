"""Tests of the lab's page behind its interface: the worklist, and what readers do with a scan."""

import io
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image

from phantom import RAS, image_of, lumbar_codes
from serving import Server
from test_server import add_image
from totalspineseg_server.anatomy import CODE_OF, NAME_OF
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.io.volumes import read_labels

CODES = lumbar_codes()
DOUBTFUL = np.where(np.isin(CODES, [CODE_OF[name] for name in ("T12-L1", "L5-S", "sacrum", "T12")]), 0, CODES)
"""L1 to L5 without any landmark."""
BOTH_VIEWS = ["sagittal", "axial"]


def get(server: Server, path: str, **parameters: object) -> Any:
    answer = requests.get(f"{server.url}{path}", params=parameters, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(server: Server, path: str, body: object, status: int = 200) -> Any:
    answer = requests.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def predicted(server: Server, name: str, codes: np.ndarray[Any, Any] = CODES) -> str:
    """Add a scan and predict it; return the id of the result."""
    add_image(server, name, image_of(codes.astype(np.uint8)))
    answer = requests.post(f"{server.url}/infer/totalspineseg?image={name}&output=json", timeout=120)
    return str(answer.json()["prediction"])


def scan(server: Server, name: str) -> Any:
    return get(server, f"/scans/{name}")


def store(server: Server) -> CorrectionStore:
    return CorrectionStore(server.studies / ".totalspineseg")


def test_a_scan_goes_from_new_to_finished_by_accepting_it(server: Server) -> None:
    add_image(server, "lab-way", image_of(CODES))
    before = scan(server, "lab-way")
    assert (before["status"], before["label"], before["levels"]) == ("new", "", [])
    result = predicted(server, "lab-way-2")
    found = scan(server, "lab-way-2")
    assert (found["status"], found["label"], found["prediction"]) == ("predicted", "prediction", result)
    assert found["certainty"] in ("certain", "counted")
    names = [level["name"] for level in found["levels"]]
    assert names[:4] == ["T12", "T12-L1", "L1", "L1-L2"]
    assert set(names[-2:]) == {"canal", "cord"}
    accept = {"prediction": result, "views": BOTH_VIEWS, "client_id": "ada"}
    assert "axial" in post(server, "/scans/lab-way-2/accept", {**accept, "views": ["sagittal"]}, 409)["detail"]
    assert "Another result" in post(server, "/scans/lab-way-2/accept", {**accept, "prediction": "other"}, 409)["detail"]
    stored = post(server, "/scans/lab-way-2/accept", accept)["correction"]
    after = scan(server, "lab-way-2")
    assert (after["status"], after["user"], after["unchanged"], after["label"]) == ("finished", "ada", True, "finished")
    (correction,) = store(server).of_image("lab-way-2")
    assert (correction.id, correction.unchanged, correction.client, correction.untouched) == (stored, True, "ada", ())
    np.testing.assert_array_equal(store(server).codes(correction), CODES)
    assert "finished already" in post(server, "/scans/lab-way-2/accept", accept, 409)["detail"]
    assert "'other'" in post(server, "/scans/lab-way-2/choose", {"correction": "other"}, 409)["detail"]
    post(server, "/scans/lab-way-2/choose", {"correction": stored, "client_id": "chief"})
    newest, oldest = scan(server, "lab-way-2")["history"]
    assert (newest["user"], newest["chosen"], newest["unchanged"], oldest["chosen"]) == ("chief", ["ada"], True, [])


def test_undo_takes_the_last_act_back(server: Server) -> None:
    result = predicted(server, "lab-undo")
    assert "nothing to undo" in post(server, "/scans/lab-undo/undo", {}, 409)["detail"]
    post(server, "/scans/lab-undo/accept", {"prediction": result, "views": BOTH_VIEWS})
    post(server, "/scans/lab-undo/undo", {})
    assert scan(server, "lab-undo")["status"] == "predicted"
    assert "lab-undo" not in requests.get(f"{server.url}/datastore/", timeout=60).text or (
        scan(server, "lab-undo")["history"][0]["status"] == "taken back"
    )
    post(server, "/scans/lab-undo/reject", {"reason": "drawn into the ribs", "client_id": "ben"})
    rejected = scan(server, "lab-undo")
    assert (rejected["status"], rejected["reason"], rejected["user"]) == ("rejected", "drawn into the ribs", "ben")
    post(server, "/scans/lab-undo/undo", {})
    assert scan(server, "lab-undo")["status"] == "predicted"


def test_a_doubtful_result_cannot_be_accepted_but_pinned(server: Server) -> None:
    result = predicted(server, "lab-pin", DOUBTFUL)
    before = scan(server, "lab-pin")
    assert (before["certainty"], before["can_pin"]) == ("doubtful", True)
    assert any(level["doubtful"] for level in before["levels"])
    refused = post(server, "/scans/lab-pin/accept", {"prediction": result, "views": BOTH_VIEWS}, 409)
    assert "doubtful" in refused["detail"]
    displayed = next(level["name"] for level in before["levels"] if level["kind"] == "vertebra")
    wanted = NAME_OF[CODE_OF[displayed] + 1]
    pin = {"prediction": result, "names": {displayed: wanted}}
    pinned = post(server, "/scans/lab-pin/pin", pin)
    assert pinned["names"][displayed] == wanted
    assert len(pinned["names"]) > 3
    assert pinned["correction"] == ""
    assert scan(server, "lab-pin")["status"] == "predicted"
    submitted = post(server, "/scans/lab-pin/pin", {**pin, "submit": True, "client_id": "cai"})
    (correction,) = store(server).of_image("lab-pin")
    assert submitted["correction"] == correction.id
    assert correction.renumbered is not None
    assert not correction.unchanged
    after = [level["name"] for level in scan(server, "lab-pin")["levels"]]
    names = [pinned["names"].get(level["name"], level["name"]) for level in before["levels"]]
    assert after == names


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ({"L3": "L3-L4"}, "disc"),
        ({"L3": "Q9"}, "Q9"),
        ({"C3": "C4"}, "C3"),
        ({}, "disc"),
        ({"T12": "L5"}, "conflict"),
    ],
    ids=["other kind", "no name", "not in view", "nothing", "contradiction"],
)
def test_a_pin_that_cannot_be_is_refused(server: Server, names: dict[str, str], word: str) -> None:
    found = scan(server, "lab-way-3") if "lab-way-3" in known(server) else None
    result = predicted(server, "lab-way-3") if found is None else found["prediction"]
    assert word in post(server, "/scans/lab-way-3/pin", {"prediction": result, "names": names}, 422)["detail"]


def known(server: Server) -> set[str]:
    return {row["id"] for row in get(server, "/worklist", size=200)["rows"]}


def test_volume_and_label_share_their_voxels(server: Server, tmp_path: Path) -> None:
    """The axes of ``a-sagittal`` run to the posterior, inferior and right."""
    requests.post(f"{server.url}/infer/totalspineseg?image=a-sagittal&output=json", timeout=120)
    for name in ("volume", "label"):
        content = requests.get(f"{server.url}/scans/a-sagittal/{name}", timeout=60).content
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
    volume: Any = nib.load(tmp_path / "volume.nii.gz")
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.shape == RAS.shape
    label = read_labels(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(label.data, CODES)
    np.testing.assert_allclose(label.affine, volume.affine)
    for level in scan(server, "a-sagittal")["levels"]:
        at = tuple(int(share * size) for share, size in zip(level["at"], RAS.shape, strict=True))
        assert CODES[at] == level["code"], level["name"]


def test_a_picture_is_made_once_and_asked_for_by_its_tag(server: Server) -> None:
    predicted(server, "lab-picture")
    address = f"{server.url}/scans/lab-picture/thumbnail"
    first = requests.get(address, timeout=60)
    picture = Image.open(io.BytesIO(first.content))
    assert picture.height <= 420
    assert len(first.content) < 100_000
    assert len(list((server.studies / ".totalspineseg" / "thumbnails").glob("*.png"))) >= 1
    again = requests.get(address, headers={"if-none-match": first.headers["etag"]}, timeout=60)
    assert (again.status_code, again.content) == (304, b"")


def test_a_missing_scan_is_reported(server: Server) -> None:
    for path in ("/scans/nobody", "/scans/nobody/volume", "/scans/nobody/thumbnail"):
        assert requests.get(f"{server.url}{path}", timeout=60).status_code == 404, path


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..%2Fsecret",
        "%2e%2e%2fsecret",
        "..%5csecret",
        "%2Fetc%2Fpasswd",
        "Wirbels\u00e4ule\u0000",
        "a" * 300,
    ],
    ids=lambda name: ascii(name[:20]),
)
def test_an_id_of_no_scan_does_not_reach_the_disk(server: Server, name: str) -> None:
    """A file ``secret.nii.gz`` lies beside the studies and must not be sent."""
    address = f"{server.url}/scans/{name}"
    for part in ("", "/thumbnail", "/volume", "/label"):
        assert requests.get(address + part, timeout=60).status_code in (400, 404), part
    for act in ("pin", "accept", "reject", "undo"):
        body = {"prediction": "x", "names": {"L4": "L5"}, "views": BOTH_VIEWS, "reason": "x"}
        assert requests.post(f"{address}/{act}", json=body, timeout=60).status_code in (400, 404, 405), act
    assert not list(server.studies.parent.rglob("*secret*/record.json"))


def test_an_image_that_cannot_be_read_has_no_picture_and_says_why(server: Server) -> None:
    (server.studies / "lab-broken.nii.gz").write_bytes(b"broken")
    deadline = time.monotonic() + 60
    while "lab-broken" not in known(server):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert requests.get(f"{server.url}/scans/lab-broken/thumbnail", timeout=60).status_code == 204
    answer = requests.get(f"{server.url}/scans/lab-broken", timeout=60)
    assert answer.status_code == 422
    assert "lab-broken" in answer.json()["detail"]
    (server.studies / "lab-broken.nii.gz").unlink()


def test_the_versions_name_the_starter_weights_in_use(server: Server) -> None:
    found = get(server, "/versions")
    assert found["in_use"] == {"1": "starter", "2": "starter"}
    assert found["back"] is None
    assert post(server, "/versions/rollback", None, 409)["detail"]
    assert "no-such" in post(server, "/versions/no-such/activate", None, 409)["detail"]
    assert "no-such" in post(server, "/versions/no-such/judge", None, 409)["detail"]
    assert (found["judge"]["running"], found["judge"]["failure"]) == (False, "")
    assert get(server, "/training")["curves"] == {}


def test_a_browser_gets_the_page_and_a_program_the_earlier_answer(server: Server) -> None:
    for path, headers in (("/", {}), ("/", {"accept": "application/json"}), ("/docs", {"accept": "text/html"})):
        assert "Weights in use: starter" in requests.get(f"{server.url}{path}", headers=headers, timeout=60).text
    answer = requests.get(server.url, headers={"accept": "text/html,*/*;q=0.8"}, timeout=60)
    assert 'src="/lab/main.js"' in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self';" in policy
    assert "unsafe-eval" not in policy
    assert "<script>" not in answer.text
    known = {"accept": "text/html", "if-none-match": answer.headers["etag"]}
    again = requests.get(server.url, headers=known, timeout=60)
    assert again.status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fstart.html", "%2e%2e%2f%2e%2e%2fmain.py", "lab.css%00", "index"])
def test_the_page_has_no_files_but_its_own(server: Server, name: str) -> None:
    assert requests.get(f"{server.url}/lab/{name}", timeout=60).status_code in (400, 404)


def test_every_file_of_the_page_is_served_with_its_kind(server: Server) -> None:
    kinds = {"main.js": "text/javascript", "worklist.js": "text/javascript", "lab.css": "text/css"}
    for name, kind in kinds.items():
        answer = requests.get(f"{server.url}/lab/{name}", timeout=60)
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
