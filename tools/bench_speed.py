"""Time nnU-Net's own predictor beside ours (`make bench-speed`), with one faster way after the other switched on.

    .venv/bin/python tools/bench_speed.py [FOLDER] [--full] [--threads 2] [--repeats 3]
    .venv/bin/python tools/bench_speed.py --labels SCAN ...     # instead, which labels leaving out air or a box changes

Networks: the starter weights, and random weights of the official shape (256 x 256 x 48 voxels, 141 million
parameters). Random networks find nothing, so every answer is replaced by the true classes of a synthetic scan; the
amount of work is the same. Three scans of an average body at 1 mm: lumbar, whole spine, and the whole spine with 60
mm of air around it.

- "stock": nnUNetPredictor, PyTorch in float32, no mirroring, tiles that overlap by half, networks alone;
- "ours": from the file of the image to the file of the labels, with everything between and after the networks;
- "box", "air", "runtime", "INT8": ours with the box around the spine, then without air, then with the faster of PyTorch
  and OpenVINO, then with whole numbers.

A stock tile takes 13 seconds, so only some rows run from end to end; the others count their tiles (with networks that
do nothing) and multiply them by the seconds of a tile of the lumbar scan with the same runtime, which runs from end to
end with each. Besides, tiles of all runtimes are timed alternately in one process. ``--full`` runs every row (about an
hour). Each row is a process of its own, whose largest memory is measured. FOLDER keeps networks, conversions and scans
for the next run (3 GB; the first run takes ten minutes longer), and the figures (speed.json). Run it without other
work.

``--labels`` compares label maps instead of times, scan by scan, with the starter weights: first with their tiles
changed to those of the official networks, then with their own ones.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import local_server
import numpy as np
import torch
from bench import fit
from bench_official import official_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from totalspineseg_server import pipeline
from totalspineseg_server.agreement import score_case
from totalspineseg_server.files import read_json, write_json
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.nnunet.discovery import STEP_CHANNELS
from totalspineseg_server.nnunet.fast_comparison import labels_of
from totalspineseg_server.nnunet.fast_ways import INT8, processor
from totalspineseg_server.nnunet.focus import FocusedPredictor
from totalspineseg_server.nnunet.installation import STEP1_PATCH
from totalspineseg_server.nnunet.model_folder import ModelFolder, models_in
from totalspineseg_server.nnunet.networks import coarse_look
from totalspineseg_server.nnunet.openvino_network import keep_int8, load_openvino
from totalspineseg_server.nnunet.predictor import TILE_STEP, EarlierTiles, WarmPredictor
from totalspineseg_server.nnunet.preprocessing import Box, FloatArray, resample
from totalspineseg_server.nnunet.runtimes import Runtime
from totalspineseg_server.nnunet.tiles import Row, Rows, whole_row
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.numbering.naming import step1_names
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.processes import unwind_on_signals
from totalspineseg_server.registry.model_store import STARTER, ModelStore
from totalspineseg_server.synthesis import (
    Field,
    RenderOptions,
    SpineOptions,
    random_spine,
    render,
    step1_classes,
    step2_classes,
)

SEED: Final = 11
AIR_MM: Final = 60
SHRINKS: Final = 16
"""The starter networks take tiles whose sides are multiples of this number of voxels."""
NOISE: Final = 0.02
"""Noise in air, as a share of the brightest tissue."""
BRIGHTEST: Final = 1000
"""Value of the brightest tissue in the files."""
SCANS: Final[Mapping[str, tuple[Field, tuple[int, int, int]]]] = {
    "lumbar": (Field.LUMBAR, (80, 220, 220)),
    "whole": (Field.WHOLE, (120, 180, 560)),
    "air": (Field.WHOLE, (120, 180, 560)),
}
TITLES: Final = {
    "lumbar": "lumbar, 80 x 220 x 220 mm",
    "whole": "whole spine, 120 x 180 x 560 mm",
    "air": f"the same with {AIR_MM} mm of air around",
}
WAYS: Final = ("stock", "ours", "box", "air", "runtime", "int8")
TILES: Final = ("official", "own")
STARTER_WAYS: Final = ("stock", "ours", "runtime")
RUNTIMES: Final = ("stock", "torch", "openvino", "openvino-int8")
NOTHING: Final = -100.0
"""Logit of the random networks: they find nothing."""
MEASURED: Final = {
    ("lumbar", "stock"): 1,
    ("lumbar", "ours"): 1,
    ("lumbar", "runtime"): 1,
    ("lumbar", "int8"): 2,
    ("whole", "int8"): 1,
    ("whole", "runtime"): 1,
    ("air", "int8"): 1,
}
"""Rows of the official shape that run from end to end without ``--full``, and how often."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=local_server.ROOT / "bench" / "speed", metavar="FOLDER")
    parser.add_argument("--full", action="store_true", help="run every row from end to end")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="how often a tile is timed")
    parser.add_argument("--prepare", action="store_true", help="make networks, conversions and scans, and stop")
    parser.add_argument("--show", action="store_true", help="print the tables of the last run")
    parser.add_argument("--labels", type=Path, nargs="+", metavar="SCAN", help="compare the label maps of these scans")
    parser.add_argument(
        "--tiles", choices=TILES, nargs="+", default=list(TILES), help="tiles for --labels (default: both)"
    )
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.alone:
        torch.set_num_threads(arguments.threads)
        torch.manual_seed(SEED)
        task, *words = arguments.alone
        print(json.dumps(TASKS[task](folder, arguments.repeats, *words)))
        return 0
    if arguments.labels:
        torch.set_num_threads(arguments.threads)
        compare_labels(arguments.labels, arguments.tiles)
        return 0
    if not arguments.show:
        for words in (("scans",), *((task, step) for step in "12" for task in ("network", "convert", "quantize"))):
            alone(arguments, *words)
        if arguments.prepare:
            return 0
        measure(arguments)
    show(read_json(folder / "speed.json"))
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Run all rows, and write the figures; what is done already is on disk after an interruption."""
    start = time.perf_counter()
    found: dict[str, Any] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "nnunet": metadata.version("nnunetv2"),
        "load_at_start": os.getloadavg()[0],
        "tiles": {},
        "rows": [],
    }

    def done(key: str, value: Any) -> None:
        if key == "rows":
            found["rows"].extend(value)
        else:
            found[key] = value
        found["minutes"] = round((time.perf_counter() - start) / 60, 1)
        write_json(arguments.folder / "speed.json", found)

    counted = {scan: alone(arguments, "count", scan) for scan in SCANS}
    done("tiles", {name: alone(arguments, "tiles", name) for name in ("starter1", "starter2", "official1")})
    faster = min(("torch", "openvino"), key=found["tiles"]["official1"]["seconds"].__getitem__)
    starter_faster = min(("torch", "openvino"), key=found["tiles"]["starter1"]["seconds"].__getitem__)
    done("runtime", faster)
    a_tile: dict[str, float] = {}
    for scan in SCANS:
        for way in WAYS:
            repeats = 1 if arguments.full and (scan, way) not in MEASURED else MEASURED.get((scan, way), 0)
            runtime = runtime_of(way, faster, stock="stock")
            if repeats:
                row = alone(arguments, "row", "official", scan, way, faster, str(repeats))
                a_tile.setdefault(runtime, (row["seconds"] - row["rest"]) / sum(row["tiles"]))
            else:
                row = dict(counted[scan]["air" if way in ("runtime", "int8") else way])
                row["seconds"] = row["rest"] + a_tile[runtime] * sum(row["tiles"])
            done("rows", [{"weights": "official", "scan": scan, "way": way, **row}])
    for scan in ("lumbar", "whole"):
        for way in STARTER_WAYS:
            row = alone(arguments, "row", "starter", scan, way, starter_faster, "2")
            done("rows", [{"weights": "starter", "scan": scan, "way": way, **row}])
    done("load_at_end", os.getloadavg()[0])


def alone(arguments: argparse.Namespace, *words: str) -> Any:
    """Run a task in a process of its own, and return what it printed last."""
    print(f"{time.strftime('%H:%M:%S')} {' '.join(words)}", file=sys.stderr, flush=True)
    options = ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats), "--alone", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, str(arguments.folder), *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False, env=environment)
    if result.returncode:
        sys.exit(f"'{' '.join(words)}' failed with exit code {result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


# What follows runs in a process of its own.


def copy_starter(folder: Path) -> None:
    """Copy the starter weights, once."""
    if not (folder / "app").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        local_server.own_app(folder / "app", STARTER)


def make_scans(folder: Path, _: int, *names: str) -> None:
    """Write image and true classes of some or all scans, once; and copy the starter weights."""
    copy_starter(folder)
    for name in names or SCANS:
        field, shape = SCANS[name]
        file = folder / f"{name}.npz"
        if file.is_file():
            continue
        rng = np.random.default_rng(SEED)
        options = SpineOptions(field=field, thoracic=12, lumbar=5, width_mm=shape[0], depth_mm=shape[1], jitter=0)
        spine = random_spine(rng, options)
        image = fit(render(rng, spine, RenderOptions(contrast="T2", strength=0.5)), spine.labels, shape)
        labels = fit(spine.labels, spine.labels, shape)
        if name == "air":
            labels = np.pad(labels, AIR_MM)
            noise = rng.standard_normal((2, *labels.shape), np.float32) * NOISE * np.percentile(image, 99)
            image = np.hypot(np.pad(image, AIR_MM) + noise[0], noise[1])
        image = np.rint(image * (BRIGHTEST / np.percentile(image, 99))).astype(np.int16)
        write_volume(folder / f"{name}.nii.gz", image, Volume(image, np.eye(4)).grid)
        np.savez(file, step1=step1_classes(labels), step2=step2_classes(labels))


def make_network(folder: Path, _: int, step: str, *patch: str) -> None:
    """Write a network of the official shape (or one with other tiles) that finds nothing, once."""
    target = folder / f"step{step}"
    if (target / "plans.json").is_file():
        return
    model = official_shape(target, model_of(folder, STARTER, int(step)), [int(n) for n in patch] or STEP1_PATCH)
    checkpoint = torch.load(model.checkpoint, weights_only=False)
    for name, value in checkpoint["network_weights"].items():
        if "seg_layers" in name and name.endswith("bias"):
            value.fill_(NOTHING)
    torch.save(checkpoint, model.checkpoint)


def convert(folder: Path, _: int, step: str) -> None:
    """Convert a network for OpenVINO, once."""
    if not list((folder / f"step{step}" / "openvino").glob("*[0-9]")):
        load_openvino(model_of(folder, "official", int(step)))


def quantize(folder: Path, _: int, step: str) -> None:
    """Convert a network to whole numbers, calibrated with one tile of noise, once."""
    model = model_of(folder, "official", int(step))
    if not list((folder / f"step{step}" / "openvino").glob("*-int8")):
        keep_int8(model, [noise_tile(model)])


def time_tiles(folder: Path, repeats: int, name: str) -> dict[str, Any]:
    """Return the median seconds of a tile for each runtime, all timed alternately; and CPU seconds."""
    model = model_of(folder, name[:-1], int(name[-1]))
    tile = noise_tile(model)
    predictor = stock_predictor(model)
    networks: dict[str, Callable[[], Any]] = {
        "stock": lambda: predictor.predict_sliding_window_return_logits(tile[0]),
        "torch": bound(model.load_network(), tile),
        "openvino": bound(load_openvino(model), tile),
    }
    if name.startswith("official"):
        networks[INT8] = bound(load_openvino(model, int8=True), tile)
    times: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in networks}
    with torch.inference_mode():
        # The random networks say no everywhere, so there is nothing to compare.
        compared = ("torch", "openvino") if name.startswith(STARTER) else ()
        signs = [networks[runtime]() > 0 for runtime in compared]
        for _ in range(repeats):
            for runtime, work in networks.items():
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                times[runtime].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "seconds": {runtime: statistics.median(wall for wall, _ in rows) for runtime, rows in times.items()},
        "cpu_seconds": {runtime: statistics.median(cpu for _, cpu in rows) for runtime, rows in times.items()},
        "all": times,
        "other_signs": float((signs[0] != signs[1]).float().mean()) if signs else None,
    }


def count(folder: Path, _: int, scan: str) -> dict[str, Any]:
    """Return for each layout of tiles their number in each step, and the seconds of everything but the networks."""
    return {way: run(folder, "official", scan, way, "torch", 1, count_only=True) for way in WAYS[:4]}


def run_row(folder: Path, _: int, weights: str, scan: str, way: str, faster: str, repeats: str) -> dict[str, Any]:
    """Run a row from end to end several times; return medians, and the largest memory of the process."""
    row = run(folder, weights, scan, way, runtime_of(way, faster), int(repeats))
    return {**row, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "runs": int(repeats)}


def run(
    folder: Path, weights: str, scan: str, way: str, runtime: str, repeats: int, *, count_only: bool = False
) -> dict[str, Any]:
    """Do the work of a request; return tiles, seconds, and the seconds outside the networks.

    Args:
        folder: The benchmark's folder.
        weights: "official" or "starter".
        scan: One of ``SCANS``.
        way: One of ``WAYS``.
        runtime: Runtime of the networks.
        repeats: How often.
        count_only: Whether networks do nothing but count.
    """
    models = {step: model_of(folder, weights, step) for step in (1, 2)}
    clocks = {step: Clocked(network_of(models[step], runtime, count_only)) for step in models}
    look = coarse_look(starter_store(folder), "cpu") if way not in ("stock", "ours") and weights == "official" else None
    if way == "stock":
        request = stock_request(folder, scan, models, clocks)
    else:
        request = our_request(folder, scan, models, clocks, look=look, skip_air=way != "box")
    rows = [timed(request, clocks) for _ in range(repeats)]
    result = {"tiles": rows[0][2], "rest": statistics.median(rest for _, rest, _ in rows)}
    return result if count_only else {**result, "seconds": statistics.median(seconds for seconds, _, _ in rows)}


def timed(request: Callable[[], None], clocks: Mapping[int, "Clocked"]) -> tuple[float, float, list[int]]:
    """Run a request; return its seconds, those outside the networks, and the tiles of each step."""
    for clock in clocks.values():
        clock.reset()
    start = time.perf_counter()
    request()
    seconds = time.perf_counter() - start
    return seconds, seconds - sum(clock.seconds() for clock in clocks.values()), [clocks[1].tiles, clocks[2].tiles]


def stock_request(
    folder: Path, scan: str, models: Mapping[int, ModelFolder], clocks: Mapping[int, "Clocked"], device: str = "cpu"
) -> Callable[[], None]:
    """Return a call that runs nnU-Net's own predictor in both steps: step 1 on the whole image, step 2 on the crop.

    Args:
        folder: The benchmark's folder.
        scan: One of ``SCANS``.
        models: Step -> model.
        clocks: Step -> network.
        device: Device of the networks.
    """
    iso, part = part_of(folder / f"{scan}.nii.gz", classes_of(folder, scan))
    predictors = {step: stock_predictor(models[step], clocks[step], device) for step in models}

    def request() -> None:
        for step, channels in ((1, iso.iso.data[np.newaxis]), (2, part.channels)):
            turned = np.ascontiguousarray(channels.transpose(0, 3, 2, 1))
            predictors[step].predict_single_npy_array(turned, {"spacing": [1.0, 1.0, 1.0]})

    return request


def our_request(
    folder: Path,
    scan: str,
    models: Mapping[int, ModelFolder],
    clocks: Mapping[int, "Clocked"],
    *,
    device: str = "cpu",
    runtime: Runtime = "torch",
    look: WarmPredictor | None = None,
    skip_air: bool = False,
) -> Callable[[], None]:
    """Return a call that does the work of a request, from the file of the image to the file of the labels.

    Args:
        folder: The benchmark's folder.
        scan: One of ``SCANS``.
        models: Step -> model.
        clocks: Step -> network.
        device: Device of the networks.
        runtime: What the predictor takes the networks for; they are those of ``clocks`` in any case.
        look: Network that finds the box; None for the whole image.
        skip_air: Whether the box leaves out air.
    """
    file, classes = folder / f"{scan}.nii.gz", classes_of(folder, scan)
    warm = {step: WarmPredictor(models[step], device=device, runtime=runtime, network=clocks[step]) for step in models}
    step1: Any = Known(warm[1], classes[1])
    if look is not None:
        step1 = FocusedPredictor(step1, look, skip_air=skip_air)

    def request() -> None:
        prepared = pipeline.prepare(read_image(file))
        located = pipeline.locate(prepared, step1)
        names = step1_names(located.labels, located.numbering)
        part = pipeline.step2_input(prepared, located.labels, names)
        step2: Any = Known(warm[2], classes[2][part.box])
        if look is not None:
            step2 = FocusedPredictor(step2, None, skip_air=skip_air)
        found = pipeline.segment(part, step2)
        lint(found.labels, prepared.iso.spacing)
        write_volume(folder / "result.nrrd", prepared.labels_to_input(found.labels), prepared.grid)

    return request


def classes_of(folder: Path, scan: str) -> dict[int, np.ndarray]:
    """Return step -> true classes of a scan."""
    with np.load(folder / f"{scan}.npz") as stored:
        return {step: stored[f"step{step}"] for step in (1, 2)}


class Clocked(torch.nn.Module):  # type: ignore[misc]
    """A network that counts its tiles and their seconds.

    A GPU works on while the program does, so its seconds are those between two events on the GPU itself.

    Args:
        network: The network.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        self.tiles, self._seconds = 0, 0.0
        self._events: list[tuple[Any, Any]] = []

    def seconds(self) -> float:
        """Return the seconds of all tiles since the start; waits for the GPU."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the network's logits."""
        self.tiles += len(tiles)
        if tiles.device.type == "cuda":
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            logits = self.network(tiles)
            events[1].record()
            self._events.append(events)
            return logits
        start = time.perf_counter()
        logits = self.network(tiles)
        self._seconds += time.perf_counter() - start
        return logits

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """Load weights as nnU-Net does before every image; a network that only counts has none."""
        if isinstance(self.network, torch.nn.Module):
            return self.network.load_state_dict(state_dict)
        return None


class Known:
    """A predictor that does all the work of a network, and returns known classes.

    Args:
        work: The network.
        classes: Its answer.
    """

    def __init__(self, work: WarmPredictor, classes: np.ndarray) -> None:
        self.work, self.classes = work, classes
        self.folder, self.tile_step, self.version = work.folder, work.tile_step, work.version

    def predict(
        self,
        channels: FloatArray,
        *,
        soft: Collection[str] = (),
        within: Box | None = None,
        wanted: Box | None = None,
        skip_air: bool = False,
        earlier: EarlierTiles | None = None,
    ) -> Prediction:
        """Return the classes of what the network sees; see ``WarmPredictor.predict``."""
        seen = self.work.predict(
            channels, soft=soft, within=within, wanted=wanted, skip_air=skip_air, earlier=earlier
        ).seen
        labels = np.zeros_like(self.classes)
        if seen is not None:
            labels[seen] = self.classes[seen]
        return Prediction(labels, {name: (labels > 0).astype(np.float32) for name in soft}, seen=seen)


def part_of(file: Path, classes: Mapping[int, np.ndarray]) -> tuple[pipeline.Scan, pipeline.Step2Input]:
    """Return the scan and the crop for step 2, so that nnU-Net's own predictor gets the same."""
    scan = pipeline.prepare(read_image(file))

    class Answer:
        version = "known"

        def predict(self, channels: FloatArray, *, soft: Collection[str] = ()) -> Prediction:
            return Prediction(classes[1], {name: (classes[1] > 0).astype(np.float32) for name in soft})

    return scan, pipeline.step2_input(scan, pipeline.locate(scan, Answer()).labels)


def network_of(model: ModelFolder, runtime: str, count_only: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a network; if it only counts, one whose answer is always the same."""
    if count_only:
        nothing = torch.full((1, len(model.regions), *model.patch), NOTHING)
        # nnU-Net multiplies the answer in place.
        return lambda tile: nothing.clone()
    return model.load_network() if runtime == "torch" else load_openvino(model, int8=runtime == INT8)


def runtime_of(way: str, faster: str, stock: str = "torch") -> str:
    """Return the runtime of a way."""
    return {"int8": INT8, "runtime": faster, "stock": stock}.get(way, "torch")


def stock_predictor(model: ModelFolder, network: torch.nn.Module | None = None, device: str = "cpu") -> nnUNetPredictor:
    """Return nnU-Net's own predictor with a model's network, as its command would make it for a device."""
    predictor = nnUNetPredictor(
        tile_step_size=TILE_STEP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=device != "cpu",
        device=torch.device(device),
        allow_tqdm=False,
    )
    plans = PlansManager(read_json(model.path / "plans.json"))
    network = model.load_network() if network is None else network
    weights = getattr(network, "network", network)
    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else {}
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration("3d_fullres"),
        [{name: value.cpu().clone() for name, value in state.items()}],
        read_json(model.path / "dataset.json"),
        "nnUNetTrainer",
        None,
    )
    return predictor


def bound(network: Callable[[torch.Tensor], torch.Tensor], tile: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a call that computes one tile."""
    return lambda: network(tile)


def noise_tile(model: ModelFolder) -> torch.Tensor:
    """Return a tile of noise for a network."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, STEP_CHANNELS[model.step], *model.patch, generator=generator)


def model_of(folder: Path, weights: str, step: int) -> ModelFolder:
    """Return a model of the benchmark."""
    place = starter_store(folder).named(STARTER).root if weights == STARTER else folder / f"step{step}"
    return ModelFolder.open(place, step=step)


def starter_store(folder: Path) -> ModelStore:
    """Return the copy of the starter weights."""
    return ModelStore(folder / "app" / "model")


TASKS: Final[Mapping[str, Callable[..., Any]]] = {
    "scans": make_scans,
    "network": make_network,
    "convert": convert,
    "quantize": quantize,
    "tiles": time_tiles,
    "count": count,
    "row": run_row,
}


class Memory(torch.nn.Module):  # type: ignore[misc]
    """A network that computes each tile once: most tiles of two ways are the same.

    Args:
        network: The network.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.known: dict[bytes, torch.Tensor] = {}
        self.tiles = 0

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        """Return the logits of one tile."""
        self.tiles += 1
        key = hashlib.sha256(tile.numpy().tobytes()).digest()
        if key not in self.known:
            self.known[key] = self.network(tile)
        return self.known[key]


class OfficialTiles(torch.nn.Module):  # type: ignore[misc]
    """A network that gets tiles of the official networks' size, and resamples them to about its own spacing.

    Args:
        network: The network.
        patch: Size of the tiles after resampling.
    """

    def __init__(self, network: torch.nn.Module, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.patch = network, patch

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        """Return the logits of one tile."""
        return resample(self.network(resample(tile, self.patch)), tile.shape[2:])


class Continued(WarmPredictor):
    """A predictor that computes the whole image in tiles among which are those of a part.

    It gets the part as ``WarmPredictor`` does; left out are neither tiles outside of it nor tiles of air.
    """

    def predict(
        self, channels: FloatArray, *, within: Box | None = None, skip_air: bool = False, **others: Any
    ) -> Prediction:
        """Segment one image; see ``WarmPredictor.predict``."""
        return super().predict(channels, within=within, **{**others, "wanted": None})

    def _rows(self, *arguments: Any) -> Rows:
        x, y, z = (self._continued(row) for row in super()._rows(*arguments))
        return x, y, z

    def _continued(self, row: Row) -> Row:
        """Return the tiles of the whole axis if those of a row are among them; else the row, continued to both ends of
        the image with the same overlap."""
        whole = whole_row(row.length, row.tile, self.tile_step)
        if set(row.starts) <= set(whole.starts):
            return whole
        starts, apart, last = list(row.starts), int(row.tile * self.tile_step), row.length - row.tile
        while starts[0] > 0:
            starts.insert(0, max(0, starts[0] - apart))
        while starts[-1] < last:
            starts.append(min(last, starts[-1] + apart))
        return replace(row, starts=tuple(starts))


class WithoutAirTiles:
    """A predictor that leaves out tiles of air; the other tiles are those of the whole image.

    Args:
        whole: The predictor.
    """

    def __init__(self, whole: WarmPredictor) -> None:
        self.whole, self.version = whole, whole.version

    def predict(self, channels: FloatArray, *, soft: Collection[str] = ()) -> Prediction:
        """Segment one image; see ``WarmPredictor.predict``."""
        return self.whole.predict(channels, soft=soft, skip_air=True)


def with_official_tiles(model: ModelFolder, network: torch.nn.Module) -> tuple[ModelFolder, torch.nn.Module]:
    """Return a model and its network for tiles like those of the official networks, with voxels of 1 mm."""
    patch = tuple(round(n / mm / SHRINKS) * SHRINKS for n, mm in zip(STEP1_PATCH, model.spacing_mm, strict=True))
    grid = {**model.configuration, "spacing": [1.0, 1.0, 1.0], "patch_size": list(STEP1_PATCH)}
    return replace(model, configuration=grid), OfficialTiles(network, (patch[0], patch[1], patch[2]))


def compare_labels(files: Sequence[Path], kinds: Collection[str]) -> None:
    """Print how the labels of each scan differ from those of the whole image, for each way and kind of tiles."""
    folders = models_in(local_server.ROOT / "apps" / "totalspineseg" / "model" / STARTER)
    networks = {step: Memory(model.load_network()) for step, model in folders.items()}
    look = WarmPredictor(folders[1], device="cpu", trust=replace(folders[1].trust, mirror=False))
    own = {step: (folders[step], networks[step]) for step in folders}
    official = {step: with_official_tiles(*own[step]) for step in folders}
    for kind, models in (("official", official), ("own", own)):
        if kind not in kinds:
            continue
        # Like the official networks, those with their tiles see no mirror image.
        trusts = {
            step: replace(model.trust, mirror=model.trust.mirror and kind == "own")
            for step, (model, _) in models.items()
        }
        whole, continued = (
            {
                step: predictor(model, device="cpu", network=network, trust=trusts[step])
                for step, (model, network) in models.items()
            }
            for predictor in (WarmPredictor, Continued)
        )
        print(f"\nstarter weights, {kind} tiles: labeled voxels that differ; levels with another name; tiles\n")
        compare_on(files, whole, continued, look, networks)


def compare_on(
    files: Sequence[Path],
    whole: Mapping[int, WarmPredictor],
    continued: Mapping[int, WarmPredictor],
    look: WarmPredictor,
    networks: Mapping[int, Memory],
) -> None:
    """Print the table of one kind of tiles.

    Args:
        files: The scans.
        whole: Step -> predictor of the whole image.
        continued: Step -> predictor of the whole image with the tiles of a part.
        look: The coarse look.
        networks: Step -> network, which counts tiles.
    """
    ways: dict[str, tuple[Any, Any]] = {
        "tiles of air": (WithoutAirTiles(whole[1]), WithoutAirTiles(whole[2])),
        "box": (FocusedPredictor(whole[1], look, skip_air=False), whole[2]),
        "box, without air": (FocusedPredictor(whole[1], look), FocusedPredictor(whole[2], None)),
    }
    last = "the same, beside the whole image with the same tiles"
    print(
        "| scan | labeled; tiles | " + " | ".join((*ways, last)) + " |\n|---|---|" + "---|" * (len(ways) + 1),
        flush=True,
    )
    rows: dict[str, list[tuple[float, int]]] = {way: [] for way in (*ways, last)}

    def labels_and_tiles(scan: pipeline.Scan, step1: Any, step2: Any) -> tuple[LabelArray, int]:
        before = sum(network.tiles for network in networks.values())
        labels = labels_of(scan, step1, step2)
        return labels, sum(network.tiles for network in networks.values()) - before

    for file in files:
        scan = pipeline.prepare(read_image(file))
        exact, tiles = labels_and_tiles(scan, whole[1], whole[2])
        cells = [f"{np.count_nonzero(exact)}; {tiles}"]
        compared = {way: (exact, *labels_and_tiles(scan, *predictors)) for way, predictors in ways.items()}
        _, labels, _ = compared["box, without air"]
        same, tiles = labels_and_tiles(scan, *(FocusedPredictor(continued[step], None) for step in (1, 2)))
        compared[last] = (same, labels, tiles)
        for way, (one, other, tiles) in compared.items():
            share = float(np.count_nonzero(one != other) / max(np.count_nonzero(one), 1))
            rows[way].append((share, names_apart(one, other)))
            cells.append(f"{share:.3%}; {rows[way][-1][1]}; {tiles}")
        for network in networks.values():
            network.known.clear()
        print(f"| {file.parent.name}/{file.name} | {' | '.join(cells)} |", flush=True)
    for name, middle in (("median", statistics.median), ("largest", max)):
        cells = [f"{middle([share for share, _ in found]):.3%}" for found in rows.values()]
        print(f"| {name} | | {' | '.join(cells)} |")
    cells = [str(sum(bool(names) for _, names in found)) for found in rows.values()]
    print(f"| scans with another name, of {len(files)} | | {' | '.join(cells)} |", flush=True)


def names_apart(one: LabelArray, other: LabelArray) -> int:
    """Return how many levels of either map have another name in the other one, or are missing there."""
    scores = score_case(one, other), score_case(other, one)
    return sum(score.levels - score.levels_right for score in scores)


def show(found: Mapping[str, Any]) -> None:
    """Print the figures as tables in Markdown."""
    print(
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, nnU-Net {found['nnunet']}; load of the "
        f"machine {found['load_at_start']:.1f} at the start; {found['minutes']:g} minutes\n"
    )
    print("| one tile, seconds | nnU-Net | PyTorch | OpenVINO | INT8 | signs that differ |\n|---|---|---|---|---|---|")
    for name, row in found["tiles"].items():
        cells = [f"{row['seconds'][r]:.2f}" if r in row["seconds"] else "" for r in RUNTIMES]
        signs = "" if row["other_signs"] is None else f"{row['other_signs']:.4%}"
        print(f"| {name} | {' | '.join(cells)} | {signs} |")
    for weights in ("official", "starter"):
        for scan, title in TITLES.items():
            rows = [row for row in found["rows"] if (row["weights"], row["scan"]) == (weights, scan)]
            if rows:
                print(f"\n{weights}, {title}\n")
                print("| way | tiles | seconds | not networks | faster than before | peak, MiB | how |")
                print("|---|---|---|---|---|---|---|")
            before = None
            for row in rows:
                factor = f"{before / row['seconds']:.2f}" if before else ""
                before = row["seconds"]
                name = f"{row['way']} ({found['runtime']})" if row["way"] == "runtime" else row["way"]
                how = f"end to end, {row['runs']}x" if "runs" in row else "tiles x seconds"
                cells = [
                    name,
                    "{} + {}".format(*row["tiles"]),
                    f"{before:.1f}",
                    f"{row['rest']:.2f}",
                    factor,
                    row.get("peak_mib", ""),
                    how,
                ]
                print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    unwind_on_signals()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
