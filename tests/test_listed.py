"""Tests of the structures in a reply: no empty rows in a client's scene, and nothing left of an earlier result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from totalspineseg_server.anatomy import BY_CODE, CANAL, CODE_OF, CORD, SACRUM, WIRE_LABELS
from totalspineseg_server.corrections.predictions import (
    MAX_PER_IMAGE,
    MapStore,
    PredictionMaps,
    PredictionRecord,
    PredictionStore,
)
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.infers.listed import as_listed, listed_names
from totalspineseg_server.infers.published import FullTask
from totalspineseg_server.infers.services import Services
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.segments import STEP1_WIRE_LABELS, from_names, to_wire

GRID = Grid((4, 4, 4), np.eye(4))
L4, L5, T12 = (CODE_OF[name] for name in ("L4", "L5", "T12"))


def block(*codes: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels.ravel()[: len(codes)] = codes
    return labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["L4", "sacrum", "L5-S", "L5"], ["canal", "cord", "sacrum", "L5-S", "L5", "L4"]),
        (["C3", "C1", "C2-C3", "C2"], ["canal", "cord", "C1", "C2", "C2-C3", "C3"]),
        ([], ["canal", "cord"]),
    ],
    ids=["with sacrum", "without", "nothing"],
)
def test_rows_begin_where_most_scans_begin(names: list[str], expected: list[str]) -> None:
    assert list(listed_names(WIRE_LABELS, [CODE_OF[name] for name in names])) == expected


def test_everything_can_be_listed() -> None:
    for labels in (WIRE_LABELS, STEP1_WIRE_LABELS):
        assert sorted(listed_names(labels, BY_CODE)) == sorted(labels)


def test_the_kth_name_has_value_k() -> None:
    codes = block(CANAL, CORD, L5, L4, SACRUM)
    names = listed_names(WIRE_LABELS, {L4, L5, SACRUM, T12})
    listed = as_listed(to_wire(codes), WIRE_LABELS, names)
    assert listed.ravel()[:5].tolist() == [1, 2, 4, 5, 3]
    np.testing.assert_array_equal(from_names(listed, {name: k for k, name in enumerate(names, start=1)}), codes)
    with pytest.raises(ValueError, match="other structures"):
        as_listed(to_wire(codes), WIRE_LABELS, ["canal", "cord", "L5"])


def record(number: int, codes: tuple[int, ...] | None) -> PredictionRecord:
    return PredictionRecord(f"2026-{number}", "img", "m", {}, {}, {}, None, "slicer", image_sha256="sha", codes=codes)


def task_at(root: Path, earlier: list[tuple[int, ...] | None]) -> FullTask:
    """A task with records of earlier results, of which only the latest maps are stored."""
    services = Services(Any, PredictionStore(root), MapStore(root), Any, lambda: "")  # type: ignore[arg-type]
    for number, codes in enumerate(earlier):
        services.predictions.keep(record(number, codes))
        painted = NamedMap(Volume(block(1), GRID.affine), block(*(codes or (T12,))), 2)
        services.maps.keep("sha", PredictionMaps.of(f"2026-{number}", painted, GRID, {}, {}, (), "img"))
    return FullTask(services)


def rows(root: Path, earlier: list[tuple[int, ...] | None]) -> set[str]:
    """The names that the next reply lists, whose map has L5."""
    return set(task_at(root, earlier).listed({WIRE_LABELS["L5"]}, record(9, (L5,)), is_recorded=True))


def test_later_results_list_no_structure_that_no_result_had(tmp_path: Path) -> None:
    """From the fourth *Run* on, 3D Slicer got 54 rows, nearly all of them empty."""
    runs = [(T12,), *[(L4, L5)] * (MAX_PER_IMAGE + 1)]
    assert rows(tmp_path, runs) == {"canal", "cord", "L5", "L4", "T12"}


def test_every_structure_is_listed_if_an_earlier_result_is_not_known(tmp_path: Path) -> None:
    """A client keeps what is not listed."""
    older: list[tuple[int, ...] | None] = [None] * MAX_PER_IMAGE
    assert rows(tmp_path / "stored", older) == {"canal", "cord", "L5", "T12"}
    assert rows(tmp_path / "gone", [*older, None]) >= set(WIRE_LABELS)
    task = task_at(tmp_path / "other", [(L4,)])
    assert set(task.listed({WIRE_LABELS["L5"]}, record(9, (L5,)), is_recorded=False)) >= set(WIRE_LABELS)
