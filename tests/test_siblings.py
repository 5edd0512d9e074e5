"""Tests of the other series of an examination that count as evidence for the levels of a scan."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from block_spines import block_spine, classes_of
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid, Volume
from totalspineseg_server.infers.siblings import siblings_of
from totalspineseg_server.numbering.renumber import NamedMap

LABELS = block_spine("T11")
GRID = Grid((24, 48, LABELS.shape[2]), np.eye(4))
MADE_WITH = {"step1": "site-1-aa", "step2": "site-1-bb"}


@pytest.mark.parametrize(
    ("made_with", "in_use", "counts"),
    [
        (MADE_WITH, MADE_WITH, True),
        (MADE_WITH, {"step1": "site-2-cc", "step2": "site-2-dd"}, False),
        (MADE_WITH, {**MADE_WITH, "step2": "site-2-dd"}, False),
        (MADE_WITH, {"step1": "site-1-aa"}, True),
        ({"step2": "site-1-bb"}, MADE_WITH, True),
        ({"step2": "site-1-bb"}, {**MADE_WITH, "step2": "site-2-dd"}, False),
    ],
    ids=["the same", "both replaced", "step 2 replaced", "step 1 asked alone", "from a corrected step 1", "replaced"],
)
def test_a_prediction_of_weights_that_were_replaced_names_no_other_series(
    tmp_path: Path, made_with: Mapping[str, str], in_use: Mapping[str, str], counts: bool
) -> None:
    """Names that an old version had wrong, but with certainty, went on to name predictions of a better version."""
    image = tmp_path / "T1w.nii.gz"
    image.write_bytes(b"image")
    maps = MapStore(tmp_path / "history")
    painted = NamedMap(Volume(classes_of(LABELS, 2), GRID.affine), LABELS, 2)
    levels = {CODE_OF["L4"]: {CODE_OF["L4"]: 0.97}}
    maps.keep(sha256_of(image), PredictionMaps.of("p", painted, GRID, made_with, levels, ()))
    services: Any = SimpleNamespace(
        studies=SimpleNamespace(
            siblings=lambda image_id: ("T1w",),
            label_file=lambda image_id, tag: None,
            image_file=lambda image_id: image,
        ),
        predictions=SimpleNamespace(latest=lambda image_id: object()),
        maps=maps,
    )
    assert [sibling.source for sibling in siblings_of(services, "T2w", "", in_use)] == (["T1w"] if counts else [])
