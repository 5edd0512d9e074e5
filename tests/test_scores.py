"""Tests of scores of images: their parts, when they are valid, and that losing them does no harm."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from totalspineseg_server.activelearning.scores import DOUBTFUL, WHOLE_MODEL, Parts, Score, Scores, parts_of
from totalspineseg_server.corrections.predictions import MapStore, PredictionRecord, PredictionStore

IN_USE = {"step1": "new-1", "step2": "new-2"}
NUMBERING = {"certainty": "counted", "probability": 0.96, "findings": [], "levels": [{"code": 44}, {"code": 45}]}


def numbering(**more: Any) -> dict[str, Any]:
    return {**NUMBERING, **more}


@pytest.mark.parametrize(
    ("report", "apart", "parts"),
    [
        (numbering(), {}, Parts(names=0.04, findings=0)),
        (numbering(certainty="doubtful", probability=0.2), {}, Parts(names=0.9, findings=0)),
        (numbering(certainty="doubtful", probability=1.0), {"steps": 1}, Parts(names=DOUBTFUL, findings=0, steps=1)),
        (numbering(findings=[{"kind": "gap"}] * 2), {"mirror": 0.1}, Parts(names=0.04, findings=0.36, mirror=0.1)),
        (numbering(findings=[{"kind": "image"}]), {}, Parts(names=0.04, findings=0)),
        (numbering(probability=None, certainty=None), {}, Parts(findings=0)),
        (None, {"steps": 0.25}, Parts(steps=0.25)),
    ],
    ids=["counted", "doubtful", "contradicted", "findings", "image", "iterative", "no report"],
)
def test_parts(report: Mapping[str, Any] | None, apart: Mapping[str, float], parts: Parts) -> None:
    found = parts_of(report, apart)
    assert {k: v if v is None else pytest.approx(v) for k, v in vars(parts).items()} == vars(found)


def test_one_number_of_all_parts() -> None:
    assert Parts().doubt is None
    assert Parts(steps=0.3).doubt == pytest.approx(0.15)
    assert Parts(steps=1, scale=1).doubt == pytest.approx(0.75), "of two answers one is right"
    parts = Parts(names=0.5, findings=0.2, steps=0.1, mirror=0.1, scale=0.5)
    assert parts.doubt == pytest.approx(1 - 0.5 * 0.8 * 0.95 * 0.9 * 0.75)
    assert parts.disagreement == pytest.approx(1 - 0.95 * 0.9 * 0.75), "doubt of names alone is no disagreement"
    assert Score("a", "1", "x", IN_USE, refused="no spine").doubt == 1
    assert Score("a", "1", "x", IN_USE, refused="image").doubt is None


def predicted(root: Path, id: str = "1", image: str = "a", **more: Any) -> PredictionRecord:
    record = PredictionRecord(
        **{
            "id": id,
            "image": image,
            "model": WHOLE_MODEL,
            "versions": IN_USE,
            "seconds": {},
            "settings": {"pins": []},
            "numbering": NUMBERING,
            "client": "ada",
            "image_sha256": "x",
            "disagreement": {"steps": 0.25},
            **more,
        }
    )
    PredictionStore(root).keep(record)
    return record


def scores(root: Path) -> Scores:
    return Scores(root, PredictionStore(root), MapStore(root))


def test_a_score_comes_from_the_newest_prediction_of_that_content_and_version(tmp_path: Path) -> None:
    predicted(tmp_path, "1")
    predicted(tmp_path, "2", numbering=numbering(probability=0.97))
    predicted(tmp_path, "3", versions={"step1": "old-1", "step2": "old-2"})
    predicted(tmp_path, "4", image_sha256="y")
    predicted(tmp_path, "5", settings={"pins": [{"code": 44, "point_mm": [0, 0, 0]}]})
    predicted(tmp_path, "6", model="totalspineseg_review")
    predicted(tmp_path, "7", numbering=numbering(probability=None))
    predicted(tmp_path, "8", numbering=numbering(levels=[{}]))
    found = scores(tmp_path).derive("a", "1-2", "x", IN_USE)
    assert found is not None
    assert (found.prediction, found.codes, found.parts.steps) == ("2", (44, 45), 0.25)
    assert found.doubt == pytest.approx(1 - 0.97 * 0.875)
    assert scores(tmp_path).derive("a", "1-2", "z", IN_USE) is None
    assert scores(tmp_path).derive("b", "1-2", "x", IN_USE) is None


def test_a_score_is_valid_until_the_image_changes(tmp_path: Path) -> None:
    store = scores(tmp_path)
    assert store.of("a", "1-2") is None
    stored = Score("a", "1-2", "x", IN_USE, "7", Parts(names=0.25, mirror=0.5), (44, 45))
    store.keep(stored)
    store.keep(Score("a/b", "3", "y", IN_USE, refused="image", message="It is cut off."))
    assert store.of("a", "1-2") == stored
    assert store.of("a", "1-3") is None, "another file of that name"
    assert store.of("a", "") is None
    other = store.of("a/b", "3")
    assert other is not None
    assert (other.refused, other.message) == ("image", "It is cut off.")
    assert len(list((tmp_path / "scores").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image": "a"}', '{"parts": 3}', "{"])
def test_a_damaged_score_does_not_count(tmp_path: Path, text: str) -> None:
    """A score that is deleted, cut off or from another version of the software is made again."""
    store = scores(tmp_path)
    store.keep(Score("a", "1", "x", IN_USE))
    (file,) = (tmp_path / "scores").iterdir()
    assert json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == "1"
    file.write_text(text, encoding="utf-8")
    assert store.of("a", "1") is None
