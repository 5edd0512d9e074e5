"""Tests that later records count as later, even if the clock was wrong for the earlier ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from phantom import RAS, CodeReader, image_of, lumbar_codes
from test_corrections_store import Desk
from totalspineseg_server.corrections import ids
from totalspineseg_server.corrections.predictions import MAX_PER_IMAGE, MapStore, PredictionStore
from totalspineseg_server.files import sha256_of
from totalspineseg_server.infers.published import FullTask
from totalspineseg_server.infers.services import Services
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.training import runs


@contextmanager
def a_day_ahead() -> Iterator[None]:
    """The clock is a day ahead in this block, and right again after it."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "datetime", Ahead)
        yield


def test_the_displayed_label_is_the_one_used_for_training(tmp_path: Path) -> None:
    """After the clock was set back by a day between two submissions, the second was shown, but the first was
    learned."""
    desk = Desk(tmp_path)
    with a_day_ahead():
        desk.submit()
    second = desk.submit()
    newest = desk.store.latest_accepted("img")
    assert newest is not None
    assert desk.published[-1][3]["correction"] == second.id == newest.id


@pytest.mark.slow
def test_a_correction_after_the_clock_was_set_back_is_of_the_prediction_on_the_screen(tmp_path: Path) -> None:
    """Corrections were compared with an older prediction, and the maps of the new one were removed at once."""
    image = tmp_path / "a.nii.gz"
    write_volume(image, image_of(lumbar_codes()), RAS)
    networks: Any = SimpleNamespace(get=CodeReader)
    alone: Any = SimpleNamespace(siblings=lambda _: (), series_folder=lambda _: None)
    services = Services(networks, PredictionStore(tmp_path), MapStore(tmp_path), alone, lambda: "")

    def predict() -> str:
        file, report = FullTask(services)({"image": str(image), "image_id": "a", "model": "totalspineseg"})
        Path(file).unlink()
        return str(report["prediction"])

    with a_day_ahead():
        for _ in range(MAX_PER_IMAGE):
            predict()
    last = predict()
    newest = services.predictions.latest("a")
    assert newest is not None
    assert newest.id == last
    stored = services.maps.latest(sha256_of(image), 2)
    assert stored is not None
    assert stored.prediction == last


def test_the_training_that_began_last_is_the_one_reported(tmp_path: Path) -> None:
    """The state of a training that was dated tomorrow was shown instead of today's."""
    with a_day_ahead():
        tomorrow = runs.begin(tmp_path, "a", {}, resume=True)
    today = runs.begin(tmp_path, "b", {}, resume=True)
    (tomorrow / runs.RUN_FILE).touch()
    assert runs.newest_run(tmp_path) == today
    assert runs.begin(tmp_path, "b", {}, resume=True) == today
