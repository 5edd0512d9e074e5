"""Tests of numbering by a running server: a pinned level, a renamed segment, other series of the examination."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.client.client import MONAILabelClient

from phantom import RAS, image_of, lumbar_codes
from serving import Server
from test_server import add_image, infer
from totalspineseg_server.anatomy import CODE_OF, NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.predictions import PredictionStore
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.segments import from_names, to_wire

CODES = lumbar_codes()
ENDS = [CODE_OF[name] for name in ("T12-L1", "L5-S", "sacrum", "T12")]
MIDDLE = np.where(np.isin(CODES, ENDS), 0, CODES).astype(np.uint8)
"""L1 to L5 without any landmark."""
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> MONAILabelClient:
    # Of this file alone: for what a client uploaded last a label may be meant that it submits.
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="slicer-of-numbering")


def named(file: str, report: dict[str, Any]) -> dict[str, str]:
    """Return true name -> name in the result, for every structure of the phantom that is drawn."""
    result = from_names(read_labels(Path(file)).data, report["label_names"])
    found = {}
    for code in np.unique(CODES[result > 0]).tolist():
        found[NAME_OF[code]] = NAME_OF[int(np.bincount(result[(code == CODES) & (result > 0)]).argmax())]
    return found


def middle_of(name: str) -> str:
    x, y, z = np.argwhere(CODE_OF[name] == CODES).mean(axis=0)
    return f"{x} {y} {z}"


def test_a_fixed_level_is_answered_without_the_networks(server: Server, client: MONAILabelClient) -> None:
    image = add_image(server, "pinned", image_of(MIDDLE))
    _, before = client.infer("totalspineseg", image, {"result_extension": ".nii"})
    assert before["numbering"]["confident"] is False
    assert "step 2 network" in before["latencies"]
    pin = f"L3 {middle_of('L3')}"
    file, report = client.infer("totalspineseg", image, {"result_extension": ".nii", "pin": pin})
    assert not any("network" in stage and "wait" not in stage for stage in report["latencies"])
    names = named(file, report)
    assert names == {name: name for name in names}
    assert names["L4-L5"] == "L4-L5"
    assert report["numbering"]["probability"] > before["numbering"]["probability"]
    step1 = client.infer("totalspineseg_step1", image, {"result_extension": ".nii"})[1]
    assert "step 1 network" in step1["latencies"]
    pin = f"L3-L4 {middle_of('L3-L4')}"
    file, report = client.infer("totalspineseg_step1", image, {"result_extension": ".nii", "pin": pin})
    assert "step 1 network" not in report["latencies"]
    assert named(file, report)["L2-L3"] == "L2-L3"


def test_a_level_is_pinned_by_what_it_was_called(server: Server, client: MONAILabelClient) -> None:
    """Nobody reads coordinates off a picture; and pressing Run again would have moved every level once more."""
    image = add_image(server, "pinned-by-name", image_of(MIDDLE))
    setting = {"result_extension": ".nii", "pin": "L2 -> L3"}
    refused = infer(server, "totalspineseg", image=image, params=setting)
    assert (refused.status_code, "without 'pin'" in refused.text) == (422, True)
    before = named(*client.infer("totalspineseg", image, {"result_extension": ".nii"}))
    was = before["L3"]
    setting["pin"] = f"{was} -> L3"
    for _ in range(2):
        file, report = client.infer("totalspineseg", image, setting)
        assert named(file, report) == {name: name for name in before}
        assert not any("network" in stage and "wait" not in stage for stage in report["latencies"])
    unknown = infer(server, "totalspineseg", image=image, params={"pin": "C3 -> C4"})
    assert (unknown.status_code, "Its levels are" in unknown.text) == (422, True)


def test_doubtful_levels_are_marked_in_the_reply_unless_the_request_says_otherwise(
    server: Server, client: MONAILabelClient
) -> None:
    """Doubt was only in the console of 3D Slicer."""
    image = add_image(server, "marked", image_of(MIDDLE))
    certain = client.infer("totalspineseg", add_image(server, "unmarked", image_of(CODES)), {})[1]
    assert certain["marked"] == []
    assert not any("?" in name for name in certain["label_names"])
    file, report = client.infer("totalspineseg", image, {"result_extension": ".nii"})
    assert next(iter(report)) == "message"
    assert "doubtful" in report["message"]
    assert report["marked"]
    assert {f"{name} ?" for name in report["marked"]} == {name for name in report["label_names"] if "?" in name}
    painted = named(file, report)
    plain = client.infer("totalspineseg", image, {"result_extension": ".nii", "doubtful_names": "plain"})
    assert list(plain[1]["label_names"])[:5] == ["canal", "cord", "L1", "L1-L2", "L2"]
    assert named(*plain) == painted


def test_the_review_runs_no_network_again_and_its_record_is_stored(server: Server, client: MONAILabelClient) -> None:
    image = add_image(server, "reviewed", image_of(MIDDLE))
    client.infer("totalspineseg", image, {})
    _, report = client.infer("totalspineseg_review", image, {})
    assert "step 2 network" not in report["latencies"]
    records = PredictionStore(server.studies / ".totalspineseg").of_image(image)
    assert [record.model for record in records] == ["totalspineseg", "totalspineseg_review"]
    assert records[0].numbering == report["numbering"]
    assert [record.reviewed for record in records] == ["", records[0].id]
    names = client.infer("totalspineseg", image, {})[1]["label_names"]
    assert [name for name in names if f"{name} ?" in names] == [], "a row to clear names that no reply had shown"


def test_the_review_uses_the_settings_of_the_prediction(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """Clients set localizer and pins for each model separately, and without them the review doubted every level."""
    image, localizer = add_image(server, "told", image_of(MIDDLE)), add_image(server, "told-by", image_of(CODES))
    label = tmp_path / "label.nii.gz"
    write_volume(label, (CODE_OF["L3-L4"] == CODES).astype(np.uint8), RAS)
    client.save_label(localizer, str(label), params={"label_info": [{"name": "L3-L4"}]})
    for reported in ({"localizer": localizer}, {"pin": f"L3 {middle_of('L3')}"}, {}):
        predicted = client.infer("totalspineseg", image, reported)[1]
        for _ in range(2):
            reviewed = client.infer("totalspineseg_review", image, {})[1]
            assert reviewed["numbering"] == predicted["numbering"]
            assert reviewed["settings"] == predicted["settings"]
    client.infer("totalspineseg", image, {"localizer": localizer})
    own = infer(server, "totalspineseg_review", image=image, params={"localizer": "nobody"})
    assert own.status_code == 404


def marked(client: MONAILabelClient, image: str) -> tuple[set[str], set[str]]:
    """Return the names of the phantom's structures that the review marks as doubtful, and as odd."""
    file, _ = client.infer("totalspineseg_review", image, {"result_extension": ".nii"})
    marks = read_labels(Path(file)).data
    uncertain, odd = ({NAME_OF[c] for c in np.unique(CODES[marks == k]).tolist() if c} for k in (1, 2))
    return uncertain, odd


def test_the_review_checks_the_displayed_result(server: Server, client: MONAILabelClient) -> None:
    """After the iterative method, which states no doubts, or a corrected step 1, the review called another result
    certain."""
    image = add_image(server, "by-rule", image_of(CODES))
    client.infer("totalspineseg", image, {"numbering": "iterative"})
    assert {"L3", "L3-L4", "T12-L1"} <= marked(client, image)[0]
    client.infer("totalspineseg", image, {"pin": f"L3 {middle_of('L3')}"})
    assert "L3" not in marked(client, image)[0]
    records = PredictionStore(server.studies / ".totalspineseg")
    label = client.infer("totalspineseg_step1", image, {"result_extension": ".nii", "save_label": True})[1]
    step2 = client.infer("totalspineseg_step2", image, {"label": "original-step1"})[1]
    assert label["models"].keys() == {"step1"}
    review = client.infer("totalspineseg_review", image, {})[1]
    assert (review["models"], review["numbering"]) == (step2["models"], step2["numbering"])
    assert "step 2 network" not in review["latencies"]
    assert next(records.newest_first(image)).versions.keys() == {"step2"}


def test_the_review_shows_where_a_level_is_missing(server: Server, client: MONAILabelClient) -> None:
    """A missing level has no voxels, so nothing was marked."""
    image = add_image(server, "missing", image_of(np.where(CODE_OF["L2-L3"] == CODES, 0, CODES)))
    client.infer("totalspineseg", image, {})
    uncertain, odd = marked(client, image)
    assert {"L1-L2", "L3-L4"} <= uncertain | odd


def test_one_renamed_segment_beside_its_neighbor_of_the_same_name(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """3D Slicer then sends two segments called L4, and the submission was refused."""
    image = add_image(server, "renamed", image_of(CODES))
    file, report = client.infer("totalspineseg", image, {"result_extension": ".nii"})
    wire = to_wire(from_names(read_labels(Path(file)).data, report["label_names"]))
    order = [name for name, value in WIRE_LABELS.items() if (wire == value).any()]
    sent = np.zeros(wire.shape, dtype=np.uint8)
    for value, name in enumerate(order, start=1):
        sent[wire == WIRE_LABELS[name]] = value
    label = tmp_path / "label.nii.gz"
    write_volume(label, sent, RAS)
    names = [{"name": "L2" if name == "L3" else name} for name in order]
    reply = client.save_label(image, str(label), params={"label_info": names, "prediction": report["prediction"]})
    assert reply["renumbered"]["names"]["L4"] == "L3"
    assert reply["renumbered"]["names"]["L1"] == "T12" or reply["renumbered"]["names"]["L1"] == "T13"
    store = CorrectionStore(server.studies / ".totalspineseg")
    (stored,) = store.of_image(image)
    codes = store.codes(stored)
    assert NAME_OF[int(codes[CODE_OF["L3"] == CODES][0])] == "L2"
    assert NAME_OF[int(codes[CODE_OF["L5"] == CODES][0])] == "L4"
    np.testing.assert_array_equal(codes > 0, sent > 0)
    assert stored.renumbered is not None
    assert stored.label_info == names


def test_a_reader_who_renames_several_levels_is_taken_at_their_word(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    image = add_image(server, "several", image_of(CODES))
    _, report = client.infer("totalspineseg", image, {})
    label = tmp_path / "label.nii.gz"
    discs = ["L1-L2", "L2-L3", "L3-L4"]
    sent = np.zeros(CODES.shape, dtype=np.uint8)
    for value, name in enumerate(discs, start=1):
        sent[CODE_OF[name] == CODES] = value
    write_volume(label, sent, RAS)
    names = [{"name": name} for name in ("L1-L2", "L3-L4", "L5-S")]
    reply = client.save_label(image, str(label), params={"label_info": names, "prediction": report["prediction"]})
    assert reply["renumbered"] is None
    assert {finding["kind"] for finding in reply["findings"]} >= {"gap"}


def test_other_series_of_the_examination_name_what_has_no_landmark(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    """A predicted series of the same session counts as evidence, a series of another session does not."""
    add_image(server, "sub-07_ses-1_T2w", image_of(CODES))
    blank = add_image(server, "sub-07_ses-1_T1w", image_of(MIDDLE))
    other = add_image(server, "sub-07_ses-2_T1w", image_of(MIDDLE))
    alone = client.infer("totalspineseg", blank, {"result_extension": ".nii"})[1]
    assert (alone["numbering"]["confident"], alone["numbering"]["helped_by"]) == (False, [])
    certain = {"other_series": "ignore", "pin": f"L3 {middle_of('L3')}"}
    assert client.infer("totalspineseg", "sub-07_ses-1_T2w", certain)[1]["numbering"]["confident"] is True
    file, report = client.infer("totalspineseg", blank, {"result_extension": ".nii"})
    assert report["numbering"]["helped_by"] == ["sub-07_ses-1_T2w"]
    assert report["numbering"]["probability"] > 0.9
    names = named(file, report)
    assert names == {name: name for name in names}
    ignored = client.infer("totalspineseg", blank, {"other_series": "ignore"})[1]
    assert ignored["numbering"]["probability"] == alone["numbering"]["probability"]
    elsewhere = client.infer("totalspineseg", other, {})[1]
    assert elsewhere["numbering"]["helped_by"] == []


def test_two_series_do_not_confirm_each_other(server: Server, client: MONAILabelClient) -> None:
    """Neither series knows its names, so what is merely usual must not become certain."""
    one = add_image(server, "sub-08_T2w", image_of(MIDDLE))
    two = add_image(server, "sub-08_T1w", image_of(MIDDLE))
    alone = client.infer("totalspineseg", one, {})[1]["numbering"]
    beside = client.infer("totalspineseg", two, {})[1]["numbering"]
    assert (alone["confident"], beside["confident"], beside["helped_by"]) == (False, False, [])
    assert beside["probability"] == alone["probability"]


def test_a_guessed_prediction_is_not_a_localizer(server: Server, client: MONAILabelClient) -> None:
    """A stored prediction that was not certain (0.4), named as localizer, made another scan certain of its names."""
    one, two = (add_image(server, name, image_of(MIDDLE)) for name in ("guessed", "beside"))
    assert client.infer("totalspineseg", one, {"save_label": True})[1]["numbering"]["confident"] is False
    refused = infer(server, image=two, params={"localizer": one})
    assert (refused.status_code, "certain" in refused.json()["detail"]) == (422, True)


def test_a_finished_label_of_another_series_is_near_certain(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    one = add_image(server, "sub-09_T2w", image_of(MIDDLE))
    two = add_image(server, "sub-09_T1w", image_of(MIDDLE))
    label = tmp_path / "label.nii.gz"
    write_volume(label, (CODE_OF["L3"] == CODES).astype(np.uint8), RAS)
    client.save_label(one, str(label), params={"label_info": [{"name": "L4"}]})
    file, report = client.infer("totalspineseg", two, {"result_extension": ".nii"})
    assert report["numbering"]["helped_by"] == [one]
    assert named(file, report)["L3"] == "L4"
    assert named(file, report)["L1-L2"] == "L2-L3"
