"""Tests of fine-tuning: targets, second channel, cases, batches, the loop, resuming, too little memory."""

import errno
import functools
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tiny_models import write_model_folder
from totalspineseg_server.anatomy import (
    DISCS,
    LUMBAR,
    PARITY,
    SACRUM,
    STEP1_FROM_CODE,
    STEP2_FROM_CODE,
    UNREVIEWED,
    Parity,
    Step2,
    column,
)
from totalspineseg_server.errors import GridError, LabelError, StorageError, TrainingError
from totalspineseg_server.geometry import Volume, image_to_iso, labels_to_iso
from totalspineseg_server.nnunet import training_log
from totalspineseg_server.nnunet.augmentation import build_augmentation
from totalspineseg_server.nnunet.cases import (
    LabeledScan,
    Origin,
    ScanSource,
    Skipped,
    TrainingCase,
    prepare_case,
    prepare_cases,
)
from totalspineseg_server.nnunet.checkpoint import load_checkpoint
from totalspineseg_server.nnunet.finetune import Finetuned, Stopped, fine_tune, trainer_of
from totalspineseg_server.nnunet.finetune_job import (
    IDENTIFIER,
    PLANS,
    Job,
    dataset_folder,
    store_cases,
    training_dataset,
    training_plans,
)
from totalspineseg_server.nnunet.finetune_settings import NONE, OPTIMIZERS, FinetuneSettings, Strength
from totalspineseg_server.nnunet.model_folder import CONFIGURATION, ModelFolder, write_candidate
from totalspineseg_server.nnunet.odd_channel import (
    EXACT_CHANNEL_SHARE,
    FOUND_CHANNEL_SHARE,
    disturbed_channel,
    found_discs,
    marked_discs,
)
from totalspineseg_server.nnunet.patches import Patches, Sample
from totalspineseg_server.nnunet.plugin import spine_finetuner
from totalspineseg_server.nnunet.plugin.spine_finetuner import SpineFinetuner
from totalspineseg_server.nnunet.raw_folder import NnunetFolders
from totalspineseg_server.nnunet.targets import (
    IGNORE_CLASS,
    REGIONS,
    exchanged,
    mark,
    present_codes,
    region_masks,
    region_shares,
    step_target,
)
from totalspineseg_server.nnunet.training import Teacher, deep_loss, learning_rate, region_hits, region_loss, usual_rate
from totalspineseg_server.nnunet.training_log import Progress, TrainingLog, dice_text
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.training.candidates import Candidates, Lesson
from totalspineseg_server.trust import UNMEASURED, Trust
from training_site import SPACING_MM, tiny_scan

pytestmark = pytest.mark.slow

ODD, EVEN = Step2.VERTEBRA_ODD.value, Step2.VERTEBRA_EVEN.value
TINY = FinetuneSettings(iterations=6, batch_size=2, warmup=2, epoch=3, validation_patches=1, device="cpu")


def tune(
    folder: ModelFolder, cases: Sequence[TrainingCase], work: Path, settings: FinetuneSettings = TINY, **hooks: Any
) -> Finetuned:
    """Train on cases in memory."""
    return fine_tune(folder, store_cases(cases, folder, work), work, settings, **hooks)


def patches_of(folder: ModelFolder, cases: Sequence[TrainingCase], work: Path, **options: Any) -> Patches:
    stored = store_cases(cases, folder, work)
    return Patches(stored, dataset_folder(folder, work) / IDENTIFIER, folder, **options)


def batch_of(patches: Patches, numbers: Iterable[int]) -> Sample:
    painted = [patches[number] for number in numbers]
    return {name: torch.stack([patch[name] for patch in painted]) for name in painted[0]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ModelFolder]:
    root = tmp_path_factory.mktemp("models")
    return {step: ModelFolder.open(write_model_folder(root / str(step), step, spacing=SPACING_MM)) for step in (1, 2)}


@pytest.fixture(scope="module")
def scan() -> LabeledScan:
    return LabeledScan("case-1", "sub-1", Origin.CORRECTION, *tiny_scan(1))


@pytest.fixture(scope="module")
def cases(folders: dict[int, ModelFolder], scan: LabeledScan) -> dict[int, TrainingCase]:
    return {step: prepare_case(scan, folder) for step, folder in folders.items()}


def test_a_trained_network_is_stored_once(folders: dict[int, ModelFolder], tmp_path: Path) -> None:
    """A network knows its tensors by several names, so that official weights of 0.6 GB became a version of 2.1 GB for
    each step."""
    parent = folders[1]
    weights = {name: value.clone() + 1 for name, value in parent.load_network().state_dict().items()}
    written = write_candidate(parent, weights, tmp_path, UNMEASURED) / "fold_0" / "checkpoint_final.pth"
    assert written.stat().st_size < 1.1 * parent.checkpoint.stat().st_size
    assert all(torch.equal(value, weights[name]) for name, value in load_checkpoint(written)["network_weights"].items())


def test_a_candidate_of_mixed_weights_keeps_what_its_corrections_measured(
    folders: dict[int, ModelFolder], tmp_path: Path
) -> None:
    """Only the candidate with all new weights kept the measured trust; a mixed one had that of its parent."""
    candidates, measured = Candidates(tmp_path, folders), Trust(mirror=True, scans=7)
    weights = folders[1].load_network().state_dict()
    candidates.keep(1, weights, Lesson(frozenset(), (), None), measured)
    assert [candidates.open(1, share).trust for share in (1, 0.5)] == [measured, measured]


# --- what is taught


@pytest.mark.parametrize(("step", "table"), [(1, STEP1_FROM_CODE), (2, STEP2_FROM_CODE)])
def test_targets_follow_the_training_map(step: Any, table: dict[int, int]) -> None:
    codes = np.array([*table, 0, UNREVIEWED], np.uint8)
    codes = codes[codes != column(13).vertebrae[19]]  # T13 shifts the lumbar spine; tested below
    expected = [{**table, 0: 0, UNREVIEWED: IGNORE_CLASS[step]}[int(code)] for code in codes]
    assert step_target(codes, step, uneven_thoracic=False).tolist() == expected


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("thoracic", [11, 12, 13])
@pytest.mark.parametrize("lumbar", [4, 5, 6])
def test_neighbors_differ_and_odd_is_below_a_marked_disc(thoracic: int, lumbar: int, swapped: bool) -> None:
    """In a column with 11 or 13 thoracic vertebrae, T and L at the junction had the same class."""
    spine = column(thoracic, lumbar)
    codes = np.array([*spine.vertebrae, *(d for d in spine.discs if d), SACRUM], np.uint8)
    classes = dict(zip(codes.tolist(), step_target(codes, 2, swapped=swapped).tolist(), strict=True))
    values = [classes[code] for code in spine.vertebrae]
    assert all({a, b} == {ODD, EVEN} for a, b in itertools.pairwise(values))
    marked = set(marked_discs(codes, swapped=swapped))
    for disc, below in zip(spine.discs, spine.vertebrae[1:], strict=False):
        if disc is not None:
            assert (disc in marked) == (classes[below] == ODD)


def test_the_two_variants_mark_complementary_discs() -> None:
    codes = np.array([d for d in column().discs[5:15] if d], np.uint8)
    plain, swapped = (marked_discs(codes, swapped=value) for value in (False, True))
    assert set(plain) | set(swapped) == set(codes.tolist())
    assert not set(plain) & set(swapped)
    below = {disc: v for disc, v in zip(column().discs, column().vertebrae[1:], strict=False) if disc}
    assert all(PARITY[below[disc]] is Parity.ODD for disc in plain)


@pytest.mark.parametrize("present", [[], [DISCS[-1]]], ids=["no disc", "the last disc alone"])
def test_marks_of_very_short_columns(present: list[int]) -> None:
    codes = np.array([0, *present], np.uint8)
    assert list(marked_discs(codes, swapped=False)) == present


def test_disturbed_channels_err_as_step_one_does(scan: LabeledScan) -> None:
    codes = scan.codes.data
    before = codes.copy()
    marked = marked_discs(codes, swapped=False)
    truth = mark(codes, marked) > 0
    rng = np.random.default_rng(3)
    channels = [disturbed_channel(codes, marked, rng) > 0 for _ in range(40)]
    dice = np.array([2 * (c & truth).sum() / (c.sum() + truth.sum()) for c in channels])
    assert np.array_equal(codes, before)
    assert 0.4 < dice.mean() < 0.97
    assert (dice == 1).any()
    assert (dice < 0.8).any()
    unmarked = [disturbed_channel(codes, (), rng).any() for _ in range(40)]
    assert 0 < sum(unmarked) < 16, "only now and then an unmarked disc is marked"


def test_regions_overlap_as_the_table_says() -> None:
    target = torch.tensor([[0, 1, 2, 6, 7, 8, 9, IGNORE_CLASS[1]]], dtype=torch.uint8)
    masks = region_masks(target, 1)[0].int().tolist()
    assert masks[0] == [0, 1, 1, 0, 0, 0, 0, 0]
    assert masks[1] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert masks[5] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert masks[7] == [0, 0, 0, 0, 0, 1, 1, 0]


# --- loss, scores, rate


def test_the_loss_falls_with_the_error_and_ignores_what_nobody_reviewed() -> None:
    classes = torch.zeros((4, 4, 4), dtype=torch.uint8)
    classes[:2] = 1
    classes[3] = IGNORE_CLASS[1]
    target = region_shares(classes, 1)[None]
    truth = target[:, :-1].float() * 20 - 10
    wrong = -truth
    assert region_loss(truth, target) < -0.99
    assert region_loss(wrong, target) > 5
    changed = truth.clone()
    changed[:, :, 3] *= -1
    assert region_loss(changed, target) == region_loss(truth, target)


def test_a_narrow_slab_teaches_as_much_as_a_patch_full_of_spine() -> None:
    """A correction beside a synthetic spine of four times the volume had a fifth of its share in a training step."""
    classes = torch.zeros((2, 8, 8, 8), dtype=torch.uint8)
    classes[0, :, :, :2], classes[0, :, :, 2:] = 1, IGNORE_CLASS[1]
    classes[1, 2:] = 1
    target = torch.stack([region_shares(each, 1) for each in classes])
    logits = torch.randn(2, len(REGIONS[1]), 8, 8, 8, generator=torch.Generator().manual_seed(2))
    alone = [region_loss(logits[k : k + 1], target[k : k + 1]) for k in (0, 1)]
    assert region_loss(logits, target) == pytest.approx(float(sum(alone)) / 2)


def test_nothing_is_learned_outside_the_image(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    """Most of a patch around a narrow slab lies outside the image; learned as background, it outweighed the slab."""
    case, shares = cases[1], cases[1].shares
    assert shares is not None
    narrow = replace(case, image=case.image[..., 2:5], codes=case.codes[..., 2:5], shares=shares[..., 2:5])
    patch = patches_of(folders[1], [narrow], tmp_path, replay_share=0, strength=NONE).validation(0)
    hidden = patch["target"][-1] > 0
    inside = (~hidden).any(dim=0).any(dim=0)
    assert int(inside.sum()) == 3
    assert not patch["data"][0][..., ~inside].any()


def test_shares_are_counted_and_a_voxel_hidden_in_part_does_not_count() -> None:
    classes = torch.zeros((4, 2, 2), dtype=torch.uint8)
    classes[0] = 1
    classes[2, 0, 0] = IGNORE_CLASS[1]
    shares = region_shares(classes, 1, (2, 2, 2))
    assert shares.shape == (10, 2, 1, 1)
    assert shares[0].flatten().tolist() == [0.5, 0]
    assert shares[-1].flatten().tolist() == [0, 0.125]
    logits = torch.zeros(1, 9, 2, 1, 1)
    changed = logits.clone()
    changed[:, :, 1] = 9
    assert region_loss(logits, shares[None]) == region_loss(changed, shares[None])
    changed[:, :, 0] = 9
    assert region_loss(logits, shares[None]) < region_loss(changed, shares[None])


def test_the_loss_is_least_at_the_true_share() -> None:
    """The usual Dice is best at 0 or 1 whatever the true share, so that thin structures came out thinner."""
    target = torch.full((1, 1, 4, 4, 4), 0.4)
    guesses = torch.linspace(0.05, 0.95, 19)
    losses = [float(region_loss(torch.full_like(target, float(torch.logit(g))), target)) for g in guesses]
    assert abs(float(guesses[int(np.argmin(losses))]) - 0.4) < 0.06


@pytest.mark.parametrize(
    ("step", "wrong", "right"), [(1, "disc_T12_L1", "disc_C2_C3"), (2, "vertebrae_E", "vertebrae_O")]
)
def test_a_structure_taken_for_another_costs_more_than_one_drawn_into_air(step: Any, wrong: str, right: str) -> None:
    """The networks labeled C2-C3 as T12-L1, too, and in a patch without T12-L1 this cost a thousandth."""
    names = list(REGIONS[step])
    classes = torch.zeros((16, 16, 16), dtype=torch.uint8)
    classes[:4, :4, :4] = REGIONS[step][right][0]
    target = region_shares(classes, step)[None]
    truth = target[:, :-1].float() * 10 - 5
    taken, painted = truth.clone(), truth.clone()
    taken[0, names.index(wrong), :4, :4, :4] = 5
    painted[0, names.index(wrong), 8:12, 8:12, 8:12] = 5
    assert region_loss(taken, target) - region_loss(truth, target) > 0.3
    assert region_loss(painted, target) - region_loss(truth, target) < 0.02


def test_absent_and_missed_regions_are_distinguished() -> None:
    """A log of zeros did not say whether a disc was missed or simply not there."""
    classes = torch.zeros((2, 2, 2), dtype=torch.uint8)
    classes[0] = 9
    classes[1, 0, 0] = IGNORE_CLASS[1]
    logits = torch.full((1, 9, 2, 2, 2), -1.0)
    logits[:, 7, 0] = 1
    logits[:, :, 1, 0, 0] = 1
    right, false, missed = (counts.numpy() for counts in region_hits(logits, region_shares(classes, 1)[None]))
    with np.errstate(invalid="ignore"):
        dice = dict(zip(REGIONS[1], (2 * right / (2 * right + false + missed)).tolist(), strict=True))
    assert dice["canal"] == 1.0
    assert dice["cord"] == 0.0
    assert math.isnan(dice["disc"])
    text = dice_text(dice)
    assert "canal 1.00" in text
    assert "cord 0.00 (missed)" in text
    assert "disc -" in text


def test_coarser_resolutions_learn_the_shares_of_their_voxels() -> None:
    classes = torch.zeros((4, 4, 4), dtype=torch.uint8)
    classes[:3] = 1
    target = region_shares(classes, 1)[None].float()
    truth = target[:, :-1] * 20 - 10
    halves = torch.nn.functional.avg_pool3d(target[:, :-1], 2).clamp(1e-4, 1 - 1e-4)
    right = [truth, torch.logit(halves), torch.zeros(1, 9, 1, 1, 1)]
    assert deep_loss(right, target) < deep_loss([truth, -torch.logit(halves), right[2]], target) - 0.5
    assert deep_loss(right, target) == deep_loss([*right[:2], right[2] + 9], target), "the coarsest is left out"


def test_the_usual_rate_follows_the_size_of_the_weights(folders: dict[int, ModelFolder]) -> None:
    """The rate for the small starter networks would have overwritten the small weights of a wide network."""
    network = folders[1].load_network()
    usual = usual_rate(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight /= 4
    assert usual_rate(network) == pytest.approx(usual / 4)
    assert 1e-5 < usual < 1e-2


def test_the_rate_warms_up_and_comes_down() -> None:
    rates = [learning_rate(i, total=100, warmup=10, peak=1.0) for i in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.02 <= rates[-1] < 0.03


# --- cases


def test_cases_have_the_plans_axes_spacing_and_normalization(scan: LabeledScan, cases: dict[int, TrainingCase]) -> None:
    shape = np.array(scan.image.data.shape) * scan.image.spacing
    assert cases[1].image.shape == tuple(round(n / 6) for n in shape[::-1])
    assert abs(cases[1].image.mean()) < 0.1
    present = set(np.unique(cases[1].codes))
    assert present <= set(np.unique(scan.codes.data))
    assert len(present) > 5
    heights = [np.argwhere(cases[1].codes == code)[:, 0].mean() for code in LUMBAR if code in present]
    assert heights == sorted(heights, reverse=True)


def test_on_a_coarse_grid_the_network_learns_how_much_of_a_voxel_a_structure_fills(
    scan: LabeledScan, cases: dict[int, TrainingCase]
) -> None:
    """With the nearest voxel a thin structure is all or nothing, and networks that learn from this draw it too thin."""
    shares = cases[1].shares
    assert shares is not None and shares.shape == (len(REGIONS[1]) + 1, *cases[1].codes.shape)
    voxel_ml = math.prod(SPACING_MM) / 1000
    for place, name in enumerate(REGIONS[1]):
        classes = step_target(scan.codes.data, 1)
        true_ml = np.isin(classes, REGIONS[1][name]).sum() * math.prod(scan.codes.spacing) / 1000
        assert shares[place].sum() / 255 * voxel_ml == pytest.approx(true_ml, rel=0.1, abs=0.3)
    assert ((shares > 0) & (shares < 255)).any()
    assert not shares[-1].any()


def test_exchanging_odd_and_even_of_shares_is_as_of_classes() -> None:
    codes = np.array([*column().vertebrae, *(d for d in column().discs if d), SACRUM, UNREVIEWED], np.uint8)
    plain, swapped = (
        region_shares(torch.from_numpy(step_target(codes, 2, swapped=value)[None, None]), 2) for value in (False, True)
    )
    assert torch.equal(plain[exchanged()], swapped)
    assert not torch.equal(plain, swapped)


def test_a_fine_grid_has_no_shares(tmp_path: Path, scan: LabeledScan) -> None:
    folder = ModelFolder.open(write_model_folder(tmp_path, 1, spacing=(1.0, 1.0, 1.0)))
    assert prepare_case(scan, folder).shares is None


class Shifted:
    """A step-1 network that finds every disc 2 mm too far back, and another one far from any disc."""

    version = "shifted"

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes

    def predict(self, channels: np.ndarray, *, soft: object = ()) -> Prediction:
        labels = np.roll(np.isin(self.codes, DISCS), -2, axis=1).astype(np.uint8)
        labels[0, 0, 0] = 1
        return Prediction(labels, {})


def test_found_discs_bear_the_names_of_the_true_ones(scan: LabeledScan) -> None:
    codes = labels_to_iso(scan.codes).data
    found = found_discs(image_to_iso(scan.image).data, codes, Shifted(codes))
    assert present_codes(found) == present_codes(codes) & set(DISCS)
    assert found[0, 0, 0] == 0
    shifted = np.roll(np.where(np.isin(codes, DISCS), codes, 0), -2, axis=1)
    assert (found == shifted).mean() > 0.99
    assert not found_discs(image_to_iso(scan.image).data, np.zeros_like(codes), Shifted(codes)).any()


def test_a_stated_share_of_second_channels_is_what_step_one_found(
    folders: dict[int, ModelFolder], scan: LabeledScan, tmp_path: Path
) -> None:
    """Step 2 learned from perfect discs alone, which it never sees at inference."""
    codes = labels_to_iso(scan.codes).data
    case = prepare_case(scan, folders[2], finder=Shifted(codes))
    assert case.found is not None and case.found.shape == case.codes.shape
    one_disc = np.where(case.codes == DISCS[-1], DISCS[-1], 0).astype(np.uint8)
    everywhere = replace(case, codes=one_disc, found=np.full_like(one_disc, DISCS[-1]))
    patches = patches_of(folders[2], [everywhere], tmp_path, replay_share=0, strength=NONE)
    painted = batch_of(patches, range(200))["data"][:, 1]
    share = float((painted.flatten(1).mean(1) > 0.2).float().mean())
    assert abs(share - (1 - EXACT_CHANNEL_SHARE) * FOUND_CHANNEL_SHARE) < 0.07


def test_a_scan_where_step_one_found_nothing_is_marked_all_the_same(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    """Step 2 had to tell odd from even without any marked disc."""
    codes = cases[2].codes
    disc = np.full_like(codes, DISCS[-1])
    case = replace(cases[2], codes=disc, found=np.zeros_like(codes))
    patches = patches_of(folders[2], [case], tmp_path, replay_share=0, strength=NONE, exact_share=0)
    channels = batch_of(patches, range(40))["data"][:, 1]
    assert (channels.flatten(1).mean(1) > 0).float().mean() > 0.65, "some lose their one disc as step 1 does, no more"


def test_step_two_sees_the_crop_around_the_spine(folders: dict[int, ModelFolder], scan: LabeledScan) -> None:
    image = Volume(np.pad(scan.image.data, 8, mode="reflect"), scan.image.affine)
    codes = Volume(np.pad(scan.codes.data, 8), scan.codes.affine)
    wide = replace(scan, image=image, codes=codes)
    cases = {step: prepare_case(wide, folder) for step, folder in folders.items()}
    assert np.prod(cases[2].image.shape) < np.prod(cases[1].image.shape)
    share = np.count_nonzero(cases[2].codes) / np.count_nonzero(cases[1].codes)
    assert share == pytest.approx(1, abs=0.15), "on another phase of a coarse grid"


def spoiled(scan: LabeledScan, name: str) -> LabeledScan:
    codes = scan.codes.data.copy()
    if name == "no code":
        codes[0, 0, 0] = 7
    elif name == "empty":
        codes[:] = 0
    elif name == "no disc":
        codes[np.isin(codes, DISCS)] = 0
    elif name == "another grid":
        codes = codes[1:]
    return replace(scan, codes=Volume(codes, scan.codes.affine))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no code", LabelError, r"the values \[7\]"),
        ("empty", LabelError, "cubic millimeters"),
        ("no disc", LabelError, "no disc"),
        ("another grid", GridError, "mm apart"),
    ],
)
def test_unusable_labels_say_why(
    scan: LabeledScan, folders: dict[int, ModelFolder], name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare_case(spoiled(scan, name), folders[2])


def test_a_label_in_another_index_order_teaches_the_same(scan: LabeledScan, folders: dict[int, ModelFolder]) -> None:
    """A label that another program had saved with flipped axes was left out of every training."""
    flipped = np.diag([-1.0, -1, 1, 1])
    flipped[:2, 3] = np.array(scan.codes.data.shape[:2]) - 1
    turned = Volume(scan.codes.data[::-1, ::-1], scan.codes.affine @ flipped)
    learned = prepare_case(replace(scan, codes=turned), folders[1])
    np.testing.assert_array_equal(learned.codes, prepare_case(scan, folders[1]).codes)


def test_one_bad_case_does_not_stop_the_others(scan: LabeledScan, folders: dict[int, ModelFolder]) -> None:
    def broken() -> LabeledScan:
        raise OSError(errno.EIO, "input/output error")

    sources = [
        ScanSource("bad disk", Origin.CORRECTION, broken),
        ScanSource("good", Origin.CORRECTION, lambda: scan),
        ScanSource("empty", Origin.CORRECTION, lambda: spoiled(scan, "empty")),
        ScanSource("step 1 only", Origin.CORRECTION, lambda: scan, steps=(1,)),
    ]
    skipped: list[Skipped] = []
    prepared = list(prepare_cases(sources, folders[2], on_skip=skipped.append))
    assert [case.name for case in prepared] == [scan.name]
    assert [case.name for case in skipped] == ["bad disk", "empty"]


# --- batches


def test_patches_are_the_same_for_the_same_number_only(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    patches = patches_of(folders[2], [cases[2]], tmp_path, replay_share=0.5, strength=Strength(), seed=4)
    before, state = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    first, again, other = (batch_of(patches, numbers) for numbers in ([3, 4], [3, 4], [5, 6]))
    assert first["data"].shape == (2, 2, 16, 16, 16)
    assert first["target"].shape == (2, len(REGIONS[2]) + 1, 16, 16, 16)
    assert torch.equal(first["data"], again["data"])
    assert torch.equal(first["target"], again["target"])
    assert not torch.equal(first["data"], other["data"])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_share_of_replay_is_as_requested(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    fresh = replace(cases[1], image=np.full_like(cases[1].image, 5))
    replay = replace(cases[1], image=np.full_like(cases[1].image, -5), origin=Origin.UNCORRECTED)
    patches = patches_of(folders[1], [fresh, replay], tmp_path, replay_share=0.3, strength=NONE)
    batch = batch_of(patches, range(200))
    replayed = batch["data"][:, 0].amin((1, 2, 3)) < 0
    assert replayed.float().reshape(-1, 10).sum(1).tolist() == [3] * 20
    assert torch.equal(batch["uncorrected"], replayed)
    assert not patches.validation(0)["uncorrected"]


def test_no_case_is_a_clear_error(folders: dict[int, ModelFolder], tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="usable case"):
        patches_of(folders[1], [], tmp_path, replay_share=0.5, strength=NONE)


def test_nnunets_own_trainer_takes_the_cases(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    """The cases of a fine-tuning can be used with stock nnU-Net and its tools."""
    for step, folder in folders.items():
        case = replace(cases[step], unreviewed=frozenset(LUMBAR))
        store_cases([case], folder, tmp_path / str(step))
        data = nnUNetDatasetBlosc2(str(dataset_folder(folder, tmp_path / str(step)) / IDENTIFIER))
        labels = PlansManager(training_plans(folder, 2)).get_label_manager(training_dataset(folder))
        loader = nnUNetDataLoader(data, 2, folder.patch, folder.patch, labels, 0.5)
        batch = loader.generate_train_batch()
        assert batch["data"].shape == (2, step, *folder.patch)
        classes = data.load_case("case-00000")[1][0]
        assert set(np.unique(classes)) <= set(range(IGNORE_CLASS[step] + 1))
        assert (classes == IGNORE_CLASS[step]).any()


def test_variation_keeps_shape_and_invents_no_code(cases: dict[int, TrainingCase]) -> None:
    everything = Strength(1, 1, 1, 1, 1, 1, 1)
    vary = build_augmentation((16, 16, 16), x_axis=2, strength=everything)
    image, codes = cases[1].image, cases[1].codes
    before = image.copy()
    varied = vary(image=torch.from_numpy(image.copy())[None], segmentation=torch.from_numpy(codes).short()[None])
    assert varied["image"].shape == varied["segmentation"].shape == (1, 16, 16, 16)
    assert torch.isfinite(varied["image"]).all()
    assert set(np.unique(varied["segmentation"])) <= set(np.unique(codes))
    assert np.array_equal(image, before)


# --- the loop


def test_training_starts_from_the_weights_head_included(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    """A fine-tuning that discards the head must first learn again what the network knew."""
    still = replace(TINY, iterations=1, learning_rate=1e-9, warmup=1)
    trained = tune(folders[1], [cases[1]], tmp_path, still)
    for name, value in folders[1].load_network().state_dict().items():
        assert torch.allclose(trained.weights[name], value, atol=1e-6), name


@pytest.mark.slow
def test_training_learns_its_case_and_logs_by_name(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    settings = replace(TINY, iterations=120, epoch=40, learning_rate=0.02, strength=NONE)
    reported: list[Progress] = []
    drawn_at: list[int] = []

    def tell(progress: Progress) -> None:
        reported.append(progress)
        if (tmp_path / "run" / "curves.png").exists():
            drawn_at.append(progress.iteration)

    trained = tune(folders[1], [cases[1]], tmp_path / "run", settings, on_progress=tell)
    events = [e for e in TrainingLog(tmp_path / "run").events() if "dice" in e]
    assert [e["iteration"] for e in events] == [40, 80, 120]
    assert events[-1]["loss"] < events[0]["loss"] - 0.1
    assert reported[-1].iteration == reported[-1].iterations == 120
    assert trained.best > 0
    assert set(events[0]["dice"]) == set(folders[1].regions)
    assert events[0]["dice"]["disc_C2_C3"] in (None, 0.0)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert drawn_at[0] == 40, "curves are there while it runs"
    assert "pseudo Dice: disc" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    written = write_candidate(folders[1], trained.weights, tmp_path / "model", UNMEASURED)
    reopened = ModelFolder.open(tmp_path / "model", step=1)
    assert reopened.path == written
    assert reopened.digest != folders[1].digest
    state = reopened.load_network().state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.weights.items())


def test_the_teacher_answers_for_uncorrected_patches_alone() -> None:
    channels = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(3, 3, 4, 4, 4, dtype=torch.float16)
    target[:, 0] = 1
    target[:, 2, 0] = 0.5  # hidden in part
    mixed = Teacher(torch.nn.Conv3d(1, 2, 1), 0.75).mix(channels, target, torch.tensor([False, True, False]))
    assert torch.equal(mixed[[0, 2]], target[[0, 2]])
    assert torch.equal(mixed[1, 2], target[1, 2])
    assert (mixed[1, 0] >= 0.25).all()
    assert 0 < mixed[1, 1].max() <= 0.75
    assert torch.equal(target[:, 0], torch.ones_like(target[:, 0])), "the batch itself was changed"
    assert not mixed.requires_grad


def test_a_faint_doubt_of_the_teacher_is_not_a_structure_in_view() -> None:
    """With 0.7 of the parent's answer in every voxel, all regions counted as in view, and every voxel as part of a
    structure."""
    truth = torch.zeros(1, len(REGIONS[1]) + 1, 8, 8, 8)
    truth[:, 0, :2] = 1
    doubt = truth.clone()
    doubt[:, :-1] = 0.98 * truth[:, :-1] + 0.01
    right = torch.logit(truth[:, :-1].clamp(1e-4, 0.99))
    assert float(region_loss(right, doubt)) == pytest.approx(float(region_loss(right, truth)), abs=0.3)
    wrong = right.clone()
    wrong[:, 1, :2] = 5.0  # a landmark that is not there
    price, dear = (float(region_loss(wrong, target) - region_loss(right, target)) for target in (doubt, truth))
    assert price > 0.8 * dear


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_training_keeps_to_what_its_parent_answered_on_uncorrected_scans(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    settings = replace(TINY, iterations=30, epoch=30, learning_rate=0.01, strength=NONE)

    def moved(origin: Origin, share: float) -> float:
        work = tmp_path / f"{origin.value}{share}"
        case = replace(cases[1], origin=origin)
        network = folders[1].load_network()
        before = network(image := torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)))
        network.load_state_dict(tune(folders[1], [case], work, replace(settings, teacher_share=share)).weights)
        return float((network(image) - before).abs().mean())

    learned, untaught = moved(Origin.UNCORRECTED, 1.0), moved(Origin.UNCORRECTED, 0.0)
    # Not nearer to nothing: the coarser heads of a random network have not learned to agree with the finest one.
    assert learned < 0.5 * untaught
    assert moved(Origin.CORRECTION, 1.0) == pytest.approx(untaught), "what a person corrected is the truth"


@pytest.mark.parametrize(
    ("has_it", "kind"), [(lambda: True, torch.bfloat16), (lambda: False, torch.float32), (None, torch.float32)]
)
def test_a_cpu_computes_in_half_precision_where_it_has_it(
    folders: dict[int, ModelFolder],
    cases: dict[int, TrainingCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_it: Any,
    kind: torch.dtype,
) -> None:
    """Emulated bfloat16 is slower, and a PyTorch that cannot tell must train, too."""
    if has_it is None:
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", has_it)
    seen = set()
    build = SpineFinetuner.build_network_architecture

    @functools.wraps(build)
    def hooked(*arguments: Any, **options: Any) -> torch.nn.Module:
        network = build(*arguments, **options)
        network.register_forward_hook(lambda _, __, logits: seen.update(level.dtype for level in logits))
        return network

    monkeypatch.setattr(SpineFinetuner, "build_network_architecture", hooked)
    weights = tune(folders[1], [cases[1]], tmp_path, replace(TINY, iterations=1)).weights
    assert seen == {kind}
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_training_ends_as_if_it_had_never_stopped(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, optimizer: str
) -> None:
    settings = replace(TINY, iterations=8, optimizer=optimizer)
    reported: list[int] = []
    straight = tune(
        folders[2], [cases[2]], tmp_path / "straight", settings, on_progress=lambda p: reported.append(p.iteration)
    )
    assert reported == list(range(1, 9)), "the last epoch is shorter"
    seen = iter([False, False, False, True])
    with pytest.raises(Stopped, match="iteration 4 of 8"):
        tune(folders[2], [cases[2]], tmp_path / "cut", settings, should_stop=lambda: next(seen))
    resumed = tune(folders[2], [cases[2]], tmp_path / "cut", settings)
    assert (straight.resumed_at, resumed.resumed_at) == (0, 4), "what it had done of the epoch was lost"
    assert all(torch.equal(resumed.weights[name], value) for name, value in straight.weights.items())
    assert tune(folders[2], [cases[2]], tmp_path / "cut", settings).resumed_at == 8, "killed before it was kept"


@pytest.mark.usefixtures("undrawn")
def test_a_killed_training_goes_on_within_an_epoch(
    folders: dict[int, ModelFolder],
    cases: dict[int, TrainingCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With a large network on a CPU, a kill lost an hour of work, because a state was stored only after 25
    iterations."""
    settings = replace(TINY, iterations=8, epoch=6)
    straight = tune(folders[1], [cases[1]], tmp_path / "straight", settings)

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.iteration == 5:
            raise Killed

    monkeypatch.setattr(spine_finetuner, "STATE_SECONDS", 0.0)
    with pytest.raises(Killed):
        tune(folders[1], [cases[1]], tmp_path / "cut", settings, on_progress=kill)
    capfd.readouterr()
    resumed = tune(folders[1], [cases[1]], tmp_path / "cut", settings)
    assert resumed.resumed_at == 5
    assert all(torch.equal(resumed.weights[name], value) for name, value in straight.weights.items())
    assert capfd.readouterr().out == "", "the output belongs to the caller"


def test_the_rate_of_nnunets_optimizer_falls_as_nnunets(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    once = SpineFinetuner._update

    def noted(trainer: SpineFinetuner, batch: Sample) -> float:
        assert isinstance(trainer.optimizer, torch.optim.SGD)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return once(trainer, batch)

    monkeypatch.setattr(SpineFinetuner, "_update", noted)
    tune(folders[1], [cases[1]], tmp_path, replace(TINY, optimizer="sgd"))
    assert rates == pytest.approx([0.01 * (1 - k / 6) ** 0.9 for k in range(6)])


@pytest.mark.usefixtures("undrawn")
def test_a_training_hardly_pulls_weights_to_zero(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a strong decay, each training made all weights smaller, whatever readers had corrected."""
    pulls: list[float] = []
    once = SpineFinetuner._update

    def noted(trainer: SpineFinetuner, batch: Sample) -> float:
        (group,) = trainer.optimizer.param_groups
        pulls.append(trainer.initial_lr * group["weight_decay"])
        return once(trainer, batch)

    monkeypatch.setattr(SpineFinetuner, "_update", noted)
    tune(folders[1], [cases[1]], tmp_path, replace(TINY, iterations=1, warmup=1, optimizer="adamw"))
    assert 0 < pulls[0] * FinetuneSettings().iterations < 0.01


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("change", ["settings", "case", "damage"])
def test_another_or_damaged_state_is_not_continued(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, change: str
) -> None:
    tune(folders[1], [cases[1]], tmp_path, TINY)
    settings, case = TINY, cases[1]
    if change == "settings":
        settings = replace(TINY, learning_rate=1e-5)
    elif change == "case":
        case = replace(case, name="another")
    else:
        (tmp_path / "checkpoint_final.pth").write_bytes(b"PK half a checkpoint")
    assert tune(folders[1], [case], tmp_path, settings).resumed_at == 0


def run_with_memory(folder: ModelFolder, case: TrainingCase, work: Path, patches: int) -> Finetuned:
    """Train on a device whose memory suffices for so many patches."""
    once = SpineFinetuner._passes

    def limited(trainer: SpineFinetuner, batch: Sample) -> float:
        if min(trainer.pass_size, len(batch["target"])) > patches:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return once(trainer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpineFinetuner, "_passes", limited)
        settings = replace(TINY, batch_size=4, iterations=1, warmup=1, strength=NONE, optimizer="sgd")
        return tune(folder, [case], work, settings)


@pytest.mark.usefixtures("undrawn")
def test_without_memory_the_passes_become_smaller_and_the_result_stays(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    roomy = run_with_memory(folders[1], cases[1], tmp_path / "roomy", 4)
    tight = run_with_memory(folders[1], cases[1], tmp_path / "tight", 1)
    assert (roomy.batch_size, tight.batch_size) == (4, 1)
    assert "passes of 1" in (tmp_path / "tight" / "log.txt").read_text(encoding="utf-8")
    resumed = run_with_memory(folders[1], cases[1], tmp_path / "tight", 1)
    assert (resumed.resumed_at, resumed.batch_size) == (1, 1)
    # The gradient is summed over the passes, each patch by itself: the step is the same but for rounding.
    before = folders[1].load_network().state_dict()
    moved = math.sqrt(sum(float((roomy.weights[name] - value).square().sum()) for name, value in before.items()))
    apart = math.sqrt(sum(float((roomy.weights[n] - value).square().sum()) for n, value in tight.weights.items()))
    assert apart < 0.05 * moved


def test_too_little_memory_for_one_patch_is_a_clear_stop(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="one patch of step 1"):
        run_with_memory(folders[1], cases[1], tmp_path, 0)


def test_nnunets_command_continues_a_training_and_we_go_on(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path
) -> None:
    """With ``-num_gpus``, nnU-Net's command trains on several GPUs whatever it can train on one."""
    settings = replace(TINY, iterations=2, epoch=1)
    ours = tune(folders[1], [cases[1]], tmp_path / "ours", settings)
    work = tmp_path / "nnunet"
    with pytest.raises(Stopped):
        tune(folders[1], [cases[1]], work, settings, should_stop=lambda: True)
    place, app = dataset_folder(folders[1], work), Path(spine_finetuner.__file__).parents[3]
    environment = os.environ | NnunetFolders(place.parent, place.parent, place.parent).environment()
    environment |= {"nnUNet_extTrainer": str(app / "totalspineseg_server/nnunet/plugin"), "PYTHONPATH": str(app)}
    words = [place.name, CONFIGURATION, "all", "-p", PLANS, "-tr", "SpineFinetuner", "-device", "cpu", "--c"]
    command = [sys.executable, "-m", "nnunetv2.run.run_training", *words]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    assert "resumed at iteration 1" in (work / "log.txt").read_text(encoding="utf-8")
    theirs = tune(folders[1], [cases[1]], work, settings)
    assert theirs.resumed_at == 2
    for name, value in ours.weights.items():
        assert torch.allclose(theirs.weights[name], value, atol=1e-2), name


def test_several_processes_share_each_batch(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[SpineFinetuner] = []
    monkeypatch.setattr(SpineFinetuner, "run_training", lambda trainer: trainers.append(trainer))
    monkeypatch.setattr(SpineFinetuner, "best", 0.0)
    with pytest.raises(AttributeError, match="state_dict"):  # no network was built
        tune(folders[1], [cases[1]], tmp_path, replace(TINY, batch_size=5))
    (trainer,) = trainers
    alone = [list(numbers) for numbers in trainer._numbers()]
    assert alone == [list(range(5 * k, 5 * k + 5)) for k in range(6)]
    trainer.is_ddp = True
    monkeypatch.setattr(spine_finetuner.dist, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(spine_finetuner.dist, "get_rank", lambda rank=rank: rank)
        parts.append([list(numbers) for numbers in trainer._numbers()])
    assert [first + second for first, second in zip(*parts, strict=True)] == alone
    assert {len(numbers) for part in parts for numbers in part} == {2, 3}


def _rank(rank: int, folder: Path, job: Path) -> None:
    """Run one of two processes of nnU-Net's distributed mode on a CPU, in place of a GPU."""
    torch.set_num_threads(1)
    os.environ |= {"nnUNet_preprocessed": str(job.parent), "nnUNet_results": str(job.parent)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    nnUNetTrainer.DDP = lambda network, device_ids: torch.nn.parallel.DistributedDataParallel(network)
    trainer = trainer_of(Job.read(job))
    trainer.device, trainer.half = torch.device("cpu"), False
    trainer.run_training()
    torch.save(trainer.network.module.state_dict(), folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("undrawn")
def test_two_processes_train_what_one_does(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is nnU-Net's distributed mode, which ``-num_gpus`` starts, with gloo in place of NCCL."""
    monkeypatch.setattr(spine_finetuner, "computes_in_half", lambda device: False)
    settings = replace(TINY, iterations=2, epoch=2, optimizer="sgd", learning_rate=0.01)
    alone = tune(folders[1], [cases[1]], tmp_path / "alone", settings).weights
    work = tmp_path / "both"
    job = Job(folders[1], store_cases([cases[1]], folders[1], work), work, settings)
    job.write()
    torch.multiprocessing.start_processes(_rank, (tmp_path, job.folder), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    before = folders[1].load_network().state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        moved = float((value - before[name]).abs().max())
        assert float((first[name] - value).abs().max()) <= 1e-3 * moved + 1e-6, name
    assert load_checkpoint(work / "checkpoint_final.pth")["current_epoch"] == 1


@pytest.mark.parametrize("where", ["start", "report"])
def test_too_little_memory_beside_the_passes_is_a_clear_stop(
    folders: dict[int, ModelFolder],
    cases: dict[int, TrainingCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if where == "start":
        monkeypatch.setattr(torch.nn.Module, "to", full)
    else:
        monkeypatch.setattr(spine_finetuner, "region_hits", full)
    with pytest.raises(TrainingError, match=r"memory .*step 1" if where == "start" else "a report"):
        tune(folders[1], [cases[1]], tmp_path, TINY)


def test_too_little_memory_for_the_optimizer_is_a_clear_stop(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: torch.optim.AdamW) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    with pytest.raises(TrainingError, match=r"optimizer .*step 1"):
        tune(folders[1], [cases[1]], tmp_path, TINY)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_training(
    folders: dict[int, ModelFolder], cases: dict[int, TrainingCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpineFinetuner, "loss_of", lambda _, logits, *__: logits[0].sum() * math.nan)
    before = folders[1].load_network().state_dict()
    with pytest.raises(TrainingError, match="finite"):
        tune(folders[1], [cases[1]], tmp_path, replace(TINY, iterations=50, warmup=1, batch_size=1))
    stored = load_checkpoint(tmp_path / "checkpoint_latest.pth")["network_weights"]
    assert all(torch.equal(stored[name], value) for name, value in before.items()), "nothing was moved by it"


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_keeps_the_state_before(
    folders: dict[int, ModelFolder],
    cases: dict[int, TrainingCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = replace(TINY, iterations=6)
    seen = iter([False, False, True])
    with pytest.raises(Stopped):
        tune(folders[1], [cases[1]], tmp_path, half, should_stop=lambda: next(seen))
    before = (tmp_path / "checkpoint_latest.pth").read_bytes()

    def full(content: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(StorageError, match="No space left"):
            tune(folders[1], [cases[1]], tmp_path, half)
    assert (tmp_path / "checkpoint_latest.pth").read_bytes() == before
    assert not list(tmp_path.glob(".partial-*"))
    assert tune(folders[1], [cases[1]], tmp_path, half).resumed_at == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"batch_size": 0},
        {"replay_share": 1},
        {"teacher_share": -1},
        {"learning_rate": 0},
        {"epoch": 0},
        {"optimizer": "adam"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FinetuneSettings(**wrong)


def test_one_report_is_seen_whatever_style_others_set(tmp_path: Path) -> None:
    """The picture of a run with one report was empty, and its letters were too large after nnU-Net's plotting."""
    from matplotlib import image, rcParams

    log = TrainingLog(tmp_path)
    log.say("first", iteration=25, loss=-0.5, dice={"disc": 0.5, "cord": 0.0, "canal": math.nan})
    pictures = []
    for size in (10, 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(rcParams, "font.size", size)
            log.draw()
            assert rcParams["font.size"] == size
        pictures.append(image.imread(tmp_path / "curves.png"))
    assert np.array_equal(*pictures)
    inside = pictures[0][10:300, 120:800, :3]
    assert (inside < 0.5).any()


def test_iterations_done_again_are_plotted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[Any] = []
    monkeypatch.setattr(training_log, "_draw_curves", lambda epochs, path: painted.extend(epochs))
    monkeypatch.setattr(training_log, "_write_events", lambda epochs, folder: None)
    log = TrainingLog(tmp_path)
    for iteration, loss in ((25, 3.0), (50, 2.0), (25, 1.0), (50, 0.5)):
        log.say("report", iteration=iteration, loss=loss, dice={"disc": 0.5})
    log.draw()
    assert [(event["iteration"], event["loss"]) for event in painted] == [(25, 1.0), (50, 0.5)]


def test_a_cut_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    """After kill -9 or a full disk, the first report of the continued training was missing from its curves."""
    log = TrainingLog(tmp_path)
    log.say("one", value=math.nan)
    for file, half in (("log.jsonl", b'{"text": "tw'), ("log.txt", b"2026-01-01 00:00:00 tw\xc3")):
        with (tmp_path / file).open("ab") as stream:
            stream.write(half)
    assert [event["text"] for event in log.events()] == ["one"]
    TrainingLog(tmp_path).say("three")
    log.say("four")
    assert [event["text"] for event in log.events()] == ["one", "three", "four"]
    assert [line[20:] for line in (tmp_path / "log.txt").read_bytes().splitlines()] == [
        b"one",
        b"tw\xc3",
        b"three",
        b"four",
    ]
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])["value"] is None
