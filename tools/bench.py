"""Measure time and peak memory of every stage on a synthetic whole spine, without the networks.

The networks are replaced by predictions prepared in advance (perfect classes with ragged borders, so that components,
joins and remnants have work to do); what is measured is everything else. Peak memory is what numpy and Python allocate
within a stage, in addition to what was in memory after the scan had been loaded.
"""

import argparse
import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from totalspineseg_server.geometry import Grid  # noqa: E402
from totalspineseg_server.io.volumes import read_image, write_volume  # noqa: E402
from totalspineseg_server.numbering.naming import step1_names  # noqa: E402
from totalspineseg_server.pipeline import locate, prepare, segment, step2_input  # noqa: E402
from totalspineseg_server.prediction import Prediction  # noqa: E402
from totalspineseg_server.preview import mid_sagittal, save_picture  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402
from totalspineseg_server.synthesis.synthetic_spine import (  # noqa: E402
    Field,
    SpineOptions,
    random_spine,
    step1_classes,
    step2_classes,
)

MIB = 2**20
SHAPE = (120, 180, 560)
NATIVE_MM = 0.8


class Prepared:
    """A predictor with a prepared prediction."""

    version = "prepared"

    def __init__(self, classes: np.ndarray, soft: dict[str, np.ndarray]) -> None:
        self.classes, self._soft = classes, soft

    def predict(self, channels: np.ndarray, *, soft: Collection[str] = ()) -> Prediction:
        """Return the prepared prediction."""
        return Prediction(self.classes, {name: self._soft[name] for name in soft})


class Table:
    """Collects one row for each stage."""

    def __init__(self, memory: bool) -> None:
        self.rows: dict[str, tuple[float, float]] = {}
        self.memory = memory

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Measure one stage."""
        if self.memory:
            tracemalloc.reset_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1] / MIB if self.memory else 0.0
        self.rows[stage] = (seconds, peak)


def ragged(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return classes with ragged borders: voxels with a high value of smooth noise get the value of a neighbor."""
    noise = ndimage.gaussian_filter(rng.standard_normal(classes.shape).astype(np.float32), 1.5)
    moved = np.roll(classes, 1, axis=1)
    return np.where(noise > 0.12, moved, classes)


def fit(values: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Crop or pad each axis of an image or a map, centered on the labels, to the shape of the benchmark."""
    result = np.zeros(shape, values.dtype)
    source, target = [], []
    for axis, (have, want) in enumerate(zip(labels.shape, shape, strict=True)):
        middle = int(np.nonzero(labels)[axis].mean()) if have > want else have // 2
        start = min(max(middle - want // 2, 0), max(have - want, 0))
        n = min(have, want)
        offset = (want - n) // 2
        source.append(slice(start, start + n))
        target.append(slice(offset, offset + n))
    result[tuple(target)] = values[tuple(source)]
    return result


def run(path: Path, out: Path, networks: tuple[Prepared, Prepared], memory: bool) -> dict[str, tuple[float, float]]:
    """Run one request without its networks; peak memory counts from the loaded image."""
    table = Table(memory)
    if memory:
        tracemalloc.start()
    with table.clock("load .nii.gz"):
        image = read_image(path)
    held = tracemalloc.get_traced_memory()[0] / MIB if memory else 0.0
    step1, step2 = networks
    scan = prepare(image, clock=table.clock)
    located = locate(scan, step1, clock=table.clock)
    part = step2_input(scan, located.labels, step1_names(located.labels, located.numbering), clock=table.clock)
    whole = step2.classes
    result = segment(part, Prepared(whole[part.box], {}), clock=table.clock)
    with table.clock("labels to the input grid"):
        labels = scan.labels_to_input(result.labels)
    with table.clock("soft maps to the input grid"):
        scan.soft_to_input(located.soft_cord)
        scan.soft_to_input(located.soft_canal)
    with table.clock("points to the input grid"):
        scan.points_to_input(located.levels)
    with table.clock("write .nrrd"):
        write_volume(out / "labels.nrrd", labels, scan.grid)
    with table.clock("preview"):
        save_picture(out / "preview.jpg", mid_sagittal(scan.iso, result.labels))
    if memory:
        tracemalloc.stop()
    return {stage: (seconds, max(0.0, peak - held)) for stage, (seconds, peak) in table.rows.items()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs timed; the median is printed")
    arguments = parser.parse_args()
    rng = np.random.default_rng(7)
    spine = random_spine(rng, SpineOptions(field=Field.WHOLE, thoracic=12, lumbar=5))
    labels = fit(spine.labels, spine.labels, SHAPE)
    soft = {"canal": rng.random(SHAPE, np.float32), "cord": rng.random(SHAPE, np.float32)}
    networks = Prepared(ragged(step1_classes(labels), rng), soft), Prepared(ragged(step2_classes(labels), rng), {})
    native = tuple(round(n / NATIVE_MM) for n in SHAPE)
    grid = Grid((native[0], native[1], native[2]), np.diag([NATIVE_MM, NATIVE_MM, NATIVE_MM, 1.0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        values = (ndimage.zoom(labels, 1 / NATIVE_MM, order=0)[: native[0], : native[1], : native[2]] * 8).astype(
            np.int16
        )
        write_volume(path, values + rng.integers(0, 200, values.shape, dtype=np.int16), grid)
        del values
        run(path, Path(folder), networks, memory=False)
        timed = [run(path, Path(folder), networks, memory=False) for _ in range(arguments.repeat)]
        gc.collect()
        peaks = run(path, Path(folder), networks, memory=True)
    print(f"synthetic whole spine, {SHAPE} at 1 mm, scan {native} at {NATIVE_MM} mm, networks left out")
    print(f"{'stage':<32}{'seconds':>9}{'peak MiB above the image':>27}")
    total = 0.0
    for stage in timed[0]:
        if "network" in stage:
            continue
        seconds = float(np.median([row[stage][0] for row in timed]))
        total += seconds
        print(f"{stage:<32}{seconds:>9.3f}{peaks[stage][1]:>27.0f}")
    print(f"{'all':<32}{total:>9.3f}{max(peak for _, peak in peaks.values()):>27.0f}")
    return 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
