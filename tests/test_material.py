"""Tests of choosing the labels to train on: finished ones, according to the tag of their author."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from totalspineseg_server.corrections.comparison import INCOMPLETE
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.errors import StorageError
from totalspineseg_server.nnunet.cases import Origin
from totalspineseg_server.training import material
from totalspineseg_server.training.holdout import read_split
from totalspineseg_server.training.material import site_material
from training_site import correct, make_site

FINAL, STEP1 = (2, "final"), (1, "step1")


def corrections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *submitted: tuple[Any, ...]) -> Any:
    """The material of one image with corrections (step, tag, further fields), the oldest first."""
    site = make_site(tmp_path, scans=0)
    one = correct(site, tmp_path, "sub-0", 0)
    listed = [
        Correction(**one.__dict__ | {"id": f"0{number}", "step": step, "tag": tag} | dict(*rest))
        for number, (step, tag, *rest) in enumerate(submitted)
    ]
    monkeypatch.setattr(CorrectionStore, "readable", lambda self, on_damaged: iter(listed))
    return site_material(site)


@pytest.mark.parametrize(
    ("submitted", "trained", "left_out"),
    [
        ([FINAL], [("00", (1, 2))], []),
        ([(2, "draft")], [], ["00"]),
        ([(2, "original")], [], ["00"]),
        ([(2, "step1")], [], ["00"]),
        ([FINAL, (2, "draft")], [("00", (1, 2))], ["01"]),
        ([(2, "draft"), FINAL], [("01", (1, 2))], []),
        ([STEP1], [("00", (1,))], []),
        ([(1, "final")], [("00", (1,))], []),
        ([(1, "draft")], [], ["00"]),
        ([(1, "draft"), STEP1], [("01", (1,))], []),
        ([STEP1, (1, "draft"), FINAL], [("02", (1, 2))], []),
        ([STEP1, (2, "draft")], [("00", (1,))], ["01"]),
        ([FINAL, STEP1], [("00", (2,)), ("01", (1,))], []),
        ([FINAL, STEP1, FINAL], [("02", (1, 2))], []),
        ([FINAL, (None, "final", {"status": "parked", "reason": "who knows"})], [("00", (1, 2))], []),
    ],
    ids=str,
)
def test_finished_labels_are_used_for_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    submitted: list[tuple[Any, ...]],
    trained: list[tuple[str, tuple[int, ...]]],
    left_out: list[str],
) -> None:
    """Work in progress was learned as if it were finished, and hid the finished label before it."""
    found = corrections(tmp_path, monkeypatch, *submitted)
    assert [(source.provenance["correction"], source.steps) for source in found.training] == trained
    assert [case.name for case in found.skipped] == [f"sub-0 ({number})" for number in left_out]
    for case in found.skipped:
        assert "'final'" in case.reason


def test_a_scan_whose_patient_cannot_be_read_now_is_left_out(tmp_path: Path) -> None:
    """It was counted as a patient of its own, for good, so that scans of one person could train and judge."""
    site = make_site(tmp_path, scans=2)

    def subject(image: str) -> str:
        if image == "sub-0":
            raise StorageError("The record of sub-0 is damaged.")
        return image

    material = site_material(replace(site, subject=subject))
    assert [(skipped.name[:5], skipped.reason) for skipped in material.skipped] == [
        ("sub-0", "The record of sub-0 is damaged.")
    ]
    assert "sub-0" not in read_split(site.holdout_file).role
    assert [source.provenance["image"] for source in material.training] == ["sub-1"]


def test_work_in_progress_does_not_decide_who_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrections(tmp_path, monkeypatch, (2, "draft"))
    assert "sub-0" not in (tmp_path / "studies" / ".totalspineseg" / "holdout.json").read_text(encoding="utf-8")


def test_an_incomplete_label_is_not_said_to_be_used_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log would say that the label is used, although nothing is learned from it."""
    odd = tuple({"kind": kind, "message": kind} for kind in (INCOMPLETE, "gap"))
    found = corrections(tmp_path, monkeypatch, (*FINAL, {"findings": odd}))
    assert [source.provenance["findings"] for source in found.training] == [["gap"]]


def test_a_result_accepted_unchanged_is_never_compared_on_and_holds_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who accepts everything would have made the model its own judge."""
    found = corrections(tmp_path, monkeypatch, (*FINAL, {"unchanged": True}))
    assert [source.origin for source in found.training] == [Origin.ACCEPTED]
    assert [source.origin for source in replace(found, known={1: frozenset({"00"})}).lessons(1)] == [Origin.ACCEPTED]
    assert "sub-0" not in (tmp_path / "studies" / ".totalspineseg" / "holdout.json").read_text(encoding="utf-8")
    monkeypatch.setattr(material, "hash_holds_out", lambda subject: True)
    held = corrections(tmp_path / "other", monkeypatch, (*FINAL, {"unchanged": True}))
    assert (held.training, held.holdout) == ((), ())
    assert "neither" in held.skipped[0].reason
