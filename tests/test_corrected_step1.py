"""Tests of step 2 from a step-1 map, with names from a reader who corrected it and from a network."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phantom import GRAY_PER_CODE, RAS, CodeReader, image_of, lumbar_codes
from totalspineseg_server.anatomy import CODE_OF, DISCS
from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps
from totalspineseg_server.errors import SettingError
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.infers.published import Step2Task
from totalspineseg_server.infers.services import Progress
from totalspineseg_server.infers.settings import read_settings
from totalspineseg_server.infers.task import Outcome
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.pipeline import prepare
from totalspineseg_server.segments import to_wire

TRUTH = lumbar_codes()
ONE_MORE = {"T12-L1": "L1-L2", "L1-L2": "L2-L3", "L2-L3": "L3-L4", "L3-L4": "L4-L5", "L4-L5": "L5-L6"}
"""A reader's names of a column with L6, where the network's landmark classes say T12-L1."""


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    codes = np.where(np.isin(TRUTH, DISCS), TRUTH, 0).astype(np.uint8)
    for name, other in ONE_MORE.items():
        codes[CODE_OF[name] == TRUTH] = CODE_OF[other]
    write_volume(tmp_path / "corrected.nii.gz", to_wire(codes), RAS)
    return tmp_path / "corrected.nii.gz"


def step2(labels: Mapping[tuple[str, str], Path], **settings: Any) -> Outcome:
    """The answer if these labels are stored, by image and tag; ``infos`` is what is known about them, by tag."""
    infos = settings.pop("infos", {})
    services: Any = SimpleNamespace(
        networks=SimpleNamespace(get=settings.pop("network", CodeReader)),
        studies=SimpleNamespace(
            label_file=lambda image, tag: labels.get((image, tag)),
            get_label_info=lambda image, tag: infos.get(tag, {}),
            image_file=lambda image: Path(image),
            siblings=lambda image: (),
            same_space=lambda image, other: other != "moved",
        ),
        doubtful_names="marked",
        progress=Progress(),
    )
    request = {"image_id": "mine", "label_from": settings.pop("label_from", "")}
    scan = prepare(Volume(image_of(TRUTH), RAS.affine))
    return Step2Task(services).run(scan, read_settings(settings), request, Stopwatch())


def names_are_the_readers(outcome: Outcome) -> bool:
    """Return whether every disc has the reader's name, and not the network's."""
    discs = [CODE_OF[name] for name in ONE_MORE]
    found = [int(np.bincount(outcome.labels[code == TRUTH]).argmax()) for code in discs]
    assert found in (discs, [CODE_OF[other] for other in ONE_MORE.values()])
    return found != discs


@pytest.mark.parametrize(("tag", "certain"), [("step1", True), ("final", True), ("original", False), ("draft", False)])
def test_the_names_of_a_reader_are_certain_and_those_of_a_network_are_not(
    corrected: Path, tag: str, certain: bool
) -> None:
    """A prediction that nobody had checked named step 2 as if a reader had corrected it."""
    outcome = step2({("mine", tag): corrected}, label_from="draft" if tag == "draft" else "")
    assert names_are_the_readers(outcome) is certain


@pytest.mark.parametrize("newer", ["step1", "final"])
def test_the_label_submitted_last_names_step_2(corrected: Path, tmp_path: Path, newer: str) -> None:
    """A step-1 map that was one level off still counted after its author had finished the image with the right
    names."""
    older = "step1" if newer == "final" else "final"
    write_volume(tmp_path / "older.nii.gz", to_wire(TRUTH), RAS)
    labels = {("mine", newer): corrected, ("mine", older): tmp_path / "older.nii.gz"}
    infos = {newer: {"correction": "20260102T000000.0Z-0"}, older: {"correction": "20260101T000000.0Z-f"}}
    assert names_are_the_readers(step2(labels, infos=infos))


def test_a_disc_the_reader_left_out_takes_its_turn(tmp_path: Path) -> None:
    codes = np.where(np.isin(TRUTH, DISCS), TRUTH, 0).astype(np.uint8)
    codes[codes == CODE_OF["L2-L3"]] = 0
    write_volume(tmp_path / "corrected.nii.gz", to_wire(codes), RAS)
    seen: list[np.ndarray] = []

    class Watched(CodeReader):
        def predict(self, channels: Any, *, soft: object = ()) -> Any:
            seen.append(channels)
            return super().predict(channels, soft=soft)

    step2({("mine", "step1"): tmp_path / "corrected.nii.gz"}, network=Watched)
    image, marks = seen[-1]
    marked = {int(code) for code in np.unique(np.rint(image[marks > 0] / GRAY_PER_CODE))}
    assert marked == {CODE_OF[name] for name in ("T12-L1", "L4-L5")}


def test_another_series_as_localizer_leaves_the_corrected_names(corrected: Path, tmp_path: Path) -> None:
    """With a localizer (even one that shows nothing of this scan), the names that a reader had corrected were
    dropped."""
    far = tmp_path / "far.nii.gz"
    write_volume(far, to_wire(TRUTH), Grid(RAS.shape, RAS.affine + np.eye(4, k=3) * 900))
    labels = {("mine", "step1"): corrected, ("other", "final"): far}
    assert names_are_the_readers(step2(labels, localizer="other"))


def test_a_localizer_from_before_the_patient_moved_is_refused(corrected: Path) -> None:
    """A localizer from before the patient moved named levels by their old position."""
    with pytest.raises(SettingError, match=r"'moved'.*frame of reference"):
        step2({("mine", "step1"): corrected, ("moved", "final"): corrected}, localizer="moved")


def test_the_stored_maps_know_who_named_step_1(corrected: Path, tmp_path: Path) -> None:
    painted = step2({("mine", "step1"): corrected}).output
    assert painted is not None
    assert painted.step1 is not None
    maps = MapStore(tmp_path)
    maps.keep("0" * 64, PredictionMaps.of("1", painted, RAS, {"step2": "a"}, {}, ()))
    stored = maps.latest("0" * 64, 2)
    assert stored is not None
    output = stored.output()
    assert output is not None
    assert output.step1 is not None
    assert output.step1.by_reader
    np.testing.assert_array_equal(output.step1.discs.codes, painted.step1.discs.codes)
