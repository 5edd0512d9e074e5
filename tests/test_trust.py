"""Tests of how far networks are trusted: counted, stored beside the weights, and cautious if little is known."""

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import columns
import tiny_models
from known_figures import require_known
from totalspineseg_server.anatomy import CODE_OF, DISC_L5_S, DISC_T12_L1, DISCS, LANDMARK_DISCS, NAME_OF
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.nnunet import predictor
from totalspineseg_server.nnunet.calibration import SegmentedScan, count_failures, observe
from totalspineseg_server.nnunet.discovery import TRUST_FILE, read_trust, write_trust
from totalspineseg_server.nnunet.model_folder import ModelFolder, models_in
from totalspineseg_server.nnunet.model_zips import export_version, import_version
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.divide import divide
from totalspineseg_server.numbering.evidence import Localizer, gather, taper, tilt_deg
from totalspineseg_server.numbering.evidence_weights import CAREFUL
from totalspineseg_server.numbering.naming import name_map
from totalspineseg_server.numbering.report import report, sentence
from totalspineseg_server.prediction import Packed
from totalspineseg_server.registry.model_store import STARTER, ModelStore
from totalspineseg_server.transforms.canal import ruler_of
from totalspineseg_server.transforms.pieces import canal_mask, find_pieces, one_spine, with_plain_vertebrae
from totalspineseg_server.trust import UNMEASURED, Failures, LowerEnd, Seen, Trust, trust_from_json

STARTER_FOLDER = Path(__file__).parents[1] / "apps" / "totalspineseg" / "model" / "starter"
BAD_T12 = Trust((Seen(), Seen(), Seen(40, 4, 4, 24, 40, 40, 4, 24), Seen(40, 36, 2, 0, 40, 0)), scans=40)
"""T12-L1 lies one disc too low in three of five scans."""


def lumbar(seed: int = 3, step: int = 2) -> columns.Case:
    case = columns.built(seed, fov="lumbar", thoracic=12, lumbar=5, curvature=1.0, spacing=1.5)[0]
    return columns.classes(case, step, swapped=False)


def named(case: columns.Case, trust: Trust = UNMEASURED) -> Numbering:
    numbering = name_map(Volume(case.raw, case.affine), 2, trust=trust)[1]
    assert numbering is not None
    return numbering


def test_few_scans_stay_near_the_careful_values_and_many_do_not() -> None:
    place = LANDMARK_DISCS.index(DISC_T12_L1)
    few = Trust((Seen(), Seen(), Seen(2, 0, 0, 2, 2, 2, 0, 2), Seen()))
    many = Trust((Seen(), Seen(), Seen(200, 0, 0, 200, 200, 200, 0, 200), Seen()))
    assert few.chances(place, careful=CAREFUL).own > 0.7
    assert many.chances(place, careful=CAREFUL).own < 0.1
    assert many.chances(place, careful=CAREFUL).below > 0.9
    assert UNMEASURED.chances(place, careful=CAREFUL) == CAREFUL


def test_a_landmark_that_lies_elsewhere_by_habit_does_not_move_the_names() -> None:
    """The networks put T12-L1 one disc too low, and the chain model invented a sixth lumbar vertebra."""
    case = lumbar()
    below = DISCS[DISCS.index(DISC_T12_L1) + 1]
    case.raw[case.truth == DISC_T12_L1] = 1
    case.raw[case.truth == below] = 4
    careful, measured = named(case), named(case, BAD_T12)
    names = {level.code for level in measured.levels}
    assert below in names
    assert measured.usual > careful.usual or measured.as_usual > careful.as_usual
    assert measured.certainty == "counted"
    assert measured.counted_from == "up from the sacrum"
    assert any(finding.kind == "landmark_differs" for finding in measured.findings)
    printed = sentence(report(measured, (), affine=np.eye(4)))
    assert "six lumbar vertebrae (4%), four lumbar vertebrae (2%)" in printed


@pytest.mark.parametrize(
    ("facts", "has", "has_not"),
    [
        pytest.param({"probability": 0.61}, "probability of 61%", "landmark", id="a low chance is the reason"),
        pytest.param(
            {"probability": 0.61, "counted_only": True}, "probability of 61%", "landmark", id="low, and counted only"
        ),
        pytest.param({"probability": 0.996, "counted_only": True}, "landmark", "probability", id="counted only"),
        pytest.param({"probability": 0.996, "contradicted": True}, "contradicts", "probability", id="contradicted"),
    ],
)
def test_a_high_chance_is_not_given_as_the_reason_of_a_doubt(facts: dict[str, float], has: str, has_not: str) -> None:
    """Names were "doubtful (100% likely)", without a reason."""
    numbering = replace(named(lumbar()), **{"usual": 0.0, "counted_only": False, "findings": (), **facts})  # type: ignore[arg-type]
    printed = sentence(report(numbering, (), affine=np.eye(4)))
    assert numbering.certainty == "doubtful"
    assert (has in printed, has_not in printed) == (True, False)


def test_what_was_counted_is_counted() -> None:
    case = lumbar()
    below = DISCS[DISCS.index(DISC_T12_L1) + 1]
    case.raw[case.truth == DISC_T12_L1] = 1
    case.raw[case.truth == below] = 4
    trust = observe(2, case.raw, case.truth)
    moved, stored = (trust.landmarks[LANDMARK_DISCS.index(code)] for code in (DISC_T12_L1, DISC_L5_S))
    assert (moved.scans, moved.own, moved.below, moved.scans_below) == (1, 0, pytest.approx(1), 1)
    assert (stored.scans, stored.own, stored.scans_below) == (1, pytest.approx(1), 0)
    assert (trust + trust).landmarks[2].scans == 2
    assert trust.parity_levels > 3
    assert trust.parity_wrong == 0


def test_a_disc_that_nobody_labeled_counts_for_nothing() -> None:
    case = lumbar()
    trust = observe(2, case.raw, np.where(case.truth == DISC_T12_L1, 0, case.truth).astype(np.uint8))
    assert trust.landmarks[LANDMARK_DISCS.index(DISC_T12_L1)] == Seen()


@pytest.mark.parametrize("angle", [-20.0, 0.0, 35.0])
def test_the_angle_of_a_disc(angle: float) -> None:
    y, z = np.mgrid[-25:26, -25:26]
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    seen = (abs(y * cos - z * sin) < 17) & (abs(y * sin + z * cos) < 4)
    disc = np.repeat(seen[np.newaxis], 12, axis=0)
    assert tilt_deg(disc, (1, 1, 1)) == pytest.approx(angle, abs=2)
    assert tilt_deg(disc[:, 20:24], (1, 1, 1)) is None


def test_the_file_comes_back_and_damage_is_one_sentence(tmp_path: Path) -> None:
    end, failures = LowerEnd(9, 1, 2, 0, 3, 1, 1), Failures(9, 1, 0.4)
    trust = Trust(BAD_T12.landmarks, 10, 1, 0.75, True, 40, end, failures, Failures(1, 0, 0.5))
    write_trust(tmp_path, trust)
    assert read_trust(tmp_path) == trust
    content = json.loads((tmp_path / TRUST_FILE).read_text(encoding="utf-8"))
    earlier = {key: value for key, value in content.items() if key not in ("lower_end", "names")}
    assert trust_from_json(earlier, source="x") == Trust(BAD_T12.landmarks, 10, 1, 0.75, True, 40)
    content["landmarks"][NAME_OF[DISC_L5_S]]["own"] = 99
    with pytest.raises(WeightsError, match="calibrate"):
        trust_from_json(content, source="x")
    (tmp_path / TRUST_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match="calibrate"):
        read_trust(tmp_path)
    (tmp_path / TRUST_FILE).unlink()
    assert read_trust(tmp_path) == UNMEASURED


def test_the_starter_weights_are_measured_and_their_file_travels_in_the_zip(tmp_path: Path) -> None:
    models = models_in(STARTER_FOLDER)
    assert all(model.trust.mirror and model.trust.scans >= 10 for model in models.values())
    store = ModelStore(STARTER_FOLDER.parent)
    archive = export_version(store, STARTER, tmp_path / "starter.zip")
    with zipfile.ZipFile(archive) as content:
        assert sum(name.endswith(TRUST_FILE) for name in content.namelist()) == 2
    other = ModelStore(tmp_path / "other")
    name = import_version(other, archive, name="copy")
    assert {s: m.trust for s, m in models_in(other.named(name).root).items()} == {s: m.trust for s, m in models.items()}


def test_another_trust_is_another_version_and_the_mirror_is_averaged(tmp_path: Path) -> None:
    root = tiny_models.write_models(tmp_path)
    model = ModelFolder.open(root, step=1)
    before = model.version
    write_trust(model.path, Trust(mirror=True))
    again = ModelFolder.open(root, step=1)
    assert (again.digest, again.version != before) == (model.digest, True)
    image = np.random.default_rng(0).normal(size=(1, 20, 24, 28)).astype(np.float32)
    one, other = (
        WarmPredictor(again, device="cpu").predict(channels, soft=("canal",)).soft["canal"]
        for channels in (image, np.ascontiguousarray(image[:, ::-1]))
    )
    assert np.allclose(one, other[::-1], atol=1e-3)


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([[3, 3, -3], [-1, -1, -1]], [[3, 3, -3], [-1, -1, -1]], 0),
        ([[3, 3, -3], [-1, 2, -1]], [[9, -3, -3], [-1, 2, -1]], 1 / 5),
        ([[3, 3, -3], [-1, -1, -1]], [[-3, -3, 3], [-1, -1, -1]], 1),
        ([[-3, -3, -3], [-1, -1, -1]], [[-3, -3, -3], [-2, -2, -2]], 0),
    ],
    ids=["alike", "one voxel", "nothing alike", "both empty"],
)
def test_how_much_an_image_and_its_mirror_differ(one: Any, other: Any, difference: float) -> None:
    logits = [torch.tensor(values, dtype=torch.float32).reshape(2, 3, 1, 1) for values in (one, other)]
    assert predictor._difference(*logits) == pytest.approx(difference)


def test_the_difference_is_there_where_the_mirror_is_averaged(tmp_path: Path) -> None:
    model = ModelFolder.open(tiny_models.write_models(tmp_path), step=1)
    image = np.random.default_rng(0).normal(size=(1, 20, 24, 28)).astype(np.float32)
    alone, both, empty = (
        WarmPredictor(model, device="cpu", trust=Trust(mirror=mirror)).predict(channels).mirror_difference
        for mirror, channels in ((False, image), (True, image), (True, 0 * image))
    )
    assert (alone, empty) == (None, None)
    assert both is not None
    assert 0 <= both <= 1


def swallowed(case: columns.Case, *, drawn_disc: bool) -> columns.Case:
    """Draw L5 as the sacrum, and the disc below it as a network may: not at all, or inside the sacrum."""
    lumbar_disc, last_disc = CODE_OF["L4-L5"], CODE_OF["L5-S"]
    sacrum = case.raw[case.truth == CODE_OF["sacrum"]].max()
    case.raw[case.truth == CODE_OF["L5"]] = sacrum
    case.raw[case.truth == lumbar_disc] = 5
    if not drawn_disc:
        case.raw[case.truth == last_disc] = sacrum
    case.raw[case.truth == DISC_T12_L1] = 1
    return case


SEEN = Trust((Seen(),) * 3 + (Seen(40, 26, 6, 0, 40, 0),), scans=40, lower_end=LowerEnd(40, shifted=2))
"""L5-S lies too high in one of six scans, and L5 is drawn as the sacrum in one of twenty."""


@pytest.mark.parametrize("drawn_disc", [True, False])
def test_l5_drawn_as_the_sacrum_is_not_counted_up_from(drawn_disc: bool) -> None:
    """Every name was one level too low, and "counted up from the sacrum"."""
    case = swallowed(lumbar(), drawn_disc=drawn_disc)
    numbering = named(case, SEEN)
    # Where the disc below L5 was drawn, all names can be right.
    right = {level.code for level in numbering.levels} >= {CODE_OF["L3-L4"], CODE_OF["L4-L5"], CODE_OF["L5-S"]}
    assert numbering.certainty == "doubtful" or (right and drawn_disc)


def with_a_fragment(case: columns.Case, disc: np.ndarray) -> columns.Case:
    """Draw the front of a disc as L5-S, and the rest of it as sacrum."""
    case.raw[disc] = case.raw[case.truth == CODE_OF["sacrum"]].max()
    front = np.argwhere(disc)
    front = front[front[:, 1] > np.median(front[:, 1])]
    case.raw[tuple(front.T)] = 5
    return case


def test_the_sacrum_is_not_left_out_if_l5_is_drawn_as_a_part_of_it() -> None:
    """L5 and the sacrum were one piece around a part of L5-S: it got no name, and a piece of bowel was the sacrum."""
    case = swallowed(lumbar(), drawn_disc=True)
    case = with_a_fragment(case, case.truth == CODE_OF["L5-S"])
    case.raw[np.isin(case.truth, [CODE_OF["L4-L5"], DISC_T12_L1])] = 1
    labels, numbering = name_map(Volume(case.raw, case.affine), 2, trust=SEEN)
    assert numbering is not None
    for structure in ("L4-L5", "L5", "sacrum"):
        mine = labels[case.truth == CODE_OF[structure]]
        assert np.mean(mine == CODE_OF[structure]) > 0.6, structure
    assert not [finding for finding in numbering.findings if finding.voxels > 1000]


def test_a_vertebra_drawn_partly_as_sacrum_is_one_bone() -> None:
    """Its two parts were two bones: one of them had no name, or both were the sacrum and all names one level too
    low."""
    case = lumbar()
    l5 = case.truth == CODE_OF["L5"]
    heights = np.argwhere(l5)[:, 2]
    upper = l5 & (np.arange(l5.shape[2]) > np.median(heights))
    case.raw[upper] = case.raw[case.truth == CODE_OF["sacrum"]].max()
    case.raw[case.truth == CODE_OF["L4-L5"]] = case.raw[case.truth == CODE_OF["L5-S"]].max()
    labels, numbering = name_map(Volume(case.raw, case.affine), 2, trust=SEEN)
    assert numbering is not None
    for structure in ("L4", "L4-L5", "L5", "L5-S", "sacrum"):
        mine = labels[case.truth == CODE_OF[structure]]
        assert np.mean(mine == CODE_OF[structure]) > 0.8, structure
    assert "left_out" not in {finding.kind for finding in numbering.findings}


def test_a_remnant_of_the_disc_between_s1_and_s2_changes_no_name() -> None:
    """Most people have one, and networks draw it with the class of L5-S. The drawn sacrum hardly tapers, so a doubt is
    right."""
    case = lumbar()
    sacrum, above = case.truth == CODE_OF["sacrum"], np.argwhere(case.truth == CODE_OF["L5-S"])
    level = np.ptp(np.argwhere(case.truth == CODE_OF["L5"])[:, 2])
    heights = np.arange(sacrum.shape[2])
    before = named(case, SEEN)
    remnant = sacrum & (np.abs(heights - (above[:, 2].mean() - 0.7 * level)) < 2)
    after = named(with_a_fragment(case, remnant), SEEN)
    assert [level.code for level in after.levels] == [level.code for level in before.levels]
    assert after.certainty == "counted" or "below_l5_s" in {finding.kind for finding in after.findings}


def test_the_body_of_s1_tapers_and_a_lumbar_one_does_not() -> None:
    heights, away = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 30, 60)))
    assert taper(heights, away) == pytest.approx(1.0, abs=0.02)
    s1 = away < 30 - 15 * heights
    assert taper(heights[s1], away[s1]) == pytest.approx(1.45, abs=0.1)
    assert taper(heights[:50], away[:50]) is None, "a fragment has no shape"


def test_a_class_that_moved_is_one_event() -> None:
    """A T12-L1 one disc too high counted twice, as lost here and as found there, and L6 was invented."""
    place = LANDMARK_DISCS.index(DISC_T12_L1)
    both = Trust((Seen(), Seen(), Seen(100, 80, 20, 0, 100, 100, 20, 0), Seen())).chances(place, careful=CAREFUL)
    assert both.beside(above=True, own=0) > 0.8, "the class was lost on its own disc, so it is on this one"
    assert both.beside(above=True, own=1) < 0.1, "where its own disc has the class, this one rarely has it"
    assert (1 - both.own) * both.beside(above=True, own=0) == pytest.approx(both.above_alone)


def test_names_are_less_probable_by_what_the_network_gets_wrong_unnoticed() -> None:
    """Of levels given 0.9 and more, 86 in 100 were right: whole scans were wrong, whatever the evidence said."""
    known, failing = (named(lumbar(), Trust(uncontradicted=Failures(40, wrong, 1))) for wrong in (1, 12))
    assert named(lumbar()).probability == pytest.approx(known.probability)
    assert failing.probability == pytest.approx(known.probability * (1 - 11 / 52))
    assert failing.levels[0].probability < known.levels[0].probability
    assert (known.certainty, failing.certainty) == (named(lumbar()).certainty, "doubtful")


def test_names_that_something_contradicts_are_improbable_until_measured_otherwise() -> None:
    """Names were "doubtful", and each of their levels had a probability of 0.95."""
    case = lumbar()
    case.raw[case.truth == DISC_T12_L1] = 1
    case.raw[case.truth == DISCS[DISCS.index(DISC_T12_L1) + 1]] = 4
    before, measured = named(case), named(case, Trust(contradicted=Failures(60, 0, 0)))
    assert before.contradicted
    assert before.probability / measured.probability == pytest.approx(0.7 / 0.95)
    assert before.levels[0].probability < 0.7


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        (("left_out", "landmark_differs"), "landmark"),
        (("left_out",), "no name"),
        (("steps_differ", "landmark_differs"), "step 1"),
        ((), "contradicts"),
    ],
)
def test_doubtful_names_say_what_contradicts_them(kinds: tuple[str, ...], why: str) -> None:
    """ "Some evidence contradicts them" did not tell a reader where to look."""
    known = {"certainty": "doubtful", "contradicted": True, "findings": [{"kind": kind} for kind in kinds]}
    assert why in sentence(known).rpartition(";")[2]


@pytest.mark.slow
def test_names_are_judged_by_what_other_patients_tell() -> None:
    """Scans named by their own counts look better than the next ones will."""
    scans = []
    for subject, seed in (("a", 3), ("a", 4), ("b", 5)):
        case = lumbar(seed)
        counts = {step: observe(2, case.raw, case.truth) for step in (1, 2)}
        grid = Volume(case.raw, case.affine).grid
        box = tuple(slice(0, n) for n in case.raw.shape)
        truth = case.truth if subject == "a" else np.where(case.truth == DISC_L5_S, DISC_T12_L1, case.truth)
        maps = {1: Packed.of(lumbar(seed, step=1).raw), 2: Packed.of(case.raw)}
        scans.append(SegmentedScan(subject, grid, box, maps, Packed.of(truth.astype(np.uint8)), counts))
    found = count_failures(scans, mirror={1: False, 2: False})
    assert found.uncontradicted.scans + found.contradicted.scans == 3
    assert found.uncontradicted.wrong + found.contradicted.wrong == 1


def network_case(field: str, seed: int, *, step: int = 2, **options: object) -> columns.Case:
    """A column that a network draws without a mistake."""
    return columns.classes(columns.built(seed, fov=field, spacing=2.0, **options)[0], step)


def with_a_disc_at_the_dens(case: columns.Case) -> columns.Case:
    disc = np.argwhere(case.truth == CODE_OF["C2-C3"])
    disc[:, 2] += int(np.ptp(np.argwhere(case.truth == CODE_OF["C3"])[:, 2]))
    case.raw[tuple(disc.T)] = 2
    return case


def measured_pieces(case: columns.Case) -> list[float]:
    """Return the number of pieces, and the sum of everything that is measured in them."""
    classes = one_spine(case.raw, 2)
    ruler = ruler_of(canal_mask(classes, 2), np.diag(case.affine)[:3])
    pieces = divide(with_plain_vertebrae(find_pieces(classes, 2), classes, ruler), classes, ruler)
    evidence = gather(pieces, classes, 2, ruler=ruler)
    tilts = [item.tilt_deg for item in evidence.items if item.tilt_deg is not None]
    tapers = [item.taper for item in evidence.items if item.taper is not None]
    sums = [sum(getattr(item, name) or 0 for item in evidence.items) for name in ("place_mm", "width_mm", "odd", "cut")]
    return [
        *(len(evidence.items), len(evidence.specks), len(tilts), len(tapers), sum(tilts), sum(tapers)),
        *(*sums, sum(item.volume_mm3 for item in evidence.items), *evidence.loose.values()),
    ]


@pytest.mark.slow
def test_names_by_measured_networks_are_as_probable_as_they_were() -> None:
    """A changed chance of a mistake that a network is known for made its doubtful names certain."""
    starter, last, chest = models_in(STARTER_FOLDER)[2].trust, network_case("lumbar", 6), network_case("thoracic", 8)
    end = LowerEnd(6, 1, 1, 1, 1, 1, 1)
    few = replace(SEEN, scans=6, lower_end=end, parity_levels=50, parity_wrong=5, uncontradicted=Failures(6, 1, 0.2))
    cases = {
        "whole": network_case("whole", 5),
        "thoracic": chest,
        "loin": network_case("lumbar", 7),
        "loin with six": network_case("lumbar", 9, thoracic=12, lumbar=6),
        "neck": network_case("cervical", 4),
        "a disc at the dens": with_a_disc_at_the_dens(network_case("cervical", 4)),
        "L5 in the sacrum": swallowed(network_case("lumbar", 3), drawn_disc=True),
        "L5 and its disc in the sacrum": swallowed(network_case("lumbar", 3), drawn_disc=False),
        "a fragment of L5-S": with_a_fragment(last, last.truth == CODE_OF["L5-S"]),
    }
    found = {}
    for network, trust in (("starter", starter), ("few scans", few)):
        for what, case in cases.items():
            found[f"{network}, {what}"] = doubts(named(case, trust))
    for what, case in cases.items():
        found[f"pieces, {what}"] = measured_pieces(case)
        counts = observe(2, case.raw, case.truth)
        parts = (*counts.landmarks, counts.lower_end)
        found[f"counts, {what}"] = [
            counts.parity_levels,
            counts.parity_wrong,
            *(n for part in parts for n in vars(part).values()),
        ]
    doubted = {CODE_OF["T8"]: {CODE_OF["T8"]: 0.7, CODE_OF["T9"]: 0.3}}
    series = Localizer(np.roll(chest.truth, 3, axis=2), doubted)
    for what, other in {
        "a localizer": series,
        "a reader's": replace(series, by_reader=True),
        "one level off": replace(series, codes=np.roll(chest.truth, 12, axis=2)),
        "two discs": replace(series, codes=np.where(np.isin(chest.truth, DISCS[8:10]), chest.truth, 0)),
    }.items():
        numbering = name_map(Volume(chest.raw, chest.affine), 2, siblings=[other])[1]
        assert numbering is not None
        found[f"thoracic, {what}"] = doubts(numbering)
    require_known("measured_names", found, rel=0.002, abs=0.005)


def doubts(numbering: Numbering) -> list[float]:
    """Return the named levels, and the logarithm of what speaks against each and against all; 1e-7 is nothing."""
    chances = [numbering.probability, numbering.usual, *(level.probability for level in numbering.levels)]
    return [*(level.code for level in numbering.levels), *(math.log(1e-7 + max(0, 1 - chance)) for chance in chances)]
