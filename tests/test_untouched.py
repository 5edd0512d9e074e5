"""Tests that structures left as predicted are not used to compare weights of that line, and count little in a
training."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from block_spines import block_spine, classes_of
from phantom import DISC_MM, LUMBAR_TOP_DOWN, SHAPE, VERTEBRA_MM
from test_corrections_store import Scene
from tiny_models import write_model_folder
from totalspineseg_server.agreement import GROUPS, CaseScore, Left, score_case
from totalspineseg_server.anatomy import CANAL, CODE_OF, CORD, DISC_L5_S, NAME_OF, SACRUM, UNREVIEWED, Step1
from totalspineseg_server.corrections.comparison import compare, with_untouched
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.inbox import Inbox
from totalspineseg_server.corrections.predictions import MapStore, PredictionMaps, PredictionRecord, PredictionStore
from totalspineseg_server.corrections.receipts import Receipts, Sender, receipt_of
from totalspineseg_server.corrections.submission import Mapped, map_names
from totalspineseg_server.errors import LabelError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet.cases import prepare_case
from totalspineseg_server.nnunet.discovery import parts_of
from totalspineseg_server.nnunet.finetune_job import IDENTIFIER, Job, store_cases
from totalspineseg_server.nnunet.finetune_settings import NONE, FinetuneSettings
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.patches import UNTOUCHED_WEIGHT, Patches, Sample, region_weights, rim_of
from totalspineseg_server.nnunet.targets import REGIONS, region_shares
from totalspineseg_server.nnunet.training import deep_loss, region_loss
from totalspineseg_server.numbering.renumber import NamedMap
from totalspineseg_server.registry.model_store import STARTER
from totalspineseg_server.registry.records import VersionRecord, write_record
from totalspineseg_server.segments import Segment, Submission
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.material import is_of_line, judged_cases, line_of, site_material, start_of
from totalspineseg_server.training.verdict import GateReport, judge
from training_site import SPACING_MM, correct, make_site, tiny_settings

TRUTH = block_spine("T11")
GRID = Grid((24, 48, TRUTH.shape[2]), np.eye(4))
L3, L4, L5 = (CODE_OF[name] for name in ("L3", "L4", "L5"))
STORED = PredictionMaps.of(
    "p", NamedMap(Volume(classes_of(TRUTH, 2), GRID.affine), TRUTH, 2), GRID, {"step2": "starter-1"}, {}, ()
)
EVERY: Final = frozenset(int(code) for code in np.unique(TRUTH) if code)


# --- as it is submitted


def sent(labels: LabelArray, names: dict[str, str] | None = None) -> Submission:
    codes = [int(code) for code in np.unique(labels) if code]
    new = names or {}
    return Submission((labels,), GRID, tuple(Segment(new.get(NAME_OF[c], NAME_OF[c]), c) for c in codes))


def left_of(submission: Submission, accepted: object = None, unreviewed: tuple[int, ...] = ()) -> Mapped:
    mapped = replace(map_names(submission, GRID), unreviewed=unreviewed)
    return with_untouched(mapped, compare(submission, GRID, STORED), accepted)


def edited(share: float) -> LabelArray:
    """The prediction with so much of L3 erased."""
    changed = TRUTH.copy()
    places = np.argwhere(changed == L3)
    changed[tuple(places[: round(share * len(places))].T)] = 0
    return changed


@pytest.mark.parametrize(("share", "drawn_again"), [(0.0, False), (0.01, False), (0.1, True)])
def test_a_structure_that_was_drawn_again_differs_from_one_that_was_left(share: float, drawn_again: bool) -> None:
    found = left_of(sent(edited(share)))
    assert set(found.untouched) == EVERY - ({L3} if drawn_again else set())
    assert found.renamed == ()


def test_a_renamed_structure_keeps_the_outline_of_the_prediction() -> None:
    found = left_of(sent(TRUTH, {"L5": "L6"}))
    assert (set(found.untouched), found.renamed) == (EVERY - {L5}, (CODE_OF["L6"],))


@pytest.mark.parametrize(
    ("accepted", "counts"),
    [(None, set()), (["L3", "l4"], {L3, L4}), ("L3, L4", {L3, L4}), ("all", EVERY), (["All"], EVERY)],
    ids=str,
)
def test_what_a_reader_accepted_by_name_counts_as_drawn(accepted: object, counts: set[int]) -> None:
    assert set(left_of(sent(TRUTH), accepted).untouched) == EVERY - counts


@pytest.mark.parametrize("accepted", [["C3"], ["nose"], 7], ids=str)
def test_an_acceptance_of_what_is_not_there_is_refused(accepted: object) -> None:
    with pytest.raises(LabelError, match="'accepted'"):
        left_of(sent(TRUTH), accepted)


def test_what_nobody_checked_is_not_called_untouched() -> None:
    assert set(left_of(sent(TRUTH), unreviewed=(L4,)).untouched) == EVERY - {L4}


def test_nothing_counts_as_left_where_the_prediction_is_not_known() -> None:
    assert with_untouched(map_names(sent(TRUTH), GRID), None, None).untouched == ()


def inbox_of(root: Path) -> Inbox:
    """Takes labels of one image, whose prediction is kept."""
    predictions, maps = PredictionStore(root), MapStore(root)
    image = root / "img.nii.gz"
    write_volume(image, TRUTH.astype(np.float32), GRID)
    if predictions.find("img", "p") is None:
        predictions.keep(PredictionRecord("p", "img", "totalspineseg", dict(STORED.versions), {}, {}, None, "slicer"))
        maps.keep(sha256_of(image), replace(STORED, image="img"))
    scene = Scene(lambda _: image, lambda *_: None)
    return Inbox(Receipts(root), CorrectionStore(root), predictions, maps, scene, lambda *_: ())


def submitted(
    root: Path,
    labels: LabelArray,
    names: dict[str, str] | None = None,
    *,
    reader: str = "slicer",
    empty: tuple[str, ...] = (),
    **params: Any,
) -> Correction:
    """What the record says of a label whose prediction is kept; 3D Slicer names empty segments, too."""
    inbox, label = inbox_of(root), root / "label.nii.gz"
    write_volume(label, labels, GRID)
    segments = [{"name": segment.name, "idx": segment.value} for segment in sent(labels, names).segments]
    # Values 1, 2 .. in the order of the segments, as clients send them.
    values = np.zeros(256, np.uint8)
    values[[segment["idx"] for segment in segments]] = np.arange(1, len(segments) + 1)
    write_volume(label, values[labels], GRID)
    sender = Sender("ada", reader, "label.nii.gz")
    segments += [{"name": name, "idx": len(segments) + 1 + k} for k, name in enumerate(empty)]
    receipt = receipt_of("img", label, tag="final", sender=sender, params={"label_info": segments, **params})
    return inbox.submit(receipt, label)


def test_the_record_of_a_label_names_what_was_left(tmp_path: Path) -> None:
    record = submitted(tmp_path, edited(0.2), accepted=["L4"])
    assert set(record.untouched) == EVERY - {L3, L4}
    assert CorrectionStore(tmp_path).latest_accepted("img") == record
    assert (record.prediction or {})["versions"] == {"step2": "starter-1"}


@pytest.mark.parametrize("names", [None, {"L5": "L6"}], ids=["as predicted", "renamed"])
def test_an_empty_segment_accepts_what_was_left(tmp_path: Path, names: dict[str, str] | None) -> None:
    """3D Slicer sends only names and voxels, so its readers could not say that they had checked the rest."""
    record = submitted(tmp_path, TRUTH, names, empty=("C1", "Accepted"))
    assert (record.status, record.untouched, record.renamed) == ("accepted", (), ())


def test_a_painted_mark_of_acceptance_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="empty"):
        submitted(tmp_path, edited(0.2), {"L5": "accepted"})


def test_all_is_accepted_where_a_rename_moves_every_level(tmp_path: Path) -> None:
    """The word "all" was read as a structure's name once other levels had followed a rename."""
    record = submitted(tmp_path, TRUTH, {"L5": "L6"}, accepted="all")
    assert record.renumbered is not None
    assert (record.untouched, record.renamed) == ((), ())


# --- as it judges

FIRST_LEFT: Final = (CORD, SACRUM, CANAL)
"""Structures that readers redraw last."""


def spine(inset: int, *, shift: int = 0, codes: tuple[int, ...] | None = None) -> LabelArray:
    """A lumbar column whose structures are too thin by so many voxels, and too far in front."""
    out = np.zeros(SHAPE, np.uint8)
    top = SHAPE[2] - 4

    def box(x: tuple[int, int], y: tuple[int, int], z: tuple[int, int], code: int) -> None:
        if codes is None or code in codes:
            out[x[0] + inset : x[1] - inset, y[0] + inset + shift : y[1] - inset + shift, z[0] : z[1]] = code

    box((14, 34), (16, 34), (4, top), CANAL)
    box((19, 29), (20, 30), (110, top), CORD)
    z = top
    for disc, vertebra in LUMBAR_TOP_DOWN:
        for height, code in ((DISC_MM, disc), (VERTEBRA_MM, vertebra)):
            box((4, 44), (36, 66), (max(z - height, 2), z), code)
            z -= height
    return out


LEVELS_DRAWN: Final = tuple(code for pair in LUMBAR_TOP_DOWN for code in pair if code != SACRUM)
PARENT, RIGHT = spine(2), spine(0)
BETTER = spine(1)
POISONED = spine(2, shift=5)


def label_of(share: float, seed: int) -> tuple[LabelArray, frozenset[int]]:
    """A reader's label with such a share of structures as the parent drew them."""
    levels = [int(code) for code in np.random.default_rng(seed).permutation(LEVELS_DRAWN)]
    order = [*FIRST_LEFT, *levels]
    left = frozenset(order[: round(share * len(order))])
    label = RIGHT.copy()
    places = np.isin(RIGHT, list(left))
    label[places] = PARENT[places]
    return label, left


def verdict(candidate: LabelArray, share: float, *, marked: bool = True) -> GateReport:
    subjects, count = [], 0
    for seed in range(6):
        truth, left = label_of(share, seed)
        known = Left(left) if marked else Left()
        scores = [score_case(truth, map_, left=known) for map_ in (PARENT, candidate)]
        subjects.append(SubjectScores(f"s{seed}", (scores[0],), (scores[1],)))
        count += known.count
    same = CaseScore(dict.fromkeys(GROUPS, 0.9), 10, 10, 10)
    reference = [SubjectScores(f"r{k}", (same,), (same,)) for k in range(6)]
    return judge("starter", "run", reference=reference, holdout=subjects, untouched=count)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_better_candidate_passes_however_much_was_left(share: float) -> None:
    """Weights that drew everything better were refused, because the cord in all labels was that of the weights in
    use."""
    report = verdict(BETTER, share)
    assert report.publish, report.reason
    assert report.untouched == report.as_json()["untouched"] == round(share * 14) * 6
    assert (f"{report.untouched} structures" in report.reason) is (share > 0)
    assert GateReport.from_json(report.as_json()).untouched == report.untouched
    if share:
        assert not verdict(BETTER, share, marked=False).publish


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_poisoned_candidate_fails_however_much_was_left(share: float) -> None:
    report = verdict(POISONED, share)
    assert not report.publish
    assert "hold-out" in report.reason


def test_wrong_names_of_what_was_drawn_again_are_seen_beside_what_was_left() -> None:
    truth, left = label_of(0.5, 1)
    shifted = BETTER.copy()
    for upper, lower in zip(LEVELS_DRAWN[:-2], LEVELS_DRAWN[2:], strict=True):
        shifted[lower == BETTER] = upper
    right, wrong = (score_case(truth, map_, left=Left(left)) for map_ in (BETTER, shifted))
    assert right.levels == right.levels_right == len(set(LEVELS_DRAWN) - left)
    topmost = set(LEVELS_DRAWN[:2]) - left
    assert (wrong.levels, wrong.levels_right) == (right.levels, len(topmost))


def test_a_renamed_level_counts_for_names_only() -> None:
    truth = RIGHT.copy()
    score = score_case(truth, PARENT, left=Left(renamed=frozenset(LEVELS_DRAWN)))
    assert np.isnan(score.value("discs")) and np.isnan(score.value("vertebrae"))
    assert score.levels == len(LEVELS_DRAWN)
    assert score.value("cord") == score_case(truth, PARENT).value("cord")


def test_a_structure_drawn_too_wide_beside_its_truth_counts_against_nobody() -> None:
    """What was painted around a structure left as predicted counted against a candidate that drew it larger."""
    disc = spine(2, codes=(DISC_L5_S,))
    truth = np.where(RIGHT == DISC_L5_S, disc, RIGHT).astype(np.uint8)
    left = Left(frozenset({DISC_L5_S}))
    assert score_case(truth, RIGHT, left=left).value("discs") == 1.0
    assert score_case(truth, RIGHT).value("discs") < 0.99


def test_a_group_that_was_left_as_a_whole_does_not_count() -> None:
    truth, left = label_of(0.1, 0)
    assert left == {CORD}
    scores = [score_case(truth, map_, left=Left(left)) for map_ in (PARENT, RIGHT, np.zeros_like(RIGHT))]
    assert all(np.isnan(score.value("cord")) for score in scores)
    assert scores[1].value("canal") > scores[0].value("canal") > scores[2].value("canal") == 0.0


# --- whose line it is


def test_weights_are_of_the_line_of_what_they_descend_from(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=0)
    for name, parent in (("first", STARTER), ("second", "first"), ("other", STARTER)):
        with site.models.publish(name) as staging:
            parents = {"2": {"name": parent, "version": f"{parent}-aa"}}
            write_record(staging, VersionRecord(name, "2026", (2,), parents, {"2": f"{name}-{name[0]}1"}))
    line = line_of(site.models, {"second"})
    made_by = {
        "starter-0000@openvino-2026.4.1": True,
        "first-f1": True,
        "renamed-s1": True,
        "other-o1": False,
        "elsewhere-aa": True,
    }
    found = {version: is_of_line({"versions": {"step1": "x-y", "step2": version}}, line) for version in made_by}
    assert found == made_by
    assert not is_of_line(None, line)
    assert parts_of("trained-2026-1a2b3c4d@openvino-2026.4.1") == ("trained-2026", "1a2b3c4d")


@pytest.mark.parametrize(("made_by", "counts"), [("starter-1a2b3c4d", False), ("other-11112222", True)])
def test_the_material_marks_what_weights_of_the_line_predicted(tmp_path: Path, made_by: str, counts: bool) -> None:
    site = make_site(tmp_path, scans=0)
    stored = correct(site, tmp_path, "sub-0", 0, untouched=(L5,), made_by=made_by)
    assert stored.untouched == (L5,)
    (source,) = start_of(site, tiny_settings()).material.training
    left = Left() if counts else Left(frozenset({L5}))
    assert source.read().left == left
    assert source.provenance["untouched"] == ["L5"]
    (case,), _ = judged_cases((source,))
    assert case.left == left
    assert not (case.truth.data == UNREVIEWED).any()
    (from_scratch,) = site_material(site).training
    assert from_scratch.read().left == Left(), "networks that descend from nothing learn all of it"


# --- as it is taught

RIM: Final = (2, 2, 2)
CORE: Final = (slice(8, 16),) * 3
STEP1_ROWS: Final = list(REGIONS[1])


def patch_of(*boxes: tuple[Step1, tuple[slice, ...]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the classes of a patch of 24 voxels a side, its target, and logits that are right."""
    classes = torch.zeros((24, 24, 24), dtype=torch.uint8)
    for value, box in boxes:
        classes[box] = value.value
    target = region_shares(classes, 1)[None].float()
    return classes, target, target[:, :-1] * 20 - 10


def levels(logits: torch.Tensor) -> list[torch.Tensor]:
    """Return logits as a network does: at three resolutions, of which the coarsest does not count."""
    return [torch.nn.functional.avg_pool3d(logits, 2**k) for k in range(3)]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside a drawn one"])
@pytest.mark.parametrize("fault", ["missed", "too wide", "another name"])
def test_a_fault_in_what_was_left_moves_the_loss_by_a_tenth(fault: str, alone: bool) -> None:
    """Labels taught the parent's own cord as the truth. Alone in a patch, a Dice does not change with its weight."""
    disc = (Step1.DISC_L5_S, CORE)
    painted = (Step1.CANAL, (slice(0, 24), slice(0, 24), slice(20, 24)))
    classes, target, right = patch_of(disc, *([] if alone else [painted]))
    wrong = right.clone()
    if fault == "missed":
        wrong[(slice(None), slice(None), *CORE)] = -10
    elif fault == "too wide":
        wrong[0, STEP1_ROWS.index("disc"), 7:17, 7:17, 7:17] = 10
    else:
        wrong[(0, STEP1_ROWS.index("disc_C2_C3"), *CORE)] = 10
    weight = region_weights(classes, classes == Step1.DISC_L5_S.value, 1, RIM)[None].float()
    prices = [
        float(deep_loss(levels(wrong), target, used) - deep_loss(levels(right), target, used))
        for used in (weight, None)
    ]
    assert prices[1] > 0.01
    assert prices[0] / prices[1] == pytest.approx(UNTOUCHED_WEIGHT, rel=0.1)


def test_structures_drawn_beside_it_have_full_weight() -> None:
    """If a canal was drawn around an untouched cord, the border of the canal is known and that of the cord is not."""
    canal, cord = (slice(4, 20),) * 3, (slice(9, 15),) * 3
    far = (slice(0, 2), slice(0, 2), slice(0, 2))
    classes, target, right = patch_of((Step1.CANAL, canal), (Step1.CORD, cord), (Step1.VERTEBRAE, far))
    rows = {name: region_weights(classes, classes == Step1.CORD.value, 1, RIM)[k] for k, name in enumerate(STEP1_ROWS)}
    assert (rows["vertebrae"][cord] < 1).all()
    weighted = torch.nonzero(rows["cord"] < 1)
    assert (weighted.amin(0).tolist(), weighted.amax(0).tolist()) == ([7] * 3, [16] * 3), "with its rim"
    assert (rows["canal"][classes == Step1.CANAL.value] == 1).all()
    assert (rows["vertebrae"][classes != Step1.CORD.value] == 1).all()
    wrong = right.clone()
    wrong[(0, STEP1_ROWS.index("vertebrae"), *far)] = -10
    weight = torch.stack(list(rows.values()))[None].float()
    prices = [float(region_loss(wrong, target, used) - region_loss(right, target, used)) for used in (weight, None)]
    assert prices[0] == pytest.approx(prices[1], rel=1e-3)


def test_a_structure_in_doubt_does_not_shrink_because_it_was_left() -> None:
    """An untouched cord that counted a tenth, in surroundings that counted fully as background, became thinner."""
    classes, target, _ = patch_of((Step1.CORD, CORE))
    weight = region_weights(classes, classes == Step1.CORD.value, 1, RIM)[None].float()
    slopes = []
    for used in (weight, None):
        logits = torch.zeros_like(target[:, :-1]).requires_grad_()
        region_loss(logits, target, used).backward()
        gradient = logits.grad[0, STEP1_ROWS.index("cord")]  # type: ignore[index]
        # One voxel within the border against one outside.
        slopes.append(float(gradient[8, 12, 12] / gradient[7, 12, 12]))
    assert slopes[0] < 0, "one wants to be cord, the other one does not"
    assert slopes[0] == pytest.approx(slopes[1], rel=0.5)


def test_nothing_left_gives_the_very_same_loss() -> None:
    classes, target, right = patch_of((Step1.CANAL, CORE), (Step1.DISC, (slice(0, 5),) * 3))
    target[:, -1, :, :, 20:] = 1
    weight = region_weights(classes, torch.zeros_like(classes, dtype=torch.bool), 1, RIM)[None].float()
    results = []
    for used in (weight, None):
        logits = (right + torch.randn(right.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
        loss = deep_loss(levels(logits), target, used)
        loss.backward()
        results.append((loss.detach(), logits.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])  # type: ignore[arg-type]


def test_the_rim_is_as_wide_on_every_grid() -> None:
    assert rim_of((1.0, 1.5, 6.0)) == (3, 2, 1)


def learned(root: Path, step: int, untouched: tuple[int, ...], made_by: str) -> list[Sample]:
    """Return the patches of a fine-tuning of the starter weights on one label of a site."""
    site = make_site(root, scans=0)
    correct(site, root, "sub-0", 0, untouched=untouched, made_by=made_by)
    (source,) = start_of(site, tiny_settings()).material.lessons(step)
    folder = ModelFolder.open(write_model_folder(root / "model", step, spacing=SPACING_MM))
    work = root / "work"
    job = Job(folder, store_cases([prepare_case(source.read(), folder)], folder, work), work, FinetuneSettings())
    job.write()
    read = Job.read(job.folder)
    assert read.cases == job.cases
    patches = Patches(read.cases, job.folder / IDENTIFIER, folder, replay_share=0, strength=NONE)
    return [patches[number] for number in range(6)]


@pytest.mark.parametrize("step", [1, 2])
def test_patches_weigh_what_a_label_has_as_the_parent_predicted_it(tmp_path: Path, step: int) -> None:
    for patch in learned(tmp_path, step, tuple(sorted(CODE_OF.values())), "starter-1a2b3c4d"):
        within = (patch["target"][:-1] == 1).any(0)
        assert within.any()
        assert (patch["weight"][:, within] == torch.tensor(UNTOUCHED_WEIGHT).half()).all()
        assert patch["weight"].shape == patch["target"][:-1].shape


@pytest.mark.parametrize(
    ("untouched", "made_by"),
    [((), "starter-1a2b3c4d"), ((L5, CORD), "other-11112222")],
    ids=["all drawn or accepted", "predicted by weights of another line"],
)
def test_accepted_structures_have_full_weight(tmp_path: Path, untouched: tuple[int, ...], made_by: str) -> None:
    assert all((patch["weight"] == 1).all() for patch in learned(tmp_path, 2, untouched, made_by))
