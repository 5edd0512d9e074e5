"""Tests that output of the networks is kept for a while, and that its size is limited."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from totalspineseg_server.corrections import predictions
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.numbering.renumber import NamedMap

GRID = Grid((4, 4, 4), np.eye(4))
MAP = np.zeros((4, 4, 4), dtype=np.uint8)


def stored(prediction: str) -> PredictionMaps:
    return PredictionMaps.of(prediction, NamedMap(Volume(MAP, np.eye(4)), MAP, 1), GRID, {"step1": "a"}, {}, ())


def test_only_maps_of_the_latest_images_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of every image that was ever predicted stayed on the disk for good."""
    monkeypatch.setattr(predictions, "MAX_IMAGES", 2)
    maps, times = MapStore(tmp_path), {"a": 30, "b": 10, "c": 20}
    began = time.time() - 100
    for image in "abc":
        maps.keep(image, stored("1"))
        os.utime(tmp_path / "maps" / image, (0, began + times[image]))
    maps.keep("d", stored("2"))
    assert [image for image in "abcd" if maps.latest(image, 1)] == ["a", "d"]


def test_the_latest_maps_of_an_image_stay(tmp_path: Path) -> None:
    maps = MapStore(tmp_path)
    for number in range(predictions.MAX_PER_IMAGE + 1):
        maps.keep("a", stored(str(number)))
    assert maps.of_prediction("a", "0") is None
    assert maps.of_prediction("a", "1") is not None


def test_each_copy_of_a_scan_keeps_the_maps_of_its_newest_result(tmp_path: Path) -> None:
    """Predictions for copies under other names removed the labels of the first ones' pictures."""
    maps, names = MapStore(tmp_path), [f"copy-{number}" for number in range(predictions.MAX_PER_IMAGE + 2)]
    for number, name in enumerate(("copy-0", *names, "", "")):
        maps.keep("a", replace(stored(f"{number:02}"), image=name))
    assert {one.image for one in maps.newest_first("a")} == {*names, ""}
    assert maps.of_prediction("a", "00") is None
    assert maps.of_prediction("a", "01") is not None
