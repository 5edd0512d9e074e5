"""Measure how reliable a pair of networks is: which landmark class they put on which disc of labeled scans."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server import pipeline
from totalspineseg_server.anatomy import CORD, DISCS, LANDMARK_DISCS, PARITY, VERTEBRAE, Kind, Parity
from totalspineseg_server.errors import MemoryShortageError, TotalSpineSegError, TrainingError
from totalspineseg_server.geometry import LabelArray, image_to_iso, labels_to_iso
from totalspineseg_server.nnunet.cases import LabeledScan, ScanSource, Skipped
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import CORD_REGION, WarmPredictor
from totalspineseg_server.numbering.evidence import landmark_shares, odd_share, tilt_deg
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.transforms.one_spine import one_spine
from totalspineseg_server.transforms.pieces import Piece, Pieces, find_pieces
from totalspineseg_server.trust import TILTED, Seen, Tilts, Trust

Step = Literal[1, 2]
STEPS: Final[tuple[Step, ...]] = (1, 2)
LABELED_SHARE: Final = 0.25
"""A piece is a disc of the label if at least this share of it is in that disc."""
CORD_LOGITS: Final = (0.0, 0.5, 1.0, 1.5)
"""Thresholds, as logits, that are tried for the cord."""
CORD_PRIOR: Final = 5.0
"""Number of scans that the present threshold of the cord counts as."""
MIN_CORD_VOXELS: Final = 500
MIN_MIRROR_SCANS: Final = 5
"""With fewer scans, the present choice about averaging with the mirror image is kept."""


@dataclass(frozen=True)
class _Sight:
    """Counts of one step in one scan; the cord is measured only if the label shows enough of it."""

    trust: Trust
    cord_dice: list[float] | None


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
            # A lack of memory is no fault of the scan, so it is not skipped.
            raise TrainingError(f"Scan {source.name} could not be measured. {error} Then start again.") from error
        except TotalSpineSegError as error:
            on_skip(Skipped(source.name, str(error)))
        else:
            # Add a scan only if both ways have succeeded in both steps, so that the same scans are compared.
            for way, seen in zip(ways.values(), sights, strict=True):
                for step in STEPS:
                    way.tallies[step].add(seen[step])
    plain, averaged = (way.tallies for way in ways.values())
    enough = averaged[1].trust.scans >= MIN_MIRROR_SCANS
    before = {step: models[step].trust.mirror for step in STEPS}
    better = sum(_placed(averaged[s].trust) for s in STEPS) > sum(_placed(plain[s].trust) for s in STEPS)
    mirror = {step: better if enough else before[step] for step in STEPS}
    result: dict[int, Trust] = {}
    for step in STEPS:
        tally = (averaged if mirror[step] else plain)[step]
        result[step] = replace(tally.trust, mirror=mirror[step], cord_logit=cord_logit(tally.cord_dice))
    return result


def joined(before: Trust, now: Trust) -> Trust:
    """Join two measurements: add their counts, and take the other values from the newer one if it has enough scans."""
    both = now + before
    return replace(both, mirror=now.mirror, cord_logit=now.cord_logit or before.cord_logit)


class _Way:
    """Runs both networks in one way on all scans: plain, or averaged with the mirror image."""

    def __init__(self, models: Mapping[int, ModelFolder], device: str, *, mirror: bool) -> None:
        self.tallies = {step: _Tally() for step in STEPS}
        trusts = {step: replace(models[step].trust, mirror=mirror, cord_logit=0.0) for step in STEPS}
        self._networks = {step: WarmPredictor(models[step], device=device, trust=trusts[step]) for step in STEPS}

    def look_at(self, labeled: LabeledScan) -> dict[int, _Sight]:
        """Segment a scan and return the counts of each step.

        Raises:
            NoSpineError: A step found nothing in the scan.
        """
        codes: LabelArray = labels_to_iso(labeled.codes).data
        scan = pipeline.Scan(image_to_iso(labeled.image), labeled.image.grid)
        network = _Remembering(self._networks[1])
        located = pipeline.locate(scan, network)
        sights = {1: _sight(1, network.last, codes)}
        names = pipeline.step2_input(scan, located.labels, missed=located.numbering.missed if located.numbering else ())
        predicted = self._networks[2].predict(names.channels, soft=(CORD_REGION,))
        return {**sights, 2: _sight(2, predicted, codes[names.box])}


def _sight(step: Step, predicted: Prediction, codes: LabelArray) -> _Sight:
    return _Sight(observe(step, predicted.labels, codes), cord_dice(predicted.soft[CORD_REGION], codes == CORD))


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


class _Remembering:
    """A predictor that keeps its last prediction, because the pipeline passes on only the named result."""

    def __init__(self, network: WarmPredictor) -> None:
        self._network, self.version = network, network.version
        self.last = Prediction(np.zeros((0, 0, 0), np.uint8))

    def predict(self, channels: Any, *, soft: Any = ()) -> Prediction:
        self.last = self._network.predict(channels, soft=soft)
        return self.last


def observe(step: Step, raw: LabelArray, codes: LabelArray) -> Trust:
    """Return the counts of one map.

    Args:
        step: 1 or 2.
        raw: uint8 (X, Y, Z) RAS at 1 mm, classes of the step's network. Not modified.
        codes: The label on the same grid. Not modified.
    """
    pieces = find_pieces(one_spine(raw, step), step)
    found = {code: piece for code, piece, _ in _discs(pieces, codes)}
    tilts = tuple(
        next((_tilts(pieces, k) for code, _, k in _discs(pieces, codes) if code == wanted), Tilts())
        for wanted in TILTED
    )
    levels, wrong = _parity(pieces, codes)
    labeled = {int(code) for code in np.unique(codes)}
    landmarks = tuple(_seen(landmark, found, labeled) for landmark in LANDMARK_DISCS)
    return Trust(landmarks, tilts, levels, wrong, scans=1 if found else 0)


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


def _tilts(pieces: Pieces, k: int) -> Tilts:
    angle = tilt_deg(pieces.disc_map[pieces.discs[k].box] == k + 1, (1.0, 1.0, 1.0))
    return Tilts() if angle is None else Tilts(1.0, angle, angle**2)


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

    return Seen(
        scans=1.0,
        own=share(landmark),
        above=share(above),
        below=share(below),
        scans_above=float(above is not None),
        scans_below=float(below is not None),
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
