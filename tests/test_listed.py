"""Tests of the structures in a reply: no empty rows in a client's scene, and nothing left of an earlier result."""

from pathlib import Path

import numpy as np
import pytest

from totalspineseg_server.anatomy import BY_CODE, CANAL, CODE_OF, CORD, SACRUM, WIRE_LABELS
from totalspineseg_server.corrections.predictions import MAX_PER_IMAGE, MapStore, PredictionMaps
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.infers.listed import as_listed, listed_names
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


def test_structures_of_earlier_results_are_known_while_their_maps_are_stored(tmp_path: Path) -> None:
    """A client keeps what is not listed, so if earlier results are not known, every structure must be listed."""
    maps = MapStore(tmp_path)
    stored = [f"2026-{k}" for k in range(MAX_PER_IMAGE)]
    for number, prediction in enumerate(stored):
        painted = NamedMap(Volume(block(1), GRID.affine), block(L4, L5 if number else T12), 2)
        maps.keep("sha", PredictionMaps.of(prediction, painted, GRID, {}, {}, ()))
        if number == 0:
            assert maps.codes_before("sha", prediction) == frozenset()
        elif number == 1:
            assert maps.codes_before("sha", prediction) == {L4, T12}
    assert maps.codes_before("sha", stored[-1]) is None, "there may have been more"
    assert maps.codes_before("other", "p") == frozenset()
    damaged = MapStore(tmp_path / "damaged")
    damaged.keep("sha", PredictionMaps.of("p", painted, GRID, {}, {}, ()))
    next((tmp_path / "damaged").rglob("labels.nii.gz")).write_bytes(b"")
    assert damaged.codes_before("sha", "q") is None
