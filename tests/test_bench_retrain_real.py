"""Tests of `make bench-retrain-real`: the corrections from SPIDER's masks, and the report of the bench."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench_retrain_real as bench
import local_server
from retraining_bench import Answer, Case, Progress, ServerError, submit
from spider_cases import read_patients

from test_spider_cases import slab
from tiny_models import write_models
from totalspineseg_server.agreement import GROUPS
from totalspineseg_server.anatomy import CANAL, CORD, DISC_L5_S, LUMBAR, SACRUM, UNREVIEWED
from totalspineseg_server.corrections.submission import map_names, read_submission, with_unreviewed
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.registry.model_store import STARTER, ModelStore

__all__ = ["slab"]


@pytest.fixture(scope="module")
def truth(slab: tuple[Path, np.ndarray]) -> bench.Truth:
    return bench.truth_of(slab[0], "005")


def test_what_the_masks_do_not_show_is_no_background(slab: tuple[Path, np.ndarray], truth: bench.Truth) -> None:
    painted = slab[1]
    assert (truth.codes[painted == DISC_L5_S] == DISC_L5_S).mean() > 0.9
    assert not np.isin(truth.codes, (SACRUM, CORD)).any()
    sacrum = (painted == SACRUM) & (truth.codes != DISC_L5_S)
    assert (truth.codes[sacrum] == UNREVIEWED).mean() > 0.95
    assert (truth.codes[np.isin(painted, (CANAL, CORD))] == CANAL).mean() > 0.95


class Desk:
    """Keeps the label that a client sends."""

    def save_label(self, image: str, label: str, params: dict[str, Any]) -> None:
        self.image, self.params = image, params
        self.submission = read_submission(Path(label), params["label_info"])


def test_a_correction_is_read_as_it_was_sent(slab: tuple[Path, np.ndarray], truth: bench.Truth, tmp_path: Path) -> None:
    """The sacrum and the cord, which nobody had checked, were learned as background."""
    predicted: LabelArray = slab[1].copy()
    label, unchecked = bench.label_of(truth, predicted)
    desk = Desk()
    submit(desk, "sub-005", label, tmp_path, unreviewed=unchecked)  # type: ignore[arg-type]
    mapped = with_unreviewed(map_names(desk.submission, label.grid), desk.params["unreviewed"])
    assert (mapped.codes == label.data).all()
    assert mapped.unreviewed == (CORD,)
    assert (mapped.codes[truth.codes == UNREVIEWED] == UNREVIEWED).all()
    assert ((mapped.codes == CORD) <= (predicted == CORD)).all()
    cord = (predicted == CORD) & (truth.codes == CANAL)
    beside = ndimage.binary_dilation(cord) & ~cord & (truth.codes == CANAL)
    assert beside.any() and (mapped.codes[beside] == UNREVIEWED).all(), "a thin cord was taught to stay thin"
    assert (mapped.codes == CANAL).any()
    assert LUMBAR[2] in mapped.present
    assert not list(tmp_path.iterdir())
    nothing, unchecked = bench.label_of(truth, np.zeros_like(predicted))
    assert (unchecked, (nothing.data == CORD).any()) == ((), False)


def found(dice: float, levels_right: int = 5, *, flagged: bool = False) -> bench.Found:
    values = {name: None if name in ("sacrum", "cord") else dice for name in GROUPS}
    return bench.Found(values, 5, 5, levels_right, flagged, ("v-1",))


def test_a_prediction_is_scored_where_the_masks_say_something(truth: bench.Truth) -> None:
    codes = truth.codes.copy()
    codes[truth.codes == UNREVIEWED] = SACRUM
    codes[(truth.codes == CANAL) & (np.arange(codes.shape[2]) > 60)] = CORD
    case = Case("sub-005", truth.volume)
    seen = bench.look(Answer(codes, frozenset({"b", "a"}), "doubtful"), case)
    assert [seen.dice[name] for name in bench.REAL_GROUPS] == [1.0, 1.0, 1.0]
    assert (seen.right, seen.flagged, list(seen.versions)) == (True, True, ["a", "b"])
    assert bench.Found(**json.loads(json.dumps(bench.asdict(seen)))).score.value("discs") == 1.0
    nothing = bench.look(Answer(np.zeros_like(codes)), case)
    assert ([nothing.dice[name] for name in bench.REAL_GROUPS], nothing.right) == ([0.0, 0.0, 0.0], False)


GATE = {
    "publish": True,
    "sets": [
        {
            "measures": {
                **{name: {"active": 0.9, "candidate": 0.85} for name in GROUPS},
                "levels": {"active": 1.0, "candidate": 1.0},
            }
        }
    ],
}


@pytest.mark.parametrize(
    ("real", "old", "gate", "fell"),
    [
        ((0.7, 0.85), (0.9, 0.9), {}, []),
        ((0.7, 0.65), (0.9, 0.9), {}, ["mean Dice", "discs", "vertebrae", "canal"]),
        ((0.7, 0.85), (0.9, 0.88), {}, ["mean Dice of the old scanner"]),
        ((0.7, 0.85), (0.9, 0.9), GATE, ["mean Dice of the reference"]),
        ((0.7, 0.85), (0.9, 0.9), {**GATE, "publish": False}, []),
    ],
    ids=["better", "patients fell", "old scanner fell", "reference fell", "refused, so not served"],
)
def test_whatever_falls_is_named(
    real: tuple[float, float], old: tuple[float, float], gate: dict[str, Any], fell: list[str]
) -> None:
    def scans(when: int) -> dict[str, list[bench.Found]]:
        whole = bench.Found(dict.fromkeys(GROUPS, old[when]), 5, 5, 5, False, ())
        return {bench.PATIENTS: [found(real[when]), found(real[when])], bench.OLD: [whole]}

    table = bench.tables(scans(0), scans(1), {"gate": gate})
    named = bench.worse(table, bench.DECIDING)
    assert len(named) == len(fell)
    assert all(line.startswith(start) for line, start in zip(named, fell, strict=True))
    assert 1 - bench.error_left(table[bench.PATIENTS], bench.MEAN) == pytest.approx((real[1] - real[0]) / 0.3)


def test_wrong_names_without_a_warning_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    bench.print_names([found(1, 3), found(1, 3, flagged=True), found(1, flagged=True)], [found(1)])
    before, after = capsys.readouterr().out.splitlines()
    assert "1 of 3 patients (1 of these flagged); wrong and not flagged: 1" in before
    assert "1 of 1 patients (0 of these flagged); wrong and not flagged: 0" in after


def test_neither_split_predicts_whom_it_corrects() -> None:
    listed = {patient.number: patient for patient in read_patients()}
    for words in ([], ["--reverse"]):
        corrected, predicted = bench.split(bench.arguments_of(["slabs", *words]))
        assert (len(set(corrected)), len(set(predicted))) == (5, 10)
        assert not set(corrected) & set(predicted)
        assert all(listed[number].sure for number in (*corrected, *predicted))
    assert bench.arguments_of(["slabs"]).out != bench.arguments_of(["slabs", "--reverse"]).out


def test_a_repeated_command_does_what_is_left(tmp_path: Path) -> None:
    file = tmp_path / "new" / "progress.json"
    progress = Progress(file, {"weights": "starter"})
    assert progress.once("before sub-1", lambda: [1, 2]) == [1, 2]
    again = Progress(file, {"weights": "starter"})
    assert again.once("before sub-1", pytest.fail) == [1, 2]
    with pytest.raises(ServerError, match="--out"):
        Progress(file, {"weights": "other"})


@pytest.mark.parametrize(("people", "words"), [(False, "no training on people"), (True, "MAY HAVE LEARNED FROM 1 of")])
def test_weights_that_may_know_a_predicted_patient_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, people: bool, words: str
) -> None:
    """Patients from the training of the starter weights were reported as unknown to them."""
    store = ModelStore(tmp_path / "model")
    write_models(store.model_dir / STARTER)
    if people:
        folder = ModelFolder.open(store.named(STARTER).root, step=2).path
        (folder / "training.json").write_text(json.dumps({bench.TRAINED_ON: ["abc"]}), encoding="utf-8")
    monkeypatch.setattr(bench, "APP", tmp_path)
    assert words in bench.learned(STARTER, ("007", "018"))
    assert "MAY HAVE" not in bench.learned(STARTER, ("007", "034"))
    # Older starter weights, given by their path, were taken for those of this checkout.
    write_models(tmp_path / "older" / STARTER)
    assert "no training on people" in bench.learned(str(tmp_path / "older" / STARTER), ("007", "018"))


def test_a_bench_serves_what_is_known_of_the_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Demo and benchmarks used the starter weights without their measured trust, and so got other names."""
    source = ModelStore(local_server.APP / "model").named(STARTER)
    copied = local_server.own_app(tmp_path / "app", STARTER).named(STARTER)
    for step in (1, 2):
        versions = [ModelFolder.open(choice.root, step=step, name=STARTER).version for choice in (source, copied)]
        assert versions[0] == versions[1]


def test_a_missing_folder_of_slabs_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no folder"):
        bench.main()
    assert not (tmp_path / "out").exists()
