"""Measure how reliable a pair of networks is: which classes and names they put on the parts of labeled scans."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server import pipeline
from totalspineseg_server.agreement import score_case
from totalspineseg_server.anatomy import (
    CORD,
    DISC_L4_L5,
    DISC_L5_S,
    DISC_T12_L1,
    DISCS,
    LANDMARK_DISCS,
    PARITY,
    VERTEBRAE,
    Kind,
    Parity,
    Step2,
)
from totalspineseg_server.errors import MemoryShortageError, NoSpineError, TotalSpineSegError, TrainingError
from totalspineseg_server.geometry import Grid, LabelArray, Volume, image_to_iso, labels_to_iso
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.cases import LabeledScan, ScanSource, Skipped
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import CORD_REGION, WarmPredictor
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.evidence import SPECK_SHARE, landmark_shares, odd_share
from totalspineseg_server.numbering.evidence_weights import LARGE_BONE_MM3, MOSTLY, THIN_DISC
from totalspineseg_server.numbering.naming import step1_names
from totalspineseg_server.prediction import Packed, Prediction
from totalspineseg_server.transforms.components import Box
from totalspineseg_server.transforms.pieces import Piece, Pieces, find_pieces, one_spine
from totalspineseg_server.trust import Failures, LowerEnd, Seen, Trust

FINAL: Final = 2
"""The step whose names are checked; those of step 1 alone are not."""
Step = Literal[1, 2]
STEPS: Final[tuple[Step, ...]] = (1, 2)
LABELED_SHARE: Final = 0.25
"""A piece is a disc of the label if at least this share of it is in that disc."""
CORD_LOGITS: Final = (0.0, 0.5, 1.0, 1.5)
"""Thresholds, as logits, that are tried for the cord."""
CORD_PRIOR: Final = 5.0
"""Weight of the present threshold of the cord, as a number of scans."""
MIN_CORD_VOXELS: Final = 500
BELOW_MM: Final = 8.0
"""Distance below the middle of L5-S beyond which a piece lies in the sacrum; a disc is 5 to 12 mm high."""
S1_NEAR_MM: Final = 45.0
"""A vertebra within this distance of L5-S is S1."""
MIN_S1_VOXELS: Final = 1000
NEAR_VOX: Final = 3
MIN_MIRROR_SCANS: Final = 5
"""With fewer scans, the present choice about averaging with the mirror image is kept."""


@dataclass(frozen=True)
class SegmentedScan:
    """A labeled scan as both networks drew it.

    Attributes:
        subject: Subject of the scan.
        grid: Its 1 mm grid.
        box: The part that step 2 saw.
        maps: Step -> classes (X, Y, Z) of that step, packed.
        codes: The label on the whole grid, packed.
        counts: Step -> the counts in this scan.
    """

    subject: str
    grid: Grid
    box: Box
    maps: Mapping[int, Packed]
    codes: Packed
    counts: Mapping[int, Trust]


def count_failures(scans: Sequence[SegmentedScan], *, mirror: Mapping[int, bool]) -> Trust:
    """Name each scan with the trust measured on the other patients.

    Args:
        scans: Labeled scans of one or more patients.
        mirror: Step -> whether the image and its mirror image were averaged.

    Returns:
        The counts of names with and without a contradiction; scans in which nothing is named do not count.
    """
    total = Trust()
    for scan in scans:
        others = {
            step: replace(
                sum((other.counts[step] for other in scans if other.subject != scan.subject), Trust()), mirror=averaged
            )
            for step, averaged in mirror.items()
        }
        try:
            numbering, labels = _named(scan, others)
        except NoSpineError:
            continue
        score = score_case(scan.codes.unpacked(), labels)
        if numbering is not None and score.levels_found:
            total = total + failure(numbering, wrong=score.levels_right < score.levels_found)
    return total


def failure(numbering: Numbering, *, wrong: bool) -> Trust:
    """Return the counts of one scan.

    Args:
        numbering: Its final names.
        wrong: Whether one of them is wrong.
    """
    counts = Failures(1.0, float(wrong), 1.0 - numbering.probability)
    return Trust(contradicted=counts) if numbering.contradicted else Trust(uncontradicted=counts)


def _named(scan: SegmentedScan, trusts: Mapping[int, Trust]) -> tuple[Numbering | None, LabelArray]:
    shape = scan.grid.shape
    # Only the grid of the image counts: its voxels are those of the maps.
    image = pipeline.Scan(Volume(np.broadcast_to(np.float32(0), shape), scan.grid.affine), scan.grid)
    whole: Box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    first = pipeline.rename(image, scan.maps[1].unpacked(), whole, 1, trust=trusts[1])
    names = step1_names(first.labels, first.numbering)
    step1 = None if names is None else names.part(scan.box)
    found = pipeline.rename(image, scan.maps[2].unpacked(), scan.box, 2, step1=step1, trust=trusts[2])
    return found.numbering, found.labels


@dataclass(frozen=True)
class _Sight:
    """Counts of one step in one scan; the cord is measured only if the label shows enough of it."""

    trust: Trust
    cord_dice: list[float] | None
    classes: LabelArray
    box: Box


@dataclass
class _Tally:
    """Counts of one step in all scans."""

    trust: Trust = field(default_factory=Trust)
    cord_dice: list[list[float]] = field(default_factory=list)

    def add(self, sight: _Sight) -> None:
        """Add a scan."""
        self.trust = self.trust + sight.trust
        if sight.cord_dice is not None:
            self.cord_dice.append(sight.cord_dice)


def calibrate(
    models: Mapping[int, ModelFolder],
    sources: Iterable[ScanSource],
    *,
    device: str = "auto",
    on_skip: Callable[[Skipped], None],
    before_each: Callable[[str], None] = lambda _: None,
) -> dict[int, Trust]:
    """Measure both steps on labeled scans, with the plain image and averaged with its mirror image.

    Args:
        models: Step -> model.
        sources: Scans on which neither network was trained, one or more for each patient; labels in codes, "unreviewed"
            where nobody checked.
        device: See ``WarmPredictor``.
        on_skip: Called with every scan that could not be used.
        before_each: Called with the name of each scan.

    Returns:
        Step -> its counts on these scans, the better choice about the mirror image, and the threshold of the cord.

    Raises:
        WeightsError: A network cannot be loaded.
        TrainingError: There is too little memory.
    """
    ways = {mirror: _Way(models, device, mirror=mirror) for mirror in (False, True)}
    for source in sources:
        before_each(source.name)
        try:
            scan = source.read()
            sights = [way.look_at(scan) for way in ways.values()]
        except MemoryShortageError as error:
            # The scan is not at fault if memory is short, so it is not skipped.
            raise TrainingError(nnunet_messages.SCAN_FAILED.format(scan=source.name, error=error)) from error
        except TotalSpineSegError as error:
            on_skip(Skipped(source.name, str(error)))
        else:
            # Add a scan only if both ways have succeeded in both steps, so that the same scans are compared.
            codes, grid = Packed.of(labels_to_iso(scan.codes).data), image_to_iso(scan.image).grid
            for way, seen in zip(ways.values(), sights, strict=True):
                for step in STEPS:
                    way.tallies[step].add(seen[step])
                maps = {step: Packed.of(sight.classes) for step, sight in seen.items()}
                counts = {step: sight.trust for step, sight in seen.items()}
                way.segmented.append(SegmentedScan(scan.subject, grid, seen[2].box, maps, codes, counts))
    plain, averaged = (way.tallies for way in ways.values())
    enough = averaged[1].trust.scans >= MIN_MIRROR_SCANS
    before = {step: models[step].trust.mirror for step in STEPS}
    better = sum(_placed(averaged[s].trust) for s in STEPS) > sum(_placed(plain[s].trust) for s in STEPS)
    mirror: dict[int, bool] = {step: better if enough else before[step] for step in STEPS}
    result: dict[int, Trust] = {}
    for step in STEPS:
        tally = (averaged if mirror[step] else plain)[step]
        result[step] = replace(tally.trust, mirror=mirror[step], cord_logit=cord_logit(tally.cord_dice))
    # Both steps are asked in the same way, except for weights that were measured separately.
    result[FINAL] = result[FINAL] + count_failures(ways[mirror[FINAL]].segmented, mirror=mirror)
    return result


def joined(before: Trust, now: Trust) -> Trust:
    """Join two measurements: add their counts, and take the other values from the newer one if it has enough scans."""
    both = now + before
    return replace(both, mirror=now.mirror, cord_logit=now.cord_logit or before.cord_logit)


class _Way:
    """Runs both networks in one way on all scans: plain, or averaged with the mirror image."""

    def __init__(self, models: Mapping[int, ModelFolder], device: str, *, mirror: bool) -> None:
        self.tallies = {step: _Tally() for step in STEPS}
        self.segmented: list[SegmentedScan] = []
        trusts = {step: replace(models[step].trust, mirror=mirror, cord_logit=0.0) for step in STEPS}
        self._networks = {step: WarmPredictor(models[step], device=device, trust=trusts[step]) for step in STEPS}

    def look_at(self, labeled: LabeledScan) -> dict[int, _Sight]:
        """Segment a scan and return the counts of each step.

        Raises:
            NoSpineError: A step found nothing in the scan.
        """
        codes: LabelArray = labels_to_iso(labeled.codes).data
        scan = pipeline.Scan(image_to_iso(labeled.image), labeled.image.grid)
        first = self._networks[1].predict(scan.iso.data[np.newaxis], soft=pipeline.STEP1_SOFT)
        located = pipeline.located(scan, first)
        whole: Box = (slice(0, codes.shape[0]), slice(0, codes.shape[1]), slice(0, codes.shape[2]))
        sights = {1: _sight(1, first, codes, whole)}
        names = pipeline.step2_input(scan, located.labels, missed=located.numbering.missed if located.numbering else ())
        predicted = self._networks[2].predict(names.channels, soft=(CORD_REGION,))
        return {**sights, 2: _sight(2, predicted, codes, names.box)}


def _sight(step: Step, predicted: Prediction, codes: LabelArray, box: Box) -> _Sight:
    there = codes[box]
    trust = observe(step, predicted.labels, there)
    return _Sight(trust, cord_dice(predicted.soft[CORD_REGION], there == CORD), predicted.labels, box)


def cord_dice(soft: npt.NDArray[np.float32], cord: npt.NDArray[np.bool_]) -> list[float] | None:
    """Return the Dice of the cord for each of ``CORD_LOGITS``, in slices with cord; None if there is too little of it.

    Args:
        soft: Probability of the cord, (X, Y, Z). Not modified.
        cord: The true cord on the same grid. Not modified.
    """
    if cord.sum() < MIN_CORD_VOXELS:
        return None
    rows = cord.any(axis=(0, 1))
    soft, cord = soft[:, :, rows], cord[:, :, rows]
    return [_dice(soft > _chance(-logit), cord) for logit in CORD_LOGITS]


def observe(step: Step, raw: LabelArray, codes: LabelArray) -> Trust:
    """Return the counts of one map.

    Args:
        step: 1 or 2.
        raw: uint8 (X, Y, Z) RAS at 1 mm, classes of the step's network. Not modified.
        codes: The label on the same grid. Not modified.
    """
    pieces = find_pieces(one_spine(raw, step), step)
    found = {code: piece for code, piece, _ in _discs(pieces, codes)}
    levels, wrong = _parity(pieces, codes)
    labeled = {int(code) for code in np.unique(codes)}
    landmarks = tuple(_seen(landmark, found, labeled) for landmark in LANDMARK_DISCS)
    end = _lower_end(step, pieces, raw, codes)
    return Trust(landmarks, levels, wrong, scans=1 if found else 0, lower_end=end)


def _lower_end(step: Step, pieces: Pieces, raw: LabelArray, codes: LabelArray) -> LowerEnd:
    """Return how the lower end is drawn; empty unless the label shows L5-S and three discs above it."""
    row = [code for code in DISCS if (codes == code).any()]
    discs = {code: (piece, k) for code, piece, k in _discs(pieces, codes)}
    above = [discs[code][0] for code in row[:-1][-3:] if code in discs]
    if len(row) < 4 or row[-1] != DISC_L5_S or not above:
        return LowerEnd()
    usual = float(np.median([piece.voxels for piece in above]))
    last, before = (np.argwhere(codes == code).mean(axis=0) for code in (row[-1], row[-2]))
    named = {k for _, k in discs.values()}
    lower = [
        piece.voxels / usual
        for k, piece in enumerate(pieces.discs)
        if k not in named and piece.voxels >= SPECK_SHARE * usual and piece.centroid_vox[2] < last[2] - BELOW_MM
    ]
    s1 = [
        piece.voxels
        for piece in pieces.vertebrae
        if piece.kind is Kind.VERTEBRA
        and piece.voxels >= MIN_S1_VOXELS
        and piece.body_centroid_vox is not None
        and np.linalg.norm(np.subtract(piece.body_centroid_vox, last)[1:]) < S1_NEAR_MM
        and piece.body_centroid_vox[2] < last[2] - BELOW_MM
    ]
    own = discs[row[-1]][0].voxels / usual if row[-1] in discs else 0.0
    return LowerEnd(
        1.0,
        thin=float(own < THIN_DISC),
        below_thin=float(bool(lower) and max(lower) < THIN_DISC),
        below=float(bool(lower) and max(lower) >= THIN_DISC),
        s1=float(bool(s1)),
        s1_whole=float(bool(s1) and max(s1) >= LARGE_BONE_MM3),
        shifted=float(_is_sacrum(raw, (last + before) / 2) if step == 2 else _are_moved(discs)),
    )


def _are_moved(discs: Mapping[int, tuple[Piece, int]]) -> bool:
    """Return whether both L5-S and T12-L1 (where in view) are drawn on the disc above; L5-S may be on both."""

    def is_segmented_as(code: int, landmark: int) -> bool:
        return code in discs and landmark_shares(discs[code][0]).get(landmark, 0.0) > MOSTLY

    return is_segmented_as(DISC_L4_L5, DISC_L5_S) and not is_segmented_as(DISC_T12_L1, DISC_T12_L1)


def _is_sacrum(raw: LabelArray, middle: npt.NDArray[np.float64]) -> bool:
    """Return whether the bone around a point is mostly drawn as the sacrum (in a map of step 2)."""
    low = np.maximum(np.round(middle).astype(int) - NEAR_VOX, 0)
    around = raw[tuple(slice(a, a + 2 * NEAR_VOX + 1) for a in low)]
    sacrum = np.count_nonzero(around == Step2.SACRUM.value)
    return sacrum > np.count_nonzero((around == Step2.VERTEBRA_ODD.value) | (around == Step2.VERTEBRA_EVEN.value))


def _discs(pieces: Pieces, codes: LabelArray) -> list[tuple[int, Piece, int]]:
    """Return (code, piece, index) of the largest piece of each labeled disc."""
    found: dict[int, tuple[int, Piece, int]] = {}
    for k, piece in enumerate(pieces.discs):
        inside = codes[piece.box][pieces.disc_map[piece.box] == k + 1]
        named = inside[np.isin(inside, DISCS)]
        if named.size < LABELED_SHARE * piece.voxels:
            continue
        code = int(np.bincount(named).argmax())
        if code not in found or found[code][1].voxels < piece.voxels:
            found[code] = (code, piece, k)
    return list(found.values())


def _seen(landmark: int, found: Mapping[int, Piece], labeled: set[int]) -> Seen:
    """Return where one landmark class was placed in a scan; empty if the label lacks its disc or the disc was not
    found."""
    if landmark not in labeled:
        return Seen()
    # T12-T13 and L5-L6 are in the row beside T12-L1 and L5-S, in scans that have them.
    row = [code for code in DISCS if code in labeled]
    place = row.index(landmark)
    above, below = row[place - 1] if place else None, row[place + 1] if place + 1 < len(row) else None

    def share(code: int | None) -> float:
        return 0.0 if code is None or code not in found else landmark_shares(found[code]).get(landmark, 0.0)

    own, over, under = share(landmark), share(above), share(below)
    return Seen(
        scans=1.0,
        own=own,
        above=over,
        below=under,
        scans_above=float(above is not None),
        scans_below=float(below is not None),
        above_alone=over * (1.0 - own),
        below_alone=under * (1.0 - own),
    )


def _parity(pieces: Pieces, codes: LabelArray) -> tuple[float, float]:
    """Return how many vertebrae have a comparable odd/even class, and how many are wrong, whichever class means odd."""
    agree = []
    for k, piece in enumerate(pieces.vertebrae):
        if pieces.vertebra_map is None or piece.kind is not Kind.VERTEBRA or (odd := odd_share(piece)) is None:
            continue
        inside = codes[piece.box][pieces.vertebra_map[piece.box] == k + 1]
        named = inside[np.isin(inside, VERTEBRAE)]
        if named.size >= LABELED_SHARE * piece.voxels:
            agree.append((PARITY[int(np.bincount(named).argmax())] is Parity.ODD) == (odd > 0.5))
    return float(len(agree)), float(min(sum(agree), len(agree) - sum(agree)))


def _placed(trust: Trust) -> float:
    """Return the landmarks on their own disc minus those on its neighbors."""
    return sum(seen.own - seen.above - seen.below for seen in trust.landmarks)


def cord_logit(dice: Sequence[Sequence[float]]) -> float:
    """Return the best of ``CORD_LOGITS``, closer to 0 the fewer scans there are; see ``cord_dice``."""
    if not dice:
        return 0.0
    best = CORD_LOGITS[int(np.mean(dice, axis=0).argmax())]
    return round(best * len(dice) / (len(dice) + CORD_PRIOR), 2)


def _chance(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


def _dice(a: Any, b: Any) -> float:
    return float(2 * (a & b).sum() / max(int(a.sum()) + int(b.sum()), 1))
