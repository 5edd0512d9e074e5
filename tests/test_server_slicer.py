"""Tests of how 3D Slicer names volumes, uploads them and submits labels, in the order of its plugin."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from phantom import RAS, image_of, lumbar_codes, own_image
from serving import Server
from test_server import accepted
from totalspineseg_server.anatomy import CODE_OF, WIRE_LABELS
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.segments import from_names, from_wire

CODES = lumbar_codes()
PAINTED = [name for name in WIRE_LABELS if (CODE_OF[name] == CODES).any()]
ONE_UP = {f"L{k}": f"L{k + 1}" for k in range(1, 6)} | {f"L{k}-L{k + 1}": f"L{k + 1}-L{k + 2}" for k in range(1, 5)}
ONE_UP |= {"T12": "L1", "T12-L1": "L1-L2"}
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="user-xyz")


def grid(moved_mm: float) -> Grid:
    affine = np.eye(4)
    affine[0, 3] = moved_mm
    return Grid(RAS.shape, affine)


def volume(folder: Path, number: float, moved_mm: float = 0.0) -> str:
    """Return a volume that 3D Slicer has written, another one for each number."""
    path = folder / "volume.nii.gz"
    write_volume(path, own_image(f"of Slicer {number}", image_of(CODES)), grid(moved_mm))
    return str(path)


def submit(
    client: MONAILabelClient,
    image: str,
    folder: Path,
    renamed: dict[str, str] | None = None,
    moved_mm: float = 0.0,
) -> dict[str, Any]:
    """Submit all structures of the phantom, some under other names."""
    label = folder / "label.nii.gz"
    sent = np.zeros(CODES.shape, dtype=np.uint8)
    for value, name in enumerate(PAINTED, start=1):
        sent[CODE_OF[name] == CODES] = value
    write_volume(label, sent, grid(moved_mm))
    names = [{"name": (renamed or {}).get(name, name)} for name in PAINTED]
    reply: dict[str, Any] = client.save_label(image, str(label), params={"label_info": names})
    return reply


def pin_of_l5(name: str) -> str:
    x, y, z = np.argwhere(CODE_OF["L5"] == CODES).mean(axis=0)
    return f"{name} {x} {y} {z}"


@pytest.mark.parametrize("name", ["5: t2_tse_sag", "t2 <sag>", "T2/STIR", "5 t2?", "../up", "100%3A"])
def test_a_volume_loaded_from_dicom_can_be_uploaded_segmented_and_submitted(
    server: Server, client: MONAILabelClient, tmp_path: Path, name: str
) -> None:
    """3D Slicer names it by its series ("5: t2_tse_sag"), which was refused as an id by every request."""
    path = volume(tmp_path, sum(name.encode()) / 4096)
    assert client.upload_image(path, name) == {"image": name}
    file, report = client.infer("totalspineseg", name, {"result_extension": ".nii"})
    np.testing.assert_array_equal(from_names(read_labels(Path(file)).data, report["label_names"]), CODES)
    reply = submit(client, name, tmp_path)
    assert (reply["image"], reply["prediction"]["id"]) == (name, report["prediction"])
    displayed = read_labels(Path(client.download_label(name, "final")))
    np.testing.assert_array_equal(from_wire(displayed.data), CODES)
    assert "final" in client.datastore()["objects"][name]["labels"]
    image = requests.get(f"{server.url}/datastore/image", params={"image": name}, timeout=10)
    assert image.content == Path(path).read_bytes()
    assert not list(server.studies.parent.glob("up*"))


def test_a_session_needs_no_plain_name(server: Server, client: MONAILabelClient, tmp_path: Path) -> None:
    """A volume that is only looked at is not uploaded, but its name comes with the request and was refused."""
    session = client.create_session(volume(tmp_path, 0.5))["session_id"]
    assert client.infer("totalspineseg", "9: t1_tse_sag/fs", {}, session_id=session)[1]["prediction"]
    assert "9: t1_tse_sag/fs" not in client.datastore()["objects"]


def test_a_volume_of_the_same_name_as_another_patients_is_refused(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """Series have the same names in all patients, and the labels of two patients must not come together in one
    image."""
    name = "6: t2_tse_sag"
    first = volume(tmp_path, 0.25)
    client.upload_image(first, name)
    before = client.datastore()["objects"].keys()
    with pytest.raises(MONAILabelClientException) as caught:
        client.upload_image(volume(tmp_path, 0.75), name)
    assert "409" in caught.value.msg
    assert f"Another image here is named '{name}'" in caught.value.msg
    assert client.datastore()["objects"].keys() == before
    assert client.upload_image(volume(tmp_path, 0.25), name) == {"image": name}, "the same bytes again"


@pytest.mark.parametrize("moved_mm", [0.0, 30.0], ids=["same grid", "other grid"])
def test_a_volume_renamed_before_submit_keeps_its_label(
    server: Server, client: MONAILabelClient, tmp_path: Path, moved_mm: float
) -> None:
    """3D Slicer uploads the volume under the new name and sends the label under the old one, which is another patient's
    image."""
    taken, free = f"8: t2 {moved_mm}", f"8: t2 {moved_mm} of the second"
    MONAILabelClient(server.url, client_id="ada").upload_image(volume(tmp_path, 2 + moved_mm / 100), taken)
    second = volume(tmp_path, 2.125 + moved_mm / 100, moved_mm)
    session = client.create_session(second)["session_id"]
    client.infer("totalspineseg", taken, {}, session_id=session)
    with pytest.raises(MONAILabelClientException, match="409"):
        client.upload_image(second, taken)
    client.upload_image(second, free)
    assert submit(client, taken, tmp_path, {"L5": "L6"}, moved_mm)["image"] == free
    assert (accepted(server, taken), accepted(server, free).renumbered["names"]["L4"]) == (None, "L5")
    if moved_mm:
        assert submit(client, taken, tmp_path, {"L5": "L6"}, moved_mm)["image"] == free
        assert submit(client, taken, tmp_path, ONE_UP)["image"] == taken
        return
    before = accepted(server, free)
    for client_id in ("user-xyz", "ada"):
        again = MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id=client_id)
        if client_id == "ada":
            assert submit(again, taken, tmp_path)["image"] == taken
            continue
        with pytest.raises(MONAILabelClientException, match="422") as caught:
            submit(again, taken, tmp_path)
        assert f"'{free}'" in caught.value.msg
        assert "'Upload Volume'" in caught.value.msg
        assert "kept but not used" in caught.value.msg
    assert accepted(server, free) == before
    client.upload_image(second, free)
    assert submit(client, free, tmp_path)["image"] == free


def test_a_label_of_no_image_is_reported_and_stored(server: Server, client: MONAILabelClient, tmp_path: Path) -> None:
    """The label was filed under the image that its client had uploaded last."""
    client.upload_image(volume(tmp_path, 2.75), "renamed at once")
    with pytest.raises(MONAILabelClientException, match="404") as caught:
        submit(client, "9: t2_tse_sag", tmp_path)
    assert "no image '9: t2_tse_sag'" in caught.value.msg
    assert accepted(server, "renamed at once") is None
    unused = requests.get(f"{server.url}/submissions/", timeout=10).json()[-1]
    assert (unused["image"], unused["status"]) == ("9: t2_tse_sag", "unfiled")
    folder = server.studies / ".totalspineseg" / "unfiled" / unused["submission"]
    assert (folder / "raw.nii.gz").read_bytes() == (tmp_path / "label.nii.gz").read_bytes()


def test_a_rename_is_followed_where_the_volume_was_predicted_in_a_session(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """3D Slicer uploads its own copy of the volume at *Submit Label*: no level followed, and L5 was missing in the
    label."""
    name = "7: t2_tse_sag"
    session = client.create_session(volume(tmp_path, 1.25))["session_id"]
    _, predicted = client.infer("totalspineseg", name, {}, session_id=session)
    client.upload_image(volume(tmp_path, 1.25), name)
    reply = submit(client, name, tmp_path, {"L5": "L6"})
    assert reply["prediction"]["id"] == predicted["prediction"]
    assert reply["renumbered"]["names"]["L4"] == "L5"
    stored = accepted(server, name)
    assert CODE_OF["L5"] in stored.present
    assert "L5 is missing" not in str(stored.findings)


@pytest.mark.parametrize("new", ["L6", "L4"])
def test_the_prediction_that_was_corrected_is_found_among_those_of_two_readers(
    server: Server, client: MONAILabelClient, tmp_path: Path, new: str
) -> None:
    """3D Slicer calls everybody user-xyz, so the label was compared with the prediction that another reader saw
    last."""
    name = f"two-readers-{new}"
    client.upload_image(volume(tmp_path, 1.5 if new == "L6" else 1.75), name)
    _, first = client.infer("totalspineseg", name, {})
    _, second = client.infer("totalspineseg", name, {"pin": pin_of_l5("L6")})
    reply = submit(client, name, tmp_path, {"L5": new})
    assert reply["prediction"]["id"] == first["prediction"]
    assert reply["renumbered"]["names"]["L4"] == {"L6": "L5", "L4": "L3"}[new]
    other = submit(client, name, tmp_path, ONE_UP)
    assert (other["prediction"]["id"], other["renumbered"]) == (second["prediction"], None)
