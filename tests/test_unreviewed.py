"""Tests of what a reader did not check: marked in a submission, stored, never learned from, never scored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from test_corrections_store import L4_L5, Desk
from tiny_models import write_model_folder
from totalspineseg_server.agreement import score_case
from totalspineseg_server.anatomy import (
    CANAL,
    CODE_OF,
    DISC_T11_T12,
    DISCS,
    LUMBAR,
    NAME_OF,
    SACRUM,
    THORACIC,
    UNREVIEWED,
    VERTEBRAE,
    WIRE_LABELS,
    column,
)
from totalspineseg_server.corrections.ids import RECORD_FILE
from totalspineseg_server.corrections.submission import Mapped, map_names, with_unreviewed
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource, prepare_case
from totalspineseg_server.nnunet.finetune_job import IDENTIFIER, dataset_folder, store_cases
from totalspineseg_server.nnunet.finetune_settings import NONE
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.odd_channel import marked_discs
from totalspineseg_server.nnunet.patches import Patches
from totalspineseg_server.nnunet.raw_dataset import RawOptions, write_raw_datasets
from totalspineseg_server.nnunet.targets import IGNORE_CLASS, step_target, thoracic_is_uneven
from totalspineseg_server.nnunet.training import region_loss
from totalspineseg_server.registry.model_store import dataset_name
from totalspineseg_server.segments import Segment, Submission, without_regions
from totalspineseg_server.training.material import judged_cases, site_material
from training_site import SPACING_MM, correct, make_site, tiny_scan

L4, L5 = CODE_OF["L4"], CODE_OF["L5"]
GRID = Grid((4, 4, 4), np.eye(4))


def submission(*names: str, layers: int = 1) -> Submission:
    """A slab for each name along x; with two layers, the last name covers half of everything in its own layer."""
    maps = [np.zeros(GRID.shape, np.uint8) for _ in range(layers)]
    segments = []
    for value, name in enumerate(names, start=1):
        layer = layers - 1 if value == len(names) else 0
        if layer:
            maps[layer][:, :2] = value
        else:
            maps[0][value - 1] = value
        segments.append(Segment(name, value, layer))
    return Submission(tuple(maps), GRID, tuple(segments))


# --- as it is sent


@pytest.mark.parametrize("layers", [1, 2], ids=["beside", "over the others"])
def test_a_segment_marks_a_region_nobody_reviewed(layers: int) -> None:
    mapped = map_names(submission("L4", "L5", "Unreviewed", layers=layers), GRID)
    region = mapped.codes == UNREVIEWED
    assert region.sum() == (16 if layers == 1 else 32)
    assert mapped.present == (L4, L5)
    assert (mapped.codes[0] == L4).sum() == (16 if layers == 1 else 8)
    displayed = without_regions(mapped.codes)
    assert not displayed[region].any()
    assert (mapped.codes == UNREVIEWED).any()


@pytest.mark.parametrize("names", [["L5"], "L5", " l5 ,", ["vertebrae_L5"]], ids=str)
def test_names_mark_structures_nobody_checked(names: object) -> None:
    mapped = map_names(submission("L4", "L5"), GRID)
    marked = with_unreviewed(mapped, names)
    assert marked.unreviewed == (L5,)
    assert (marked.codes == mapped.codes).all()
    assert mapped.unreviewed == ()


@pytest.mark.parametrize("names", [None, [], ""], ids=str)
def test_without_marks_everything_counts_as_reviewed(names: object) -> None:
    assert with_unreviewed(map_names(submission("L4"), GRID), names).unreviewed == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["L3"], "'L3'.*mark a region"),
        (["tumor"], "'tumor'"),
        (7, "a list of structure names"),
        ([7], "a list of structure names"),
        (["L4", "L5"], "unreviewed .L4, L5."),
    ],
    ids=["not there", "unknown", "a number", "numbers", "all"],
)
def test_marks_that_mean_nothing_are_refused(names: object, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        with_unreviewed(map_names(submission("L4", "L5"), GRID), names)


def test_a_label_that_is_all_unreviewed_is_refused() -> None:
    with pytest.raises(LabelError, match="label is empty"):
        map_names(submission("unreviewed"), GRID)


def test_the_record_keeps_it_and_older_records_are_read(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=1)
    (correction,) = site.corrections.all()
    file = site.corrections.path(correction) / RECORD_FILE
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert record.pop("unreviewed") == []
    file.write_text(json.dumps(record), encoding="utf-8")
    assert next(site.corrections.all()).unreviewed == ()
    file.write_text(json.dumps(record | {"unreviewed": [L5]}), encoding="utf-8")
    (found,) = site_material(site).training
    assert found.read().unreviewed == {L5}


def test_a_submission_keeps_the_mark_and_shows_the_structures(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    named = desk.submit({**L4_L5, "unreviewed": ["L5"]})
    assert desk.store.of_image("img")[-1].unreviewed == named.unreviewed == (L5,)
    assert WIRE_LABELS["L5"] in desk.published[-1][1]
    painted = desk.submit({"label_info": [{"name": "L4"}, {"name": "unreviewed"}]})
    assert painted.present == (L4,)
    assert set(np.unique(desk.store.codes(painted))) == {0, L4, UNREVIEWED}
    assert set(np.unique(desk.published[-1][1])) == {0, WIRE_LABELS["L4"]}
    with pytest.raises(LabelError, match=r"'L1'"):
        desk.submit({**L4_L5, "unreviewed": ["L1"]})
    assert [c.status for c in desk.store.of_image("img")] == ["accepted", "accepted", "parked"]


# --- as it is taught


@pytest.fixture(scope="module")
def scan() -> LabeledScan:
    return LabeledScan("case", "sub-1", Origin.CORRECTION, *tiny_scan(1), unreviewed=frozenset({L5}))


@pytest.mark.parametrize("step", [1, 2])
def test_patches_and_files_ignore_it_and_the_loss_heeds_that(tmp_path: Path, scan: LabeledScan, step: Any) -> None:
    """A level that nobody checked was learned as it was predicted."""
    folder = ModelFolder.open(write_model_folder(tmp_path / "model", step, spacing=SPACING_MM))
    case = prepare_case(scan, folder)
    stored, files = store_cases([case], folder, tmp_path), dataset_folder(folder, tmp_path) / IDENTIFIER
    patches = Patches(stored, files, folder, replay_share=0, strength=NONE)
    targets = (patches[number]["target"][None] for number in range(12))
    target = next(target for target in targets if target[:, -1].any())
    logits = torch.randn(1, len(folder.regions), *folder.patch)
    hidden = (target[:, -1:] > 0).expand_as(logits)
    flipped = torch.where(hidden, -logits * 3, logits)
    assert region_loss(flipped, target) == region_loss(logits, target)
    write_raw_datasets(
        [ScanSource("case", Origin.CORRECTION, lambda: scan)], tmp_path, RawOptions((step,)), on_skip=pytest.fail
    )
    target = read_labels(tmp_path / dataset_name(step) / "labelsTr" / "case.nii.gz").data
    assert (target == IGNORE_CLASS[step]).sum() > 1000


def column_map(*hidden: int, region: bool) -> Any:
    """The usual column with one voxel for each structure, some hidden under a region or missing."""
    spine = column()
    codes = np.array([*spine.vertebrae, *(d for d in spine.discs if d), SACRUM, CANAL], np.uint8)
    codes[np.isin(codes, hidden)] = UNREVIEWED if region else 0
    return codes


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_hidden_discs_do_not_shift_the_marks(count: int, swapped: bool) -> None:
    """Every other disc in view was marked, so that a hidden disc exchanged odd and even below it."""
    whole = set(marked_discs(column_map(region=False), swapped=swapped))
    hidden = DISCS[8 : 8 + count]
    assert set(marked_discs(column_map(*hidden, region=True), swapped=swapped)) == whole - set(hidden)


def test_a_hidden_vertebra_is_not_a_missing_one() -> None:
    t12, above = THORACIC[11], DISC_T11_T12
    assert thoracic_is_uneven(column_map(t12, above, region=False))
    assert not thoracic_is_uneven(column_map(t12, above, region=True))
    # Its body was not drawn; the disc above it shows that it is there.
    assert not thoracic_is_uneven(column_map(t12, region=False))


def test_named_structures_keep_the_parity_of_the_others() -> None:
    codes = column_map(region=False)
    t12 = THORACIC[11]
    whole, part = step_target(codes, 2), step_target(codes, 2, unreviewed={t12})
    assert (part[codes == t12] == IGNORE_CLASS[2]).all()
    assert (part[codes != t12] == whole[codes != t12]).all()


# --- as it is scored


def test_nothing_is_right_or_wrong_where_nobody_has_looked() -> None:
    truth = np.zeros((10, 10, 20), np.uint8)
    for place, code in enumerate(LUMBAR[:4]):
        truth[:, :, 4 * place : 4 * place + 4] = code
    predicted = truth.copy()
    predicted[:, :, 12:16] = VERTEBRAE[0]
    assert score_case(truth, predicted).levels_right == 3
    truth[:, :, 12:16] = UNREVIEWED
    score = score_case(truth, predicted)
    assert (score.levels_right, score.levels) == (3, 3)
    assert score.dice["vertebrae"] == 1


def test_the_holdout_is_judged_on_what_was_checked(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=0)
    correct(site, tmp_path, "sub-0", 0)
    (source,) = site_material(site).training
    scan = source.read()
    (whole,), _ = judged_cases((source,))
    (part,), _ = judged_cases((replace(source, read=lambda: replace(scan, unreviewed=frozenset({L5}))),))
    assert (whole.truth.data == L5).any()
    assert set(np.unique(part.truth.data)) == (set(np.unique(whole.truth.data)) - {L5}) | {UNREVIEWED}


def test_published_names_hold_no_mark() -> None:
    """Clients give the k-th published name to value k; a mark among the names would shift nothing, but appear in
    lists."""
    assert "unreviewed" not in WIRE_LABELS
    assert UNREVIEWED not in NAME_OF
    assert Mapped(np.zeros((1, 1, 1), np.uint8), 2, 0, ()).unreviewed == ()
