"""Name real scans with the starter weights: count how many are right, and how certain their names are.

    python tools/bench_real.py --real FOLDER --spider FOLDER
    python tools/bench_real.py --real FOLDER --spider FOLDER --write-trust  # also writes trust.json of the weights
    python tools/bench_real.py --real FOLDER --spider FOLDER --moved  # also each scan shifted and mirrored
    python tools/bench_real.py --real FOLDER --spider FOLDER --keep FOLDER  # the next run only names

REAL has images/NAME.nii.gz and truth/NAME_KIND.nii.gz: ``gt`` (codes of discs, or of bodies), ``points`` (a voxel for
each vertebra, the k-th from C1), ``discpoints`` (a voxel for each disc, 3 = C2-C3), ``cord``. SPIDER has NNN_image
and NNN_label (1 disc, 2 vertebra, 3 canal), named upward from the lowest disc if ``spider_truth.csv`` says that this
is clear.

For each scan, landmarks are trusted as far as the other scans show: a SPIDER patient, or a scan with points, does not
count for itself. Scans with ``gt`` are only measured. Patients of SPIDER on whom the starter weights were trained
(``spider_patients.csv``) are left out, unless ``--all-patients`` is given. A scan is right if every marked level is
found and has its name.

Where the voxels begin, and which side is which, must not change a name. With ``--moved``, each scan is also named after
a shift by half a voxel along every axis, and mirrored, with the same trust; a name has changed if most of a level has
the name of another one.
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.ndimage import shift

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from spider_cases import DISC, VERTEBRA, WHOLE_CANAL, find_discs, read_patients  # noqa: E402

from totalspineseg_server import pipeline  # noqa: E402
from totalspineseg_server.activelearning.scores import Parts, parts_of  # noqa: E402
from totalspineseg_server.anatomy import CANAL, CORD, DISCS, NAME_OF, SACRUM, VERTEBRAE, column  # noqa: E402
from totalspineseg_server.errors import NoSpineError  # noqa: E402
from totalspineseg_server.files import sha256_of  # noqa: E402
from totalspineseg_server.geometry import FloatArray, LabelArray, Volume, labels_on_grid, to_ras  # noqa: E402
from totalspineseg_server.infers.disagreement import disagreement_of  # noqa: E402
from totalspineseg_server.io.volumes import read_image, read_labels  # noqa: E402
from totalspineseg_server.nnunet.calibration import FINAL, STEPS, cord_dice, cord_logit, failure, observe  # noqa: E402
from totalspineseg_server.nnunet.discovery import write_trust  # noqa: E402
from totalspineseg_server.nnunet.model_folder import models_in  # noqa: E402
from totalspineseg_server.nnunet.predictor import CORD_REGION, WarmPredictor  # noqa: E402
from totalspineseg_server.numbering.chain import Numbering  # noqa: E402
from totalspineseg_server.numbering.linter import lint  # noqa: E402
from totalspineseg_server.numbering.naming import step1_names  # noqa: E402
from totalspineseg_server.numbering.report import report  # noqa: E402
from totalspineseg_server.prediction import Prediction, Predictor  # noqa: E402
from totalspineseg_server.transforms.components import Box  # noqa: E402
from totalspineseg_server.transforms.pieces import find_pieces, one_spine  # noqa: E402
from totalspineseg_server.trust import CERTAINTIES, Trust  # noqa: E402

STARTER = ROOT / "apps" / "totalspineseg" / "model" / "starter"
COLUMN = column()
ROW = [disc for disc in COLUMN.discs if disc is not None]
BODIES = list(COLUMN.vertebrae)
FOUND = 0.25
REACH_MM = 15.0
"""Distance within which a disc lies from its mark, which may be in the middle of the cord; the next disc of a neck is
farther away."""
BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.001)


def by_half_a_voxel(volume: Volume) -> Volume:
    """Return an image moved by half a voxel along every axis."""
    return Volume(shift(volume.data.astype(np.float32), (0.5, 0.5, 0.5), order=1, mode="nearest"), volume.affine)


def mirrored(volume: Volume) -> Volume:
    """Return an image or labels, nearest to RAS, with left and right exchanged."""
    return Volume(volume.data[::-1].copy(), volume.affine)


MOVES: dict[str, tuple[Callable[[Volume], Volume], Callable[[Volume], Volume]]] = {
    "shifted": (by_half_a_voxel, lambda labels: labels),
    "mirrored": (mirrored, mirrored),
}
"""Move -> its functions for an image and for its labels."""


class CachedPredictor:
    """A network whose answers are kept in a folder. It computes only what it has not seen with the same weights.

    Args:
        network: The network.
        folder: Folder of its answers; made if it is missing.
    """

    def __init__(self, network: WarmPredictor, folder: Path) -> None:
        self.network, self.folder, self.version = network, folder, network.version
        trust = network.trust
        # Nothing else of the trust changes what a network draws.
        self.settings = repr((sha256_of(network.folder.checkpoint), trust.mirror, trust.cord_logit)).encode()
        folder.mkdir(parents=True, exist_ok=True)

    def predict(self, channels: FloatArray, *, soft: Collection[str] = ()) -> Prediction:
        """Return the answer of the network, see ``Predictor``."""
        names = sorted(soft)
        key = hashlib.sha256(self.settings + repr((channels.shape, names)).encode())
        key.update(np.ascontiguousarray(channels).data)
        file = self.folder / f"{key.hexdigest()}.npz"
        if not file.exists():
            answer = self.network.predict(channels, soft=soft)
            difference = np.nan if answer.mirror_difference is None else answer.mirror_difference
            part = file.with_suffix(".part.npz")
            np.savez_compressed(part, labels=answer.labels, difference=difference, **answer.soft)
            part.replace(file)
        with np.load(file) as archive:
            difference = float(archive["difference"])
            maps = {name: archive[name] for name in names}
            return Prediction(archive["labels"], maps, self.network.trust, None if np.isnan(difference) else difference)


@dataclass
class Scan:
    """A scan with the output of the networks, and its counts."""

    name: str
    group: str
    scan: pipeline.Scan
    truths: Mapping[str, Volume]
    clear: bool
    predictions: dict[int, Prediction] = field(default_factory=dict)
    box: Box | None = None
    mirrors: tuple[float | None, ...] = ()
    counts: dict[int, Trust] = field(default_factory=dict)
    cord_dice: list[float] | None = None


@dataclass
class Result:
    """The names of a scan compared with the truth, and its certainty."""

    name: str
    group: str
    clear: bool
    levels: list[tuple[int, int, float]]
    numbering: Numbering
    cord: float | None
    parts: Parts
    outlines: Mapping[str, float] = field(default_factory=dict)
    codes: LabelArray | None = None

    @property
    def right(self) -> bool:
        return all(true == found for true, found, _ in self.levels)


def scans(
    real: Path | None, spider: Path | None, *, held_out: bool = True
) -> Iterator[tuple[str, str, Path, dict[str, Path], bool]]:
    """Yield name, group, image, truths, and whether the truth is clear."""
    if real is not None:
        for image in sorted((real / "images").glob("*.nii.gz")):
            name = image.name.removesuffix(".nii.gz")
            truths = {f.name.removesuffix(".nii.gz").rpartition("_")[2]: f for f in real.glob(f"truth/{name}_*.nii.gz")}
            yield name, "lumbar" if "gt" in truths else "neck and whole", image, truths, True
    if spider is not None:
        with (ROOT / "tools" / "spider_truth.csv").open(encoding="utf-8") as file:
            clear = {row["patient"]: row["names"] == "clear" for row in csv.DictReader(file)}
        trained = {patient.number for patient in read_patients() if not patient.held_out} if held_out else set()
        for image in sorted(spider.glob("*_image.nii.gz")):
            patient = image.name.partition("_")[0]
            if patient in trained:
                continue
            truths = {"label": image.with_name(f"{patient}_label.nii.gz")}
            yield f"SPIDER {patient}", "SPIDER", image, truths, clear.get(patient, False)


def spider_discs(label: LabelArray) -> dict[int, np.ndarray]:
    """Return code -> mask, counted upward from the lowest disc."""
    return dict(zip(reversed(ROW), find_discs(label).masks, strict=False))


def disc_codes(scan: Scan, raw: LabelArray, step: int, box: Box) -> LabelArray | None:
    """Return codes of discs on a step's part of the 1 mm grid, from truths that are suited to calibration, or None."""
    grid = pipeline.sub_grid(scan.scan.iso.grid, box)
    if "label" in scan.truths and scan.clear:
        label = scan.truths["label"]
        codes = np.zeros(label.data.shape, np.uint8)
        for code, mask in spider_discs(label.data).items():
            codes[mask] = code
        return labels_on_grid(Volume(codes, label.affine), grid)
    marks = scan.truths.get("points")
    if marks is None:
        return None
    points = {
        int(v): marks.affine @ [*np.argwhere(marks.data == v).mean(axis=0), 1] for v in np.unique(marks.data) if v
    }
    upper, lower = min(points), max(points)
    pieces = find_pieces(one_spine(raw, step), step)  # type: ignore[arg-type]
    usual = float(np.median([piece.voxels for piece in pieces.discs]))
    heights = [(grid.affine @ [*piece.centroid_vox, 1])[2] for piece in pieces.discs]
    between = [
        k
        for k, piece in enumerate(pieces.discs)
        if piece.voxels > FOUND * usual and points[lower][2] < heights[k] + 3 and heights[k] - 3 < points[upper][2]
    ]
    codes = np.zeros(raw.shape, np.uint8)
    if len(between) == lower - upper:
        for k, code in zip(between, ROW[upper - 2 : lower - 2], strict=True):
            codes[pieces.disc_map == k + 1] = code
    return codes


def draw(scan: Scan, networks: Mapping[int, Predictor]) -> None:
    """Run both networks on a scan, and count their landmarks."""
    located = pipeline.locate(scan.scan, networks[1])
    shape = scan.scan.iso.data.shape
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    missed = located.numbering.missed if located.numbering else ()
    part = pipeline.step2_input(scan.scan, located.labels, missed=missed)
    scan.box = part.box
    second = networks[2].predict(part.channels, soft=(CORD_REGION,))
    if "cord" in scan.truths:
        cord = labels_on_grid(scan.truths["cord"], pipeline.sub_grid(scan.scan.iso.grid, part.box)) > 0
        scan.cord_dice = cord_dice(second.soft[CORD_REGION], cord)
    scan.predictions = {1: Prediction(located.raw), 2: Prediction(second.labels)}
    scan.mirrors = located.mirror_difference, second.mirror_difference
    for step, box in ((1, whole), (2, part.box)):
        codes = disc_codes(scan, scan.predictions[step].labels, step, box)
        if codes is not None:
            scan.counts[step] = observe(step, scan.predictions[step].labels, codes)  # type: ignore[arg-type]


def name(scan: Scan, others: Mapping[int, Trust]) -> Result:
    """Name a scan with the trust measured on the other scans."""
    assert scan.box is not None
    shape = scan.scan.iso.data.shape
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    first = pipeline.rename(scan.scan, scan.predictions[1].labels, whole, 1, trust=others[1])
    known = step1_names(first.labels, first.numbering)
    step1 = None if known is None else known.part(scan.box)
    found = pipeline.rename(scan.scan, scan.predictions[2].labels, scan.box, 2, step1=step1, trust=others[2])
    assert found.numbering is not None
    grid = scan.scan.grid
    result = to_ras(Volume(scan.scan.labels_to_input(found.labels), grid.affine))
    chance = {level.code: level.probability for level in found.numbering.levels}
    levels = [(true, code, chance.get(code, found.numbering.probability)) for true, code in judged(scan, result)]
    cord = None
    if "cord" in scan.truths:
        truth = scan.truths["cord"].data > 0
        rows = truth.any(axis=(0, 1))
        mine, truth = (result.data == CORD)[:, :, rows], truth[:, :, rows]
        cord = 2 * float((mine & truth).sum()) / float(mine.sum() + truth.sum())
    odd = (*pipeline.image_findings(scan.scan, found.numbering), *lint(found.labels, scan.scan.iso.spacing))
    known_of = report(found.numbering, odd, affine=scan.scan.iso.affine)
    parts = parts_of(known_of, disagreement_of(found.step1, found.labels[found.box], scan.mirrors))
    outlines = spider_outlines(scan.truths["label"].data, result.data) if "label" in scan.truths else {}
    return Result(scan.name, scan.group, scan.clear, levels, found.numbering, cord, parts, outlines, result.data)


def spider_outlines(truth: LabelArray, found: LabelArray) -> dict[str, float]:
    """Return the Dice of discs, vertebrae and canal with cord, from the lowest disc up to where SPIDER's labels end."""
    discs = spider_discs(truth)
    lowest = min(int(np.argwhere(mask)[:, 2].min()) for mask in discs.values())
    rows = np.flatnonzero((truth == WHOLE_CANAL).any(axis=(0, 1)))

    def dice(codes: Sequence[int], value: int, first: int, last: int) -> float:
        mine, true = np.isin(found[:, :, first:last], codes), truth[:, :, first:last] == value
        return 2 * float((mine & true).sum()) / float(mine.sum() + true.sum())

    return {
        "discs": dice(DISCS, DISC, lowest, truth.shape[2]),
        "vertebrae": dice(VERTEBRAE, VERTEBRA, lowest, truth.shape[2]),
        "canal with cord": dice((CANAL, CORD), WHOLE_CANAL, max(lowest, int(rows.min())), int(rows.max()) + 1),
    }


def judged(scan: Scan, result: Volume) -> Iterator[tuple[int, int]]:
    """Yield the true code and the found code (or 0) of every marked level."""
    mm = np.linalg.norm(result.affine[:3, :3], axis=0)
    discs, bones = np.isin(result.data, DISCS), np.isin(result.data, (*VERTEBRAE, SACRUM))
    for kind, truth in scan.truths.items():
        if kind in ("gt", "label"):
            masks = spider_discs(truth.data) if kind == "label" else {}
            if kind == "gt":
                masks = {int(code): truth.data == code for code in np.unique(truth.data) if code}
            for code, mask in masks.items():
                inside = result.data[mask & (discs if code in DISCS else bones)]
                yield code, int(np.bincount(inside).argmax()) if inside.size >= FOUND * mask.sum() else 0
        elif kind in ("points", "discpoints"):
            voxels = np.argwhere(discs if kind == "discpoints" else bones)
            for value in np.unique(truth.data):
                row = BODIES if kind == "points" else [0, 0, *ROW]
                if not 0 < value <= len(row) or not row[int(value) - 1]:
                    continue
                away = (voxels - np.argwhere(truth.data == value).mean(axis=0)) * mm
                near = np.linalg.norm(away, axis=1)
                if kind == "points":
                    # The mark may be in the cord, behind the body.
                    in_front = (away[:, 1] > 0) & (away[:, 1] < 35) & (abs(away[:, 0]) <= 6) & (abs(away[:, 2]) <= 8)
                    near = np.where(in_front, near, near + 20)
                code = int(result.data[tuple(voxels[near.argmin()])]) if near.size else 0
                yield (
                    row[int(value) - 1],
                    code if near.size and near.min() < (35 if kind == "points" else REACH_MM) else 0,
                )


def share(part: int, whole: int) -> str:
    return f"{part:3} of {whole:2}" if whole else "   -    "


def table(results: list[Result]) -> None:
    """Print right and wrong scans by group and certainty."""
    print(
        f"\n{'group':16} {'right':>9}  of the right: {', '.join(CERTAINTIES):28} of the wrong: {', '.join(CERTAINTIES)}"
    )
    groups = {r.group: [] for r in results}  # type: dict[str, list[Result]]
    for r in results:
        if r.levels and r.clear:
            groups[r.group].append(r)
    for group, mine in [*groups.items(), ("all", [r for r in results if r.levels and r.clear])]:
        right, wrong = [r for r in mine if r.right], [r for r in mine if not r.right]
        counts = [
            "  ".join(f"{sum(r.numbering.certainty == c for r in some):9}" for c in CERTAINTIES)
            for some in (right, wrong)
        ]
        print(f"{group:16} {share(len(right), len(mine)):>9}  {counts[0]:42} {counts[1]}")
    unclear = [r.name for r in results if not r.clear]
    if unclear:
        print(f"not counted, because the truth is not clear: {', '.join(unclear)}")
    for what in ("discs", "vertebrae", "canal with cord"):
        values = [r.outlines[what] for r in results if what in r.outlines]
        if values:
            print(f"SPIDER, Dice of {what}: mean {np.mean(values):.3f}, lowest {min(values):.3f} of {len(values)}")
    cords = [r.cord for r in results if r.cord is not None]
    if cords:
        print(f"cord, Dice: mean {np.mean(cords):.3f}, lowest {min(cords):.3f} of {len(cords)}")


def reliability(results: list[Result]) -> None:
    """Print how many levels with each probability are right."""
    levels = [(p, true == code) for r in results if r.clear for true, code, p in r.levels if code]
    print("\nprobability    levels  expected   right")
    gap = 0.0
    for low, high in pairwise(BINS):
        mine = [(p, ok) for p, ok in levels if low <= p < high]
        if mine:
            expected, right = (float(np.mean(values)) for values in zip(*mine, strict=True))
            gap += len(mine) * abs(expected - right) / len(levels)
            print(
                f"{low:.2f} - {min(high, 1):.2f}   {len(mine):6} {expected:9.1%} {right:7.1%} {'#' * round(30 * right)}"
            )
    sure = [ok for p, ok in levels if p >= 0.9]
    print(f"of levels with 0.9 or more {np.mean(sure) if sure else 0:.1%} right; mean gap {gap:.3f}")


def trust_of_others(scan: Scan, every: Sequence[Scan], mirror: Mapping[int, bool]) -> dict[int, Trust]:
    """Return how far both networks can be trusted according to all other scans."""
    return {
        step: replace(
            sum((other.counts[step] for other in every if other is not scan and step in other.counts), Trust()),
            mirror=mirror[step],
        )
        for step in STEPS
    }


def count_wrong_names(every: Sequence[Scan], mirror: Mapping[int, bool]) -> None:
    """Add to the counts of each scan, if it has any, whether its names are right with the trust measured on the
    others."""
    found = {}
    for k, scan in enumerate(every):
        if FINAL in scan.counts:
            result = name(scan, trust_of_others(scan, every, mirror))
            if any(code for _, code, _ in result.levels):
                found[k] = failure(result.numbering, wrong=not result.right)
    for k, counts in found.items():
        every[k].counts[FINAL] = every[k].counts[FINAL] + counts


def read(row: tuple[str, str, Path, dict[str, Path], bool], move: str = "") -> Scan:
    """Read a scan of ``scans``, moved or as it is."""
    title, group, image, truths, clear = row
    of_image, of_labels = MOVES.get(move, (lambda volume: volume, lambda labels: labels))
    labels = {kind: of_labels(to_ras(read_labels(file))) for kind, file in truths.items()}
    return Scan(title, group, pipeline.prepare(of_image(to_ras(read_image(image)))), labels, clear)


def renamed(before: LabelArray, after: LabelArray) -> bool:
    """Return whether most of a bone or disc of one map has the name of another bone or disc in the other map."""
    for one, other in ((before, after), (after, before)):
        present = set(np.unique(one).tolist())
        for kind in ({*VERTEBRAE, SACRUM}, set(DISCS)):
            for code in kind & present:
                there = int(np.bincount(other[one == code]).argmax())
                if there != code and there in kind:
                    return True
    return False


def show(result: Result, move: str = "") -> None:
    """Print the names of a scan."""
    wrong = [f"{NAME_OF[true]} named {NAME_OF.get(code, 'nothing')}" for true, code, _ in result.levels if true != code]
    known = result.numbering
    print(
        f"{result.name[:26]:26} {move + ' ' if move else ''}{known.certainty:9} {known.probability:.3f} "
        f"{sum(t == c for t, c, _ in result.levels):2} of {len(result.levels):2} {'; '.join(wrong[:2])}",
        flush=True,
    )


def named(
    real: Path | None,
    spider: Path | None,
    *,
    weights: Path = STARTER,
    held_out: bool = True,
    write: bool = False,
    moves: Sequence[str] = (),
    keep: Path | None = None,
) -> tuple[list[Result], dict[str, list[tuple[Result, Result]]]]:
    """Name all scans and print each.

    Args:
        real: Folder with images and truth.
        spider: Folder with patients of SPIDER.
        weights: Folder with both steps.
        held_out: Whether to leave out patients on whom the starter weights were trained.
        write: Whether to write the measured trust beside the weights.
        moves: Keys of ``MOVES``.
        keep: Folder of the networks' answers, see ``CachedPredictor``; None to compute all.

    Returns:
        The results, and for each move the results of each scan before and after it.
    """
    models = models_in(weights)
    # A new measurement starts without the previous threshold of the cord.
    trusts = {step: replace(models[step].trust, cord_logit=0.0) if write else models[step].trust for step in STEPS}
    warm = {step: WarmPredictor(models[step], trust=trusts[step]) for step in STEPS}
    networks: dict[int, Predictor] = {step: CachedPredictor(warm[step], keep) if keep else warm[step] for step in STEPS}
    named_scans, rows = [], []
    for row in scans(real, spider, held_out=held_out):
        scan = read(row)
        try:
            draw(scan, networks)
        except NoSpineError as error:
            print(f"{row[0]}: {error}", flush=True)
            continue
        named_scans.append(scan)
        rows.append(row)
    mirror = {step: models[step].trust.mirror for step in STEPS}
    count_wrong_names(named_scans, mirror)
    if write:
        threshold = cord_logit([scan.cord_dice for scan in named_scans if scan.cord_dice is not None])
        for step in STEPS:
            counts = sum((scan.counts[step] for scan in named_scans if step in scan.counts), Trust())
            known = replace(counts, mirror=mirror[step], cord_logit=threshold)
            write_trust(models[step].path, known)
            print(f"step {step}: {known.scans} scans, cord from a logit of {-threshold} on")
    results, moved = [], {move: [] for move in moves}  # type: tuple[list[Result], dict[str, list[tuple[Result, Result]]]]
    for scan, row in zip(named_scans, rows, strict=True):
        others = trust_of_others(scan, named_scans, mirror)
        results.append(name(scan, others))
        show(results[-1])
        for move in moves:
            again = read(row, move)
            draw(again, networks)
            moved[move].append((results[-1], name(again, others)))
            show(moved[move][-1][1], move)
    return results, moved


def moved_table(moved: Mapping[str, Sequence[tuple[Result, Result]]]) -> None:
    """Print how often moves change names, and how certain the changed and the wrong ones are."""
    kinds = ", ".join(CERTAINTIES)
    print(f"\n{'':10} {'changed':>9}  of the changed: {kinds:28} of the wrong: {kinds}")
    for move, pairs in moved.items():
        back = MOVES[move][1]
        changed, wrong = [], []
        for before, after in pairs:
            assert before.codes is not None and after.codes is not None
            if renamed(before.codes, back(Volume(after.codes, np.eye(4))).data):
                changed.append(after)
            if after.clear and not after.right:
                wrong.append(after)
        counts = [
            "  ".join(f"{sum(r.numbering.certainty == c for r in some):9}" for c in CERTAINTIES)
            for some in (changed, wrong)
        ]
        print(f"{move:10} {share(len(changed), len(pairs)):>9}  {counts[0]:42} {counts[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, help="folder with images and truth")
    parser.add_argument("--spider", type=Path, help="folder with NNN_image and NNN_label")
    parser.add_argument(
        "--weights", type=Path, default=STARTER, help="folder with both steps (default: the starter weights)"
    )
    parser.add_argument(
        "--all-patients", action="store_true", help="also patients of SPIDER on whom the starter weights were trained"
    )
    parser.add_argument("--write-trust", action="store_true", help="write trust.json beside the weights")
    parser.add_argument("--moved", action="store_true", help="also name each scan shifted and mirrored")
    parser.add_argument("--keep", type=Path, help="folder of the networks' answers, which are not computed again")
    arguments = parser.parse_args()
    results, moved = named(
        arguments.real,
        arguments.spider,
        weights=arguments.weights,
        held_out=not arguments.all_patients,
        write=arguments.write_trust,
        moves=list(MOVES) if arguments.moved else (),
        keep=arguments.keep,
    )
    table(results)
    reliability(results)
    if moved:
        moved_table(moved)


if __name__ == "__main__":
    main()
