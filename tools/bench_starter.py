"""Measure the starter weights: unseen synthetic spines, and real scans with labels if a folder is given.

    python tools/bench_starter.py --cases 14
    python tools/bench_starter.py --cases 0 --real FOLDER --pictures PICTURES

Real scans are only measured: they are never used to choose or train weights.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.spatial import cKDTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from starter_evaluation import EVALUATION_SEED, SpineScore, evaluate_starter, is_flagged  # noqa: E402

from totalspineseg_server import anatomy, pipeline  # noqa: E402
from totalspineseg_server.agreement import dice_by_group, score_case  # noqa: E402
from totalspineseg_server.errors import NoSpineError  # noqa: E402
from totalspineseg_server.geometry import Volume  # noqa: E402
from totalspineseg_server.nnunet.model_folder import ModelFolder  # noqa: E402
from totalspineseg_server.nnunet.predictor import WarmPredictor  # noqa: E402
from totalspineseg_server.nnunet.starter_plans import STARTER_FOLDERS  # noqa: E402
from totalspineseg_server.preview import Plane, course_of, save_picture  # noqa: E402
from totalspineseg_server.synthesis import Field  # noqa: E402

STARTER = ROOT / "apps" / "totalspineseg" / "model" / "starter"
CORDS = {
    "cervical_t1_crop": ("t1w.nii.gz", "t1w_seg-manual.nii.gz"),
    "cervical_t2_crop": ("t2.nii.gz", "t2_seg-manual.nii.gz"),
    "cervicothoracic_t2_b": ("t2.nii.gz", "t2_manual_segmentation.nii.gz"),
    "whole_spine_template_t2": ("PAM50_small_t2.nii.gz", "PAM50_small_cord.nii.gz"),
}
DISCS = {"lumbar_t2_discs": ("image.nii.gz", "gt_tss_values.nii.gz")}
POINTS = {
    "whole_spine_template_t2": ("PAM50_small_t2.nii.gz", "PAM50_small_label_disc.nii.gz"),
}
"""Discs marked by a voxel at their back edge, with SCT's numbers."""
CENTERS = {
    "cervicothoracic_t2_a": ("t2.nii.gz", "labels.nii.gz"),
    "cervical_t2_crop": ("t2.nii.gz", "labels.nii.gz"),
    "cervicothoracic_t2_b": ("t2.nii.gz", "t2_landmarks_C2_T2_center.nii.gz"),
}
"""Vertebrae marked by a voxel in their middle or in the cord behind it, counted from C1 = 1."""
IMAGES = {name: files[0] for sets in (CORDS, DISCS, POINTS, CENTERS) for name, files in sets.items()} | {
    "thoracolumbar_t2": "t2_lumbar.nii.gz"
}
"""Name -> image of every scan, including those without labels."""
REACH_MM = 10.0
"""A marked level counts as found if a level of its kind is labeled this near; a disc is 5 to 12 mm high."""


def show(case: SpineScore) -> None:
    result, flag = case.result, " (flagged)" if case.flagged else ""
    print(
        f"{case.field}, {case.contrast}, {case.column}: {result.levels_found} of {result.levels} levels found, "
        f"{result.levels_right} named right{flag}, {case.seconds:.1f} s",
        flush=True,
    )


@cache
def segment(path: Path, one: WarmPredictor, two: WarmPredictor) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return step-1 codes and final codes on the grid of the file, and whether the names are flagged."""
    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    scan = pipeline.prepare(Volume(data, image.affine))
    empty = np.zeros(data.shape, np.uint8)
    try:
        located = pipeline.locate(scan, one)
    except NoSpineError:
        return empty, empty, True
    first = scan.labels_to_input(located.labels)
    try:
        result = pipeline.finish(located, two)
    except NoSpineError:
        return first, empty, True
    return first, scan.labels_to_input(result.labels), is_flagged(result, scan.iso.spacing)


def annotation(path: Path) -> tuple[np.ndarray, float]:
    """Return an annotator's label, and the volume of a voxel, mm^3."""
    image = nib.load(path)
    return np.asarray(image.dataobj), float(np.prod(image.header.get_zooms()[:3]))


def real(folder: Path, one: WarmPredictor, two: WarmPredictor) -> None:
    print("\n| real scan | structure | Dice, step 1 | Dice, result | found | named right | flagged |")
    print("|---|---|---|---|---|---|---|")
    for name, (image, mask) in CORDS.items():
        first, last, flagged = segment(folder / name / image, one, two)
        truth, voxel_mm3 = annotation(folder / name / mask)
        cord = np.where(truth > 0, anatomy.CORD, anatomy.BACKGROUND).astype(np.uint8)
        scores = [dice_by_group(cord, found, voxel_mm3=voxel_mm3)["cord"] for found in (first, last)]
        print(f"| {name} | cord | {scores[0]:.2f} | {scores[1]:.2f} | | | {'yes' if flagged else 'no'} |", flush=True)
    for name, (image, mask) in DISCS.items():
        first, last, flagged = segment(folder / name / image, one, two)
        truth, voxel_mm3 = annotation(folder / name / mask)
        discs = np.where(np.isin(truth, anatomy.DISCS), truth, anatomy.BACKGROUND).astype(np.uint8)
        before, after = (score_case(discs, found, voxel_mm3=voxel_mm3) for found in (first, last))
        found, right = (f"{count} of {after.levels}" for count in (after.levels_found, after.levels_right))
        dice = f"{before.dice['discs']:.2f} | {after.dice['discs']:.2f}"
        print(f"| {name} | discs | {dice} | {found} | {right} | {'yes' if flagged else 'no'} |", flush=True)
    sct = {value: code for code, value in anatomy.LEVEL_POINT.items()}
    centers = dict(enumerate(anatomy.column().vertebrae, start=1))
    for sets, names, kind in ((POINTS, sct, anatomy.DISCS), (CENTERS, centers, anatomy.VERTEBRAE)):
        for name, (image, points) in sets.items():
            _, last, flagged = segment(folder / name / image, one, two)
            count, seen, right = marked(folder / name / points, last, names, kind)
            what = "marked discs" if kind is anatomy.DISCS else "marked vertebrae"
            row = f"{seen} of {count} | {right} of {count} | {'yes' if flagged else 'no'}"
            print(f"| {name} | {what} | | | {row} |", flush=True)


def pictures(folder: Path, out: Path, one: WarmPredictor, two: WarmPredictor) -> None:
    """Save each real scan beside its result, along the canal."""
    out.mkdir(parents=True, exist_ok=True)
    for name, file in IMAGES.items():
        image = nib.load(folder / name / file)
        volume = Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)
        _, labels, _ = segment(folder / name / file, one, two)
        save_picture(out / f"{name}.png", beside(volume, labels))


def beside(volume: Volume, labels: np.ndarray) -> np.ndarray:
    """Return the plain image beside the same plane with the labels; the middle plane if there are no labels."""
    plane = Plane(volume, course_of(labels, volume.grid), sagittal=True)
    pair = plane.picture(None), plane.picture(labels)
    high = max(map(len, pair))  # Tags may need room below the picture.
    return np.concatenate([np.pad(rgb, ((0, high - len(rgb)), (0, 0), (0, 0))) for rgb in pair], axis=1)


def marked(path: Path, found: np.ndarray, names: dict[int, int], kind: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how many levels are marked by points, how many of these are found, and how many the nearest label names
    right."""
    image = nib.load(path)
    points = np.asarray(image.dataobj)
    voxels = np.argwhere(np.isin(found, kind))
    if not voxels.size:
        return int((points > 0).sum()), 0, 0
    near = cKDTree(nib.affines.apply_affine(image.affine, voxels))
    marks = np.argwhere(points > 0)
    distance, index = near.query(nib.affines.apply_affine(image.affine, marks))
    seen = distance <= REACH_MM
    right = [
        bool(hit) and found[tuple(voxels[k])] == names[int(points[tuple(mark)])]
        for hit, k, mark in zip(seen, index, marks, strict=True)
    ]
    return len(marks), int(seen.sum()), sum(right)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the starter weights.")
    parser.add_argument("--weights", type=Path, default=STARTER, help="starter folder")
    parser.add_argument("--cases", type=int, default=14, help="synthetic spines")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--real", type=Path, help="folder of real scans with labels")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each real scan with its result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.pictures and not options.real:
        parser.error("--pictures needs real scans. Give their folder with --real.")
    torch.set_num_threads(options.threads)
    if options.cases:
        report = evaluate_starter(
            options.weights, n=options.cases, seed=options.seed, device=options.device, progress=show
        )
        print("\n" + report.table())
        print(
            f"\nThe whole pipeline, {options.device}, {options.threads} threads: {report.seconds():.1f} s a scan, "
            f"{report.seconds(Field.WHOLE):.1f} s a whole spine (mean)"
        )
    if options.real:
        one, two = (
            WarmPredictor(ModelFolder.open(options.weights / STARTER_FOLDERS[s], step=s), device=options.device)
            for s in (1, 2)
        )
        real(options.real, one, two)
        if options.pictures:
            pictures(options.real, options.pictures, one, two)


if __name__ == "__main__":
    main()
