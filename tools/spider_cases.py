"""Make training cases from slabs of the SPIDER data set, for ``totalspineseg train-starter --real``.

    python tools/spider_cases.py SLABS CASES            # the patients used for training
    python tools/spider_cases.py SLABS CASES --held-out # those held out, by which weights are chosen and reported

A slab is NNN_image.nii.gz with NNN_label.nii.gz: 1 disc, 2 vertebra with its processes, 3 canal with the cord inside.
Names are counted upward from the lowest disc, which is on the sacrum. Nothing is learned about what SPIDER does not
show: whether the sacrum is below that disc, whether the canal above L3 contains cord, where the canal ends below, and
what is above the topmost disc. That there is no disc below the lowest one is known, and learned.

Source: van der Graaf et al., Lumbar spine segmentation in MR images, Sci Data 2024; Zenodo 10159290; CC BY 4.0.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CODE_OF, CORD, SACRUM, UNREVIEWED, column  # noqa: E402
from totalspineseg_server.errors import TotalSpineSegError  # noqa: E402
from totalspineseg_server.geometry import LabelArray, Volume, on_grid, to_ras  # noqa: E402
from totalspineseg_server.io.volumes import read_image, read_labels  # noqa: E402
from totalspineseg_server.nnunet.real_spines import SUFFIX, save_case  # noqa: E402

PATIENTS: Final = ROOT / "tools" / "spider_patients.csv"
"""List of patients: who is used for training, who is held out and why, and whose names are uncertain."""
DISC, VERTEBRA, WHOLE_CANAL = 1, 2, 3
"""Values of a slab's labels."""
SMALLEST_DISC: Final = 0.15
"""Smallest volume of a disc, as a share of the median volume; smaller pieces are not separate discs."""
PROCESS_DROP: Final = 0.45
"""How much lower a spinous process is than its body, as a share of the distance between discs."""
CONUS_ABOVE: Final = "L3"
"""Vertebra above which the cord of nearly all adults ends."""
FACET_MM: Final = 10.0
"""How far the first sacral joints reach above the back edge of the lowest disc."""
PROMONTORY_MM: Final = 6.0
"""Largest distance that the sacrum reaches in front of the lowest disc."""
TOUCH_MM, TOUCH_SHARE, ENDPLATE_MM = 1.2, 0.1, 1.8
"""Masks of discs touch the bodies if more than this share of them is nearer than the first distance to a body, as in
four of the 25 patients; the others leave out the endplates, which reach as far as the last distance."""


@dataclass(frozen=True)
class Patient:
    """A line of the list of patients.

    Attributes:
        number: Three digits, as in the files' names.
        held_out: Whether the patient is kept out of training.
        sure: Whether counting from the lowest disc gives the right names.
        note: Observations, and the reason for the choice.
    """

    number: str
    held_out: bool
    sure: bool
    note: str


@dataclass(frozen=True)
class Discs:
    """Discs from the lowest upward.

    Attributes:
        masks: One mask for each disc, bool (X, Y, Z).
        centers: Voxels, (N, 3).
        slope: Rise of each disc's plane toward the front.
    """

    masks: tuple[NDArray[np.bool_], ...]
    centers: NDArray[np.float64]
    slope: NDArray[np.float64]

    def plane(self, which: int, shape: tuple[int, int, int]) -> NDArray[np.float64]:
        """Return the height of a disc's plane for each y, voxels; (1, Y, 1)."""
        center = self.centers[which]
        return (center[2] + self.slope[which] * (np.arange(shape[1]) - center[1]))[None, :, None]


def read_patients(path: Path = PATIENTS) -> tuple[Patient, ...]:
    """Return the list of patients."""
    rows = [line.split(",", 3) for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
    return tuple(Patient(number, group == "held out", names == "sure", note) for number, group, names, note in rows)


def find_discs(label: LabelArray) -> Discs:
    """Separate the discs of a slab.

    Raises:
        TotalSpineSegError: The slab has fewer than two discs.
    """
    pieces, count = ndimage.label(label == DISC, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    large = [k + 1 for k in range(count) if sizes[k] >= SMALLEST_DISC * np.median(sizes)]
    if len(large) < 2:
        raise TotalSpineSegError(f"The slab has {len(large)} discs. Two or more are needed to name the levels.")
    places = {k: np.argwhere(pieces == k) for k in large}
    upward = sorted(large, key=lambda k: places[k][:, 2].mean())
    slope = [np.polyfit(places[k][:, 1], places[k][:, 2], 1)[0] for k in upward]
    centers = np.array([places[k].mean(0) for k in upward])
    return Discs(tuple(pieces == k for k in upward), centers, np.clip(slope, -1.2, 1.2))


def name_levels(label: LabelArray, discs: Discs) -> LabelArray:
    """Return codes of a slab: discs counted upward from the lowest, bodies between them, processes half a level lower.

    Args:
        label: uint8 (X, Y, Z), RAS, values of a slab. Not modified.
        discs: Discs of the slab.
    """
    plan = column()
    codes = np.zeros(label.shape, np.uint8)
    for mask, code in zip(discs.masks, reversed([d for d in plan.discs if d is not None]), strict=False):
        codes[mask] = code
    height, front = discs.centers[:, 2], discs.centers[:, 1]
    rows = np.arange(label.shape[2])
    middle, tilt = np.interp(rows, height, front), np.interp(rows, height, discs.slope)
    voxels = np.argwhere(label == VERTEBRA)
    ahead = voxels[:, 1] - middle[voxels[:, 2]]
    level = voxels[:, 2] - tilt[voxels[:, 2]] * ahead  # Follow the tilt of the nearby discs.
    behind = voxels[:, 1] < _canal_middle(label)[voxels[:, 2]]
    level = np.where(
        behind, voxels[:, 2] + PROCESS_DROP * np.median(np.diff(height)) - 0.5 * tilt[voxels[:, 2]] * ahead, level
    )
    names = np.array([BACKGROUND, *reversed(plan.vertebrae)], np.uint8)
    codes[tuple(voxels.T)] = names[np.maximum(np.searchsorted(height, level), 1)]
    pieces = np.zeros(label.shape, bool)
    pieces[tuple(voxels[behind].T)] = True
    codes = _whole_processes(codes, pieces, tallest=1.5 * float(np.median(np.diff(height))))
    codes[label == WHOLE_CANAL] = CANAL
    return codes


def _whole_processes(codes: LabelArray, pieces: NDArray[np.bool_], *, tallest: float) -> LabelArray:
    """Give each piece behind the canal a single name in each sagittal slice, unless it is taller than a process."""
    out = codes.copy()
    for x in range(codes.shape[0]):
        numbered, _ = ndimage.label(pieces[x])
        for number, place in enumerate(ndimage.find_objects(numbered), start=1):
            if place[1].stop - place[1].start <= tallest:
                inside = numbered[place] == number
                out[x][place][inside] = np.bincount(codes[x][place][inside]).argmax()
    return out


def _canal_middle(label: LabelArray) -> NDArray[np.float64]:
    """Return the front-to-back middle of the canal in each slice, voxels; interpolated in slices without canal."""
    canal = label == WHOLE_CANAL
    seen = np.flatnonzero(canal.any((0, 1)))
    if not seen.size:
        raise TotalSpineSegError("The slab shows no canal. Processes cannot be distinguished from bodies.")
    middle = [np.argwhere(canal[:, :, k])[:, 1].mean() for k in seen]
    return np.asarray(np.interp(np.arange(label.shape[2]), seen, middle))


def read_twice(
    codes: LabelArray, discs: Discs, spacing_mm: tuple[float, ...], *, sure: bool
) -> tuple[LabelArray, LabelArray]:
    """Return two readings of a slab: what each voxel is, and what else it may be.

    Args:
        codes: From ``name_levels``. Not modified.
        discs: Discs of the slab.
        spacing_mm: Voxel size.
        sure: Whether the names are right; otherwise every named landmark may be another disc.

    Returns:
        Two maps of uint8 codes; a region is known where they agree on it. ``UNREVIEWED`` where nothing is known.
    """
    plan, shape = column(), codes.shape
    first, second = codes.copy(), codes.copy()
    z = np.arange(shape[2])[None, None, :]
    empty, under = codes == BACKGROUND, _below_lowest(discs, shape, spacing_mm)
    second[empty & under] = SACRUM
    canal = np.flatnonzero((codes == CANAL).any((0, 1)))
    first[empty & under & (z < canal[0] + FACET_MM / spacing_mm[2])] = (
        CANAL  # The label of the canal ends at an arbitrary height.
    )
    last_cord = plan.discs[plan.vertebrae.index(CODE_OF[CONUS_ABOVE]) - 1]
    reach = np.flatnonzero((codes == last_cord).any((0, 1)))
    above = 0 if not sure else reach[0] if reach.size else shape[2]
    second[(codes == CANAL) & (z >= above)] = CORD
    over = empty & (z > discs.plane(len(discs.masks) - 1, shape))
    first[over] = second[over] = UNREVIEWED
    second = _unsure_processes(codes, second, discs)
    if not sure:
        usual, last = plan.discs[-2], plan.discs[-1]
        for code in set(np.unique(codes).tolist()) & {d for d in plan.discs if d is not None} - {last}:
            second[codes == code] = usual
    second[_unsure_endplates(codes, discs, spacing_mm)] = BACKGROUND
    return first, second


def _below_lowest(discs: Discs, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return where the sacrum may be: below the tilted lowest disc, and behind it up to the joints of S1; (1, Y, Z)."""
    y, z = np.arange(shape[1])[None, :, None], np.arange(shape[2])[None, None, :]
    back, front = (float(np.percentile(np.argwhere(discs.masks[0])[:, 1], q)) for q in (3, 97))
    plane = discs.plane(0, shape)
    joints = plane[:, [int(back)], :] + FACET_MM / spacing_mm[2]
    top = np.where(y < back, np.minimum(plane, joints), plane)
    return np.asarray((z < top) & (y < front + PROMONTORY_MM / spacing_mm[1]))


def _unsure_processes(codes: LabelArray, second: LabelArray, discs: Discs) -> LabelArray:
    """Let processes above the second disc from the top also belong to the vertebra above, because SPIDER mixes them
    up."""
    vertebrae = column().vertebrae
    canal = (codes == CANAL).any(0)
    front = canal.shape[0] - 1 - np.argmax(canal[::-1], axis=0)
    behind = np.arange(codes.shape[1])[None, :, None] < front[None, None, :]
    top = np.arange(codes.shape[2])[None, None, :] > discs.centers[-2][2]
    out = second.copy()
    for upper, lower in itertools.pairwise(vertebrae):
        out[(codes == lower) & behind & top] = upper
    return out


def _unsure_endplates(codes: LabelArray, discs: Discs, spacing_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return the parts of discs that are endplates for most patients, if the discs of this one touch the bodies."""
    away = ndimage.distance_transform_edt(~np.isin(codes, column().vertebrae), sampling=spacing_mm)
    touching = np.median([np.mean(away[mask] < TOUCH_MM) for mask in discs.masks])
    every = np.any(discs.masks, axis=0)
    return np.asarray(every & (away < ENDPLATE_MM) & (touching > TOUCH_SHARE))


@dataclass(frozen=True)
class Slab:
    """A patient's slab with names.

    Attributes:
        image: Nearest RAS.
        codes: From ``name_levels``.
        readings: From ``read_twice``.
    """

    image: Volume
    codes: LabelArray
    readings: tuple[LabelArray, LabelArray]


def read_slab(slabs: Path, number: str, *, sure: bool) -> Slab:
    """Read a patient's slab, and name the structures in its masks.

    Args:
        slabs: Folder of the slabs.
        number: Number of the patient.
        sure: See ``read_twice``.

    Raises:
        TotalSpineSegError: The slab cannot be read or named.
    """
    image, label = (
        to_ras(read(slabs / f"{number}_{part}.nii.gz"))
        for read, part in ((read_image, "image"), (read_labels, "label"))
    )
    label = on_grid(label, image.grid)
    discs = find_discs(label.data)
    codes = name_levels(label.data, discs)
    return Slab(image, codes, read_twice(codes, discs, image.spacing, sure=sure))


def write_case(slabs: Path, out: Path, patient: Patient) -> None:
    """Write one patient's case.

    Raises:
        TotalSpineSegError: The slab cannot be read or named.
    """
    slab = read_slab(slabs, patient.number, sure=patient.sure)
    save_case(out / f"spider_{patient.number}{SUFFIX}", slab.image.data, *slab.readings, slab.image.spacing)


def main() -> int:
    """Write the cases; return 1 if one had to be left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slabs", type=Path, help="folder of NNN_image.nii.gz and NNN_label.nii.gz")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--held-out", action="store_true", help="write the held-out patients instead of the others")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    patients = [p for p in read_patients() if p.held_out == arguments.held_out]
    left_out = 0
    for patient in patients:
        try:
            write_case(arguments.slabs, arguments.out, patient)
        except (TotalSpineSegError, OSError) as error:
            print(f"Left out {patient.number}: {error}", file=sys.stderr)
            left_out += 1
    print(f"{len(patients) - left_out} of {len(patients)} cases written to {arguments.out}")
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
