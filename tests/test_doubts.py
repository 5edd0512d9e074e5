"""Tests that a submission with doubtful levels, or with an odd rename of certain ones, is answered with a finding."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from block_spines import block_spine, classes_of
from dicom_series import save, slices
from phantom import RAS, CodeReader, image_of, lumbar_codes
from test_corrections_store import Scene
from totalspineseg_server.anatomy import CODE_OF, NAME_OF, WIRE_LABELS
from totalspineseg_server.corrections.comparison import (
    Corrected,
    beside_prediction,
    check,
    compare,
    is_unchanged,
)
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps, PredictionRecord, PredictionStore
from totalspineseg_server.corrections.receipts import Receipts, Sender, receipt_of
from totalspineseg_server.corrections.submission import map_names
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.infers.published import FullTask
from totalspineseg_server.infers.services import Services
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.segments import Segment, Submission
from totalspineseg_server.trust import Certainty

TRUTH = block_spine("T11")
GRID = Grid((24, 48, TRUTH.shape[2]), np.eye(4))
STORED = PredictionMaps.of("p", NamedMap(Volume(classes_of(TRUTH, 2), GRID.affine), TRUTH, 2), GRID, {}, {}, ())


def sent(names: dict[str, str], labels: LabelArray = TRUTH) -> Submission:
    codes = [int(code) for code in np.unique(labels) if code]
    return Submission((labels,), GRID, tuple(Segment(names.get(NAME_OF[c], NAME_OF[c]), c) for c in codes))


def findings(submission: Submission, certainty: Certainty | None, known: tuple[dict[str, Any], ...] = ()) -> list[Any]:
    numbering = {"certainty": certainty, "probability": 0.99 if certainty == "certain" else 0.61, "findings": known}
    record = PredictionRecord("p", "a", "totalspineseg", {}, {}, {}, numbering, "")
    mapped = map_names(submission, GRID)
    lint = check(mapped.codes, GRID)
    compared = compare(submission, GRID, STORED)
    assert compared is not None
    unchanged = is_unchanged(compared, mapped)
    return list(beside_prediction(Corrected(record, compared), mapped, lint, unchanged=unchanged))


def edited(labels: LabelArray) -> LabelArray:
    changed = labels.copy()
    changed[tuple(np.argwhere(changed == CODE_OF["L3"])[0])] = 0
    return changed


@pytest.mark.parametrize(
    ("certainty", "submission", "count"),
    [
        ("doubtful", sent({}), 1),
        ("doubtful", sent({}, np.where(np.isin(TRUTH, [CODE_OF["L3"], CODE_OF["L4"]]), TRUTH, 0).astype(np.uint8)), 1),
        ("doubtful", sent({}, edited(TRUTH)), 0),
        ("doubtful", sent({"L4": "L5", "L5": "L6"}), 0),
        ("certain", sent({}), 0),
        ("counted", sent({}), 0),
        (None, sent({}), 0),
    ],
    ids=["as drawn", "a part as drawn", "a voxel edited", "renamed", "certain", "counted", "nothing known"],
)
def test_a_doubtful_numbering_that_was_not_changed_is_reported(
    certainty: Certainty | None, submission: Submission, count: int
) -> None:
    """A label that nobody had checked counted as a reader's word on levels that were not certain."""
    found = findings(submission, certainty)
    assert [finding["kind"] for finding in found] == ["unchanged"] * count
    assert all("0.61" in finding["message"] for finding in found)


@pytest.mark.parametrize(
    ("names", "certainty", "words"),
    [
        ({"L1": "T13", "T12-L1": "T12-T13"}, "certain", ("L1", "T13", "L1 is missing", "there is a T13")),
        ({"L2": "T13"}, "certain", ("L2", "T13", "L2 is missing")),
        ({"L1": "T13"}, "counted", ()),
        ({"L1": "T13"}, "doubtful", ()),
        ({}, "certain", ()),
    ],
    ids=["T13", "out of order", "counted", "doubtful", "no rename"],
)
def test_a_rename_that_makes_certain_levels_odd_is_reported(
    names: dict[str, str], certainty: Certainty, words: tuple[str, ...]
) -> None:
    found = findings(sent(names), certainty)
    assert len(found) == bool(words)
    assert all(word in finding["message"] for finding in found for word in words)
    assert all(finding["kind"] == "renamed" for finding in found)


def test_nothing_is_reported_if_the_prediction_is_unknown() -> None:
    mapped = map_names(sent({}), GRID)
    assert beside_prediction(None, mapped, (), unchanged=False) == ()


def test_what_a_rename_did_is_the_first_sentence() -> None:
    """The sentence came after the number of structures, in a notice that shows only a few lines."""
    fields: dict[str, Any] = dict.fromkeys(("reason", "user", "client", "file_name", "raw", "raw_sha256"), "")
    correction = Correction(
        id="c",
        image="a",
        status="accepted",
        step=2,
        image_sha256="",
        received="",
        prediction=None,
        label_info=None,
        present=(1, 2),
        findings=({"message": "L3 is missing."},),
        renumbered={"message": "You renamed L5 to L6; the other levels follow."},
        tag="final",
        **fields,
    )
    message = correction.message
    assert message.startswith("You renamed L5 to L6")
    assert message.endswith("Please check: L3 is missing.")
    assert "finished label" in message
    unfinished = replace(correction, tag="original").message
    assert "not count" in unfinished and "finished label" not in unfinished


@pytest.mark.slow
def test_other_structures_or_another_grid_need_no_network(tmp_path: Path) -> None:
    """A reader who asked for the discs alone waited for both networks again."""
    image, runs = tmp_path / "a.nii.gz", list[int]()
    turned = image_of(lumbar_codes()).transpose(2, 0, 1)
    write_volume(image, turned, Volume(turned, RAS.affine[:, [2, 0, 1, 3]]).grid)

    class Counted(CodeReader):
        def predict(self, channels: np.ndarray, *, soft: Collection[str] = ()) -> Prediction:
            runs.append(1)
            return replace(super().predict(channels, soft=soft), mirror_difference=0.25)

    networks: Any = SimpleNamespace(get=Counted)
    alone: Any = SimpleNamespace(siblings=lambda _: (), series_folder=lambda _: None)
    services = Services(networks, PredictionStore(tmp_path), MapStore(tmp_path), alone, lambda: "")

    def asked(**settings: str) -> tuple[Volume, Mapping[str, Any], int]:
        before = len(runs)
        request = {"image": str(image), "image_id": "a", "model": "totalspineseg", "result_extension": ".nii.gz"}
        file, report = FullTask(services)({**request, **settings})
        labels = read_labels(Path(file))
        Path(file).unlink()
        return labels, report, len(runs) - before

    first, report, ran = asked()
    assert ran == 2
    discs, other, ran = asked(structures="discs")
    assert ran == 0 and 0 < np.count_nonzero(discs.data) < np.count_nonzero(first.data)
    assert other["numbering"] == report["numbering"]
    records = services.predictions.of_image("a")
    assert records[0].disagreement == records[1].disagreement and "mirror" in records[0].disagreement
    whole, _, ran = asked(output_grid="iso")
    assert ran == 0 and whole.data.shape != first.data.shape
    again, _, ran = asked()
    assert ran == 0 and (again.data == first.data).all()
    for settings in ({"numbering": "iterative"}, {"structures": "discs"}):
        assert asked(**settings)[2] == 2
    write_volume(image, image_of(lumbar_codes()) + 1, RAS)
    assert asked()[2] == 2


def test_what_is_odd_about_a_dicom_series_is_in_the_reply(tmp_path: Path) -> None:
    """That slices of a series are missing was written to the server's log alone, because its volume does not know."""
    image = tmp_path / "a.nii.gz"
    write_volume(image, image_of(lumbar_codes()), RAS)
    folder = save(tmp_path / "series", slices(size=(13, 11, 9))[::2])
    networks: Any = SimpleNamespace(get=CodeReader)
    studies: Any = SimpleNamespace(siblings=lambda _: (), series_folder={"a": folder}.get)
    services = Services(networks, PredictionStore(tmp_path), MapStore(tmp_path), studies, lambda: "")
    file, report = FullTask(services)({"image": str(image), "image_id": "a", "model": "totalspineseg"})
    Path(file).unlink()
    assert ["6.6 mm apart" in finding["message"] for finding in report["numbering"]["findings"]] == [True]


def test_a_doubtful_result_is_recognized_when_it_is_submitted_unchanged(tmp_path: Path) -> None:
    """This goes from the network to the record, on a grid that is not that of the network."""
    middle = [CODE_OF[name] for name in ("L2", "L3", "L2-L3", "L3-L4", "cord", "canal")]
    codes = np.where(np.isin(lumbar_codes(), middle), lumbar_codes(), 0).astype(np.uint8)
    image = tmp_path / "a.nii.gz"
    write_volume(image, image_of(codes), RAS)
    networks: Any = SimpleNamespace(get=CodeReader)
    alone: Any = SimpleNamespace(siblings=lambda _: (), series_folder=lambda _: None)
    services = Services(networks, PredictionStore(tmp_path), MapStore(tmp_path), alone, lambda: "")
    request = {"image": str(image), "image_id": "a", "model": "totalspineseg", "result_extension": ".nii.gz"}
    result, report = FullTask(services)(request)
    assert report["numbering"]["confident"] is False
    scene = Scene(lambda image_id: image, lambda *label: None)
    inbox = Inbox(Receipts(tmp_path), CorrectionStore(tmp_path), services.predictions, services.maps, scene)
    params = {"label_info": [{"name": name} for name in WIRE_LABELS]}

    def submit(file: Path) -> Correction:
        return inbox.submit(receipt_of("a", file, tag="final", sender=Sender("", "ada", ""), params=params), file)

    stored = submit(Path(result))
    assert stored.findings[0]["kind"] == "unchanged"
    wire = read_labels(Path(result))
    wire.data[tuple(np.argwhere(wire.data == WIRE_LABELS["L2"])[0])] = 0
    write_volume(tmp_path / "edited.nii.gz", wire.data, wire.grid)
    stored = submit(tmp_path / "edited.nii.gz")
    assert "unchanged" not in {finding["kind"] for finding in stored.findings}
    Path(result).unlink()
