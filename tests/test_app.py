"""Tests of the app as MONAI Label loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import HTTPException
from monailabel.utils.others import class_utils

from phantom import RAS, CodeReader, image_of, lumbar_codes
from totalspineseg_server.activelearning.rounds import SpineBatch
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.corrections.correction_store import is_safe_tag
from totalspineseg_server.errors import (
    BusyError,
    ImageError,
    MemoryShortageError,
    NoSpineError,
    SettingError,
    StorageError,
    SubmissionError,
    TooLargeError,
    UnknownImageError,
    WeightsError,
)
from totalspineseg_server.geometry import Volume
from totalspineseg_server.infers import http
from totalspineseg_server.infers.published import FullTask
from totalspineseg_server.infers.services import Services
from totalspineseg_server.infers.settings import read_pins, read_settings, result_tag
from totalspineseg_server.pipeline import prepare

APP_DIR = Path(__file__).resolve().parents[1] / "apps" / "totalspineseg"
MODELS = {"totalspineseg", "totalspineseg_step1", "totalspineseg_step2", "totalspineseg_review"}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app, loaded as MONAI Label loads it; ``totalspineseg_server`` stays the one that this test imported."""
    monkeypatch.setenv("MONAI_LABEL_RELOAD_APP_LIB", "false")
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    found = class_utils.get_class_of_subclass_from_file("main", str(APP_DIR / "main.py"), "MONAILabelApp")
    return found(app_dir=str(APP_DIR), studies=str(tmp_path / "studies"), conf={"weights": str(tmp_path / "none")})


def test_monai_label_discovers_every_model(app: Any) -> None:
    assert set(app._infers) == MODELS
    assert set(app.info()["models"]) == MODELS
    for model in MODELS:
        task = app._infers[model]
        assert list(task.labels.values()) == list(range(1, len(task.labels) + 1))
        assert task.get_path() is None
        assert task.info()["type"] == "segmentation"
    assert app.info()["labels"] == ["canal", "cord"], "3D Slicer makes an empty row of each"
    strategies = list(app.info()["strategies"])
    assert strategies == ["first", "random", "last", "doubtful_first", "surest_first", "most_to_learn"]
    assert set(app.info()["scoring"]) == {"doubt", "doubt_scale"}
    assert not app._auto_update_scoring, "the host would predict all images at each start and each next sample"
    assert "config" not in app.info()


def test_constructing_loads_no_network_and_touches_no_gpu(app: Any) -> None:
    """Training rebuilds the whole app in another process."""
    assert app._networks.loads == {}
    assert not torch.cuda.is_initialized()


def test_settings_clients_show_hold_texts_alone(app: Any) -> None:
    """A number among the choices crashed the panel of 3D Slicer."""
    for model in MODELS:
        for value in app.info()["models"][model]["config"].values():
            assert isinstance(value, str | bool) or all(isinstance(item, str) for item in value)


def test_without_weights_the_app_still_answers(app: Any) -> None:
    description = app.info()["description"]
    assert ("No weights" in description, ".." in description) == (True, False)


def test_a_result_that_cannot_be_stored_leaves_no_file(
    app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch on a full disk also filled the temporary folder."""
    made = tmp_path / "result.nrrd"

    def full(*_: object) -> None:
        raise StorageError("The disk is full. Free disk space.")

    def task(_: object) -> tuple[str, dict[str, Any]]:
        made.write_bytes(b"result")
        return str(made), {}

    task.part = ""  # type: ignore[attr-defined]
    monkeypatch.setattr(app._datastore, "image_file", lambda image: tmp_path)
    monkeypatch.setattr(app._datastore, "save_label", full)
    app._infers["totalspineseg"] = task
    request = {"model": "totalspineseg", "image": "a"}
    assert app.infer(request)["file"] == str(made)
    assert made.exists()
    with pytest.raises(StorageError, match="disk is full"):
        app.infer({**request, "save_label": True})
    assert not made.exists()


def test_a_tag_that_gets_too_long_is_refused_before_anything_is_computed() -> None:
    """A review was computed for minutes, and then failed because its tag was too long to be stored."""
    request = {"save_label": True, "label_tag": "a" * 60}
    assert result_tag(request, "") == "a" * 60
    for part, more in (("review", {}), ("", {"structures": "discs"}), ("", {"output_grid": "iso"})):
        with pytest.raises(SettingError, match="'original'"):
            result_tag({**request, "label_tag": "a" * 61, **more}, part)
    assert is_safe_tag(result_tag({**request, "label_tag": "a" * 57}, "review"))


def test_an_unknown_image_is_not_read_from_disk(app: Any) -> None:
    for image in (str(APP_DIR / "main.py"), "", None, 3):
        with pytest.raises(UnknownImageError):
            app.infer({"model": "totalspineseg", "image": image})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageError("x"), 422),
        (NoSpineError("x"), 422),
        (SettingError("x"), 422),
        (WeightsError("x"), 409),
        (StorageError("x"), 507),
        (BusyError("x"), 503),
        (MemoryShortageError("x"), 507),
        (UnknownImageError("x"), 404),
        (SubmissionError("x"), 500),
        (TooLargeError("x"), 413),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else str(v),
)
def test_statuses(error: Exception, status: int) -> None:
    assert http.status_of(error) == status


def test_defaults_are_complete() -> None:
    settings = read_settings({})
    assert settings.extension == ".nrrd"
    assert settings.numbering == "chain"
    assert len(settings.codes) == len(WIRE_LABELS)
    assert read_settings({"structures": [], "localizer": None, "output_grid": ""}) == settings


def test_pins_are_read() -> None:
    pins, _ = read_pins("L4 1 -2.5 3;  disc_L4_L5 4,5,6 ")
    assert [(p.code, p.point_mm) for p in pins] == [(44, (1, -2.5, 3)), (95, (4, 5, 6))]
    with pytest.raises(SettingError, match="limit 60"):
        read_pins("L4 1 2 3;" * 99)


class Studies:
    def list_images(self) -> list[str]:
        return ["a", "b", "c"]

    def get_unlabeled_images(self) -> list[str]:
        return ["c", "b"]


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        (HTTPException(422, "not a spine"), "not a spine"),
        (ConnectionError("10.0.0.7"), "ConnectionError"),
    ],
    ids=["image", "PACS"],
)
def test_one_bad_image_does_not_end_a_batch(tmp_path: Path, fault: Exception, reported: str) -> None:
    seen = []

    def infer(request: dict[str, Any]) -> dict[str, Any]:
        seen.append(request["image"])
        if request["image"] == "b":
            raise fault
        file = tmp_path / request["image"]
        file.touch()
        return {"label": request["image"], "file": str(file)}

    request = {"model": "m", "images": ["c", "a", "b", "../etc"]}
    results = SpineBatch(lambda _: None)(request, Studies(), infer)
    assert seen == ["b", "c", "a"], "what a reader may be offered first"
    assert list(results["b"]) == ["error"]
    assert reported in results["b"]["error"]
    assert "10.0.0.7" not in results["b"]["error"]
    assert not list(tmp_path.iterdir())
    assert list(SpineBatch(lambda _: None)({**request, "max_batch_size": 1}, Studies(), infer)) == ["b"]
    before = {"b": {"error": "no spine"}, "c": {"skipped": True}}
    again = SpineBatch(lambda one: before.get(one["image"]))(request, Studies(), infer)
    assert (again["b"], again["c"], seen[4:]) == (before["b"], before["c"], ["a"])


@pytest.mark.parametrize("images", [5, {"a": 1}, ["a", {}], [["a"]]], ids=str)
def test_a_batch_of_no_images_says_what_to_send(images: Any) -> None:
    """A batch for no images ended with a TypeError."""
    with pytest.raises(SettingError, match="'unlabeled' or a list"):
        SpineBatch(lambda _: None)({"model": "m", "images": images}, Studies(), lambda _: {})


class Versions:
    """Networks whose version changes while they are requested."""

    def __init__(self, *moments: tuple[str, str]) -> None:
        self._moments = list(moments)

    def get(self, step: int) -> CodeReader:
        pair = self._moments.pop(0) if len(self._moments) > 1 else self._moments[0]
        reader = CodeReader(step)
        reader.version = pair[step - 1]
        return reader


@pytest.mark.parametrize(
    ("moments", "pair"),
    [
        ([("old-1", "old-2")], ("old-1", "old-2")),
        ([("old-1", "old-2"), ("new-1", "new-2")], ("new-1", "new-2")),
        ([("old-1", "old-2"), ("old-1", "old-2"), ("new-1", "new-2")], ("new-1", "new-2")),
        ([("old-1", "old-2"), ("mid-1", "mid-2"), ("mid-1", "mid-2"), ("new-1", "new-2")], ("new-1", "new-2")),
        # Of a version of step 2 alone, the old step 1 is a part.
        ([("old-1", "old-2"), ("old-1", "new-2")], ("old-1", "new-2")),
    ],
    ids=["quiet", "between the two", "after both", "twice", "step 2 alone"],
)
def test_a_version_activated_between_the_steps_makes_no_mixed_pair(
    moments: list[tuple[str, str]], pair: tuple[str, str]
) -> None:
    """A request was answered by step 1 of the old version and step 2 of the new one, which had never been judged
    together."""
    services = Services(Versions(*moments), *[None] * 4)  # type: ignore[arg-type]
    scan = prepare(Volume(image_of(lumbar_codes()), RAS.affine))
    outcome = FullTask(services).run(scan, read_settings({}), {}, Stopwatch())
    assert outcome.versions == {"step1": pair[0], "step2": pair[1]}


def test_a_version_is_judged_beside_the_studies(app: Any, tmp_path: Path) -> None:
    """The judgment started from the page did not find the site's own scans."""
    models = ["--device", "auto", "--data-dir", str(app.models.model_dir)]
    assert app.judge_words("v2") == ["v2", *models], "nobody has submitted a label yet"
    (tmp_path / "studies" / ".totalspineseg").mkdir(parents=True, exist_ok=True)
    assert app.judge_words("v2") == ["v2", str(tmp_path / "studies"), *models]
