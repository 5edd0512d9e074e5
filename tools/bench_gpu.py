"""Measure requests and fine-tuning on a GPU, in one call of less than six minutes. No GPU has run it yet.

    python tools/bench_gpu.py FOLDER                                           # the tables for docs/measured-speed.md
    python tools/bench_gpu.py FOLDER --learn --weights MODELS --slabs SPIDER   # what weights learn from five patients

Nothing is downloaded: carry the repository with the packages that it needs (without slabs, MONAI Label is not among
them), and MODELS and SPIDER where they are used. Networks of the official shape, with random weights, are made on the
machine, and scans, too. Their answers are replaced by the true classes, as in bench_speed.py.

For each way (nnU-Net's own predictor, ours in single and in half precision) and both weights, a process of its own
measures a lumbar scan and a whole spine:

- cold: seconds from the start of the process until the networks are loaded, and the first request;
- warm: median of the requests after it. Ours go from file to file, nnU-Net's own predictor only runs the networks;
- networks: seconds of the forward passes in a warm request, between events on the GPU itself;
- idle: share of one more request in which the GPU computed and copied nothing. PyTorch's profiler lists when kernels
  and copies began and ended; what they do not cover was idle. The profiler slows the request itself a little;
- peak: largest memory of PyTorch's tensors on the GPU in the warm requests.

Then a few iterations of a fine-tuning of step 2 with either shape: seconds per iteration, and the share of it in which
the GPU waited for patches. A part that no longer fits into ``--minutes`` is skipped, or stopped, and the table says so;
the same command with the same FOLDER then measures only what is missing (gpu.json). ``--device cpu --patch 32 32 32``
tries the program itself.

``--learn`` trains a step on corrections of five patients (without slabs: of synthetic scans) and synthetic replay, and
prints the Dice before and after for patches of other patients. It stops when ``--minutes`` are up; then, or after a
kill, the same command continues with FOLDER (learned.json). Exit code 0: it ran.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from bench_official import synthetic_scan  # noqa: E402
from bench_speed import (  # noqa: E402
    SEED,
    TITLES,
    Clocked,
    copy_starter,
    make_network,
    make_scans,
    model_of,
    our_request,
    stock_request,
    timed,
)

from totalspineseg_server.files import read_json_or, write_json  # noqa: E402
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, TrainingCase, prepare_case  # noqa: E402
from totalspineseg_server.nnunet.checkpoint import load_checkpoint  # noqa: E402
from totalspineseg_server.nnunet.fast_ways import HALF  # noqa: E402
from totalspineseg_server.nnunet.finetune import Stopped, fine_tune  # noqa: E402
from totalspineseg_server.nnunet.finetune_job import (  # noqa: E402
    IDENTIFIER,
    LATEST,
    StoredCase,
    dataset_folder,
    store_cases,
)
from totalspineseg_server.nnunet.finetune_settings import NONE, FinetuneSettings  # noqa: E402
from totalspineseg_server.nnunet.installation import STEP1_PATCH  # noqa: E402
from totalspineseg_server.nnunet.model_folder import ModelFolder  # noqa: E402
from totalspineseg_server.nnunet.patches import Patches  # noqa: E402
from totalspineseg_server.nnunet.runtimes import Runtime, resolve_device  # noqa: E402
from totalspineseg_server.nnunet.targets import REGIONS  # noqa: E402
from totalspineseg_server.nnunet.training import region_hits  # noqa: E402
from totalspineseg_server.nnunet.training_log import Progress, dice_text  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402
from totalspineseg_server.registry.model_store import STARTER  # noqa: E402
from totalspineseg_server.synthesis import Field  # noqa: E402
from totalspineseg_server.training.remembered import replay_sources  # noqa: E402

MINUTES: Final = 5.5
LEARNING_MINUTES: Final = 9.0
RESERVE_S: Final = 60.0
"""Part of the time of ``--learn`` that is reserved for the last measurement and for writing, seconds."""
SYNTHETIC: Final = 2
"""Number of corrections, and of test scans, if there are no slabs."""
WIDTH_MM: Final = 72.0
FIGURES: Final = "gpu.json"
LEARNED: Final = "learned.json"
SCANS: Final = ("lumbar", "whole")
STOCK: Final = "nnU-Net"
WAYS: Final[Mapping[str, Runtime | None]] = {"half": HALF, STOCK: None, "single": "torch"}
"""nnU-Net's own predictor, and the precisions of ours -> runtime."""
TRAINING: Final = "training"
PARTS: Final[Mapping[str, float]] = {
    "official half": 45,
    f"official {STOCK}": 45,
    f"official {TRAINING}": 50,
    "official single": 60,
    f"{STARTER} half": 25,
    f"{STARTER} {STOCK}": 25,
    f"{STARTER} {TRAINING}": 30,
    f"{STARTER} single": 25,
}
"""Parts in order of importance -> seconds that must be left to begin it. Chosen, not measured."""
MAKE_S: Final = 120.0
"""Longest time to make networks, scans and training cases, seconds."""
WRITING_S: Final = 15.0
"""Part of a training's time that is reserved for writing its state, seconds."""
REPEATS: Final = 3
ITERATIONS: Final = 15
FIRST_ITERATIONS: Final = 3
"""Iterations of a training that do not count: libraries load, and processes that prepare patches start."""


def main(words: list[str] | None = None) -> int:
    """Run the benchmark and print what was measured."""
    start = time.monotonic()
    arguments = arguments_of(words)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    resolve_device(arguments.device)
    if arguments.learn:
        return learn(arguments, start)
    if arguments.alone:
        torch.manual_seed(SEED)
        task, *rest = arguments.alone
        print(json.dumps(TASKS[task](arguments, *rest)))
        return 0
    measure(arguments, start + 60 * (MINUTES if arguments.minutes is None else arguments.minutes))
    show(read_json_or(arguments.folder / FIGURES, {}))
    return 0


def measure(arguments: argparse.Namespace, end: float) -> None:
    """Measure the parts that FOLDER lacks, as far as the time allows; what is done is on disk after an interruption.

    Args:
        arguments: The command line's.
        end: When the time is up, as ``time.monotonic``.
    """
    file = arguments.folder / FIGURES
    found: dict[str, Any] = {"parts": {}, **read_json_or(file, {}), "left_out": {}}
    found |= {"device": device_name(arguments.device), "patch": list(arguments.patch), "torch": torch.__version__}
    wanted = [part for part in arguments.parts if part not in found["parts"]]
    if wanted:
        copy_starter(arguments.folder)
        patch = [str(n) for n in arguments.patch]
        makers = [["scans"], ["network", "1", *patch], ["network", "2", *patch]]
        if f"{STARTER} {TRAINING}" in wanted:
            makers.append(["cases", STARTER])
        try:
            together(arguments, makers, min(MAKE_S, max(end - time.monotonic(), 0)))
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            found["left_out"] = dict.fromkeys(wanted, "networks and scans could not be made")
            write_json(file, found)
            return
    for name in wanted:
        left = end - time.monotonic()
        if left < PARTS[name]:
            found["left_out"][name] = f"only {left:.0f} s were left"
        else:
            try:
                found["parts"][name] = alone(arguments, ["part", *name.split(), str(left)], left)
            except subprocess.TimeoutExpired:
                found["left_out"][name] = f"it did not end within {left:.0f} s"
            except subprocess.CalledProcessError as error:
                found["left_out"][name] = f"it failed with exit code {error.returncode}"
        write_json(file, found)


def together(arguments: argparse.Namespace, tasks: Sequence[Sequence[str]], seconds: float) -> None:
    """Run tasks at the same time, each in a process of its own, and wait for all."""
    with ThreadPoolExecutor(max(len(tasks), 1)) as pool:
        for done in [pool.submit(alone, arguments, task, seconds) for task in tasks]:
            done.result()


def alone(arguments: argparse.Namespace, task: Sequence[str], seconds: float) -> Any:
    """Run a task in a process of its own, and return what it printed last.

    Args:
        arguments: The command line's.
        task: Its words.
        seconds: When it is killed, with the processes that it has started.

    Raises:
        subprocess.TimeoutExpired: It took longer.
        subprocess.CalledProcessError: It failed.
    """
    print(f"{time.strftime('%H:%M:%S')} {' '.join(task)}", file=sys.stderr, flush=True)
    values = {"device": arguments.device, "repeats": arguments.repeats, "batch-size": arguments.batch_size}
    options = [f"--{name}={value}" for name, value in {**values, "started": time.time()}.items()]
    command = [sys.executable, __file__, str(arguments.folder), *options, "--alone", *task]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(output.splitlines()[-1])


def part(arguments: argparse.Namespace, weights: str, name: str, left: str) -> Any:
    """Measure a part in this process: a training, or requests in one way."""
    if name == TRAINING:
        return training(arguments, weights, time.monotonic() + float(left))
    return requests(arguments, weights, name)


def requests(arguments: argparse.Namespace, weights: str, way: str) -> list[dict[str, Any]]:
    """Measure requests for both scans in one way.

    Args:
        arguments: The command line's.
        weights: "official" or "starter".
        way: One of ``WAYS``.
    """
    folder, device, runtime = arguments.folder, resolve_device(arguments.device), WAYS[way]
    is_gpu = device.type == "cuda"
    models = {step: model_of(folder, weights, step) for step in (1, 2)}
    clocks = {step: Clocked(model.load_network()) for step, model in models.items()}
    loaded = time.time() - arguments.started
    rows = []
    for scan in SCANS:
        if runtime is None:
            request = stock_request(folder, scan, models, clocks, str(device))
        else:
            # A CPU computes in single precision only.
            used: Runtime = runtime if is_gpu else "torch"
            request = our_request(folder, scan, models, clocks, device=str(device), runtime=used)
        first, _, _ = timed(request, clocks)
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        warm = [timed(request, clocks) for _ in range(arguments.repeats)]
        rows.append(
            {
                "scan": scan,
                "tiles": warm[0][2],
                "cold": loaded + first,
                "warm": statistics.median(seconds for seconds, _, _ in warm),
                "networks": statistics.median(seconds - rest for seconds, rest, _ in warm),
                "peak_mib": torch.cuda.max_memory_allocated(device) >> 20 if is_gpu else None,
                "idle": idle_share(request) if is_gpu else None,
            }
        )
    return rows


def idle_share(request: Callable[[], None]) -> float | None:
    """Return the share of a request in which the GPU did nothing; None if the profiler sees nothing of the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start = time.perf_counter()
        request()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    return max(0.0, 1 - covered(spans) / 1e6 / seconds) if spans else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return how much of a line is covered by spans (start, end), which may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def training(arguments: argparse.Namespace, weights: str, end: float) -> dict[str, Any]:
    """Measure iterations of a fine-tuning of step 2.

    Args:
        arguments: The command line's.
        weights: "official" or "starter".
        end: When the time is up, as ``time.monotonic``.
    """
    parent, work = model_of(arguments.folder, weights, 2), arguments.folder / TRAINING / weights
    cases = stored(work / "cases", parent, work, lambda: speed_cases(parent))
    reports: list[Progress] = []
    device = resolve_device(arguments.device)
    settings = FinetuneSettings(iterations=10 * ITERATIONS, batch_size=arguments.batch_size, device=arguments.device)

    def is_enough() -> bool:
        is_late = time.monotonic() > end - WRITING_S
        return len(reports) >= ITERATIONS or (len(reports) > FIRST_ITERATIONS and is_late)

    with suppress(Stopped):
        fine_tune(parent, cases, work, settings, on_progress=reports.append, should_stop=is_enough)
    first, last = reports[FIRST_ITERATIONS - 1], reports[-1]
    seconds = last.seconds - first.seconds
    return {
        "batch_size": arguments.batch_size,
        "patch": list(parent.patch),
        "iterations": len(reports) - FIRST_ITERATIONS,
        "seconds": seconds / (len(reports) - FIRST_ITERATIONS),
        "waiting": (last.waited * last.seconds - first.waited * first.seconds) / seconds,
        "peak_mib": torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else None,
    }


def make_official(arguments: argparse.Namespace, step: str, *patch: str) -> None:
    """Write a network of the official shape, and the cases of its training, once."""
    make_network(arguments.folder, 1, step, *patch)
    if step == "2":
        make_cases(arguments, "official")


def make_cases(arguments: argparse.Namespace, weights: str) -> None:
    """Store the cases of a training, once."""
    parent, work = model_of(arguments.folder, weights, 2), arguments.folder / TRAINING / weights
    work.mkdir(parents=True, exist_ok=True)
    stored(work / "cases", parent, work, lambda: speed_cases(parent))


def speed_cases(parent: ModelFolder) -> Iterator[TrainingCase]:
    """Yield corrections and uncorrected cases on which a training's speed is measured."""
    for number, origin in enumerate((Origin.CORRECTION, Origin.UNCORRECTED)):
        yield prepare_case(synthetic_case(number, origin), parent)


def synthetic_case(seed: int, origin: Origin) -> LabeledScan:
    """Return a labeled synthetic scan."""
    pair = synthetic_scan(Field.LUMBAR, WIDTH_MM, None, seed=seed)
    return LabeledScan(f"synthetic-{seed}", f"synthetic-{seed}", origin, *pair)


TASKS: Final[Mapping[str, Callable[..., Any]]] = {
    "scans": lambda arguments: make_scans(arguments.folder, 1, *SCANS),
    "network": make_official,
    "cases": make_cases,
    "part": part,
}


def device_name(device: str) -> str:
    """Return the name of a device."""
    found = resolve_device(device)
    return torch.cuda.get_device_name(found) if found.type == "cuda" else str(found)


def show(found: Mapping[str, Any]) -> None:
    """Print the figures as tables in Markdown."""
    print(f"{found['device']}, PyTorch {found['torch']}, official shape with tiles of {found['patch']}\n")
    print("| weights | scan | way | tiles, step 1 + 2 | cold, s | warm, s | networks, s | GPU idle | peak, MiB |")
    print("|---" * 9 + "|")
    parts = found["parts"]
    for weights, scan, way in itertools.product(("official", STARTER), SCANS, WAYS):
        title = way if way == STOCK else f"ours, {way} precision"
        for row in (row for row in parts.get(f"{weights} {way}", ()) if row["scan"] == scan):
            figures = [f"{row[name]:.2f}" for name in ("cold", "warm", "networks")]
            cells = ["{} + {}".format(*row["tiles"]), *figures, percent(row["idle"]), row["peak_mib"] or ""]
            print(f"| {weights} | {TITLES[scan]} | {title} | {' | '.join(map(str, cells))} |")
    if found["device"] == "cpu":
        print("\nA CPU computes everything in single precision.")
    print("\n| fine-tuning of step 2 | patches of a batch | seconds per iteration | GPU waits | peak, MiB |")
    print("|---" * 5 + "|")
    for weights in ("official", STARTER):
        if row := parts.get(f"{weights} {TRAINING}"):
            shape = " x ".join(map(str, row["patch"]))
            figures = [f"{row['seconds']:.2f}", percent(row["waiting"]), str(row["peak_mib"] or "")]
            print(f"| {weights}, {shape} | {row['batch_size']} | {' | '.join(figures)} |")
    for name, why in found["left_out"].items():
        print(f"\nNot measured: {name}, because {why}.")


def percent(share: float | None) -> str:
    """Return a share as text; "" if it is not known."""
    return "" if share is None else f"{share:.0%}"


def learn(arguments: argparse.Namespace, start: float) -> int:
    """Fine-tune, and print the Dice before and after.

    Args:
        arguments: The command line's.
        start: When the program began, as ``time.monotonic``.
    """
    end = start + 60 * (arguments.minutes or LEARNING_MINUTES) - RESERVE_S
    folder: Path = arguments.folder
    parent, device = parent_of(arguments), resolve_device(arguments.device)
    work = folder / f"step{arguments.step}"
    training = stored(folder / "training", parent, work, lambda: training_cases(arguments, parent))
    judging = stored(folder / "judging", parent, work / "judging", lambda: judging_cases(arguments, parent))
    prepared = time.monotonic() - start
    settings = FinetuneSettings(
        iterations=arguments.iterations,
        batch_size=arguments.batch_size,
        optimizer=arguments.optimizer,
        device=arguments.device,
    )
    reports: list[Progress] = []
    patches = Patches(
        judging, dataset_folder(parent, work / "judging") / IDENTIFIER, parent, replay_share=0, strength=NONE
    )
    before = dice_of(parent.load_network().to(device), patches, len(judging) * arguments.patches)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        weights = fine_tune(
            parent, training, work, settings, on_progress=reports.append, should_stop=lambda: time.monotonic() > end
        ).weights
    except Stopped as stop:
        print(stop)
        weights = load_checkpoint(work / LATEST)["network_weights"]
    network = parent.load_network()
    network.load_state_dict(weights)
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "parent": parent.version,
        "settings": {name: getattr(arguments, name) for name in ("step", "iterations", "batch_size", "optimizer")},
        "seconds of preparing": round(prepared, 1),
        "iterations of this call": len(reports),
        "seconds per iteration": round(reports[-1].seconds / len(reports), 3) if reports else None,
        "share of waiting": reports[-1].waited if reports else None,
        "peak MiB of the device": torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else None,
        "before": before,
        "after": dice_of(network.to(device), patches, len(judging) * arguments.patches),
        "seconds": round(time.monotonic() - start),
    }
    (folder / LEARNED).write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name, value in found.items():
        print(f"{name}: {dice_text(value) if name in ('before', 'after') else value}")
    return 0


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="only these parts"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="number of warm requests")
    parser.add_argument("--learn", action="store_true", help="fine-tune, and print the Dice before and after")
    parser.add_argument("--weights", type=Path, metavar="MODELS", help="model folders (default: random weights)")
    parser.add_argument("--slabs", type=Path, metavar="SPIDER", help="folder of NNN_image.nii.gz and NNN_label.nii.gz")
    parser.add_argument("--step", type=int, choices=(1, 2), default=2)
    parser.add_argument(
        "--patch", type=int, nargs=3, default=STEP1_PATCH, metavar="N", help="tile of the random weights, voxels"
    )
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--replay-cases", type=int, default=8, help="number of synthetic spines beside the corrections")
    parser.add_argument("--patches", type=int, default=4, help="patches of each test scan")
    parser.add_argument("--minutes", type=float, help="minutes that the call may take (default: 5.5, to learn 9)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def parent_of(arguments: argparse.Namespace) -> ModelFolder:
    """Return the model to start from; random weights are written once."""
    if arguments.weights:
        return ModelFolder.open(arguments.weights, step=arguments.step, name="given")
    copy_starter(arguments.folder)
    make_network(arguments.folder, 1, str(arguments.step), *map(str, arguments.patch))
    return model_of(arguments.folder, "official", arguments.step)


def training_cases(arguments: argparse.Namespace, parent: ModelFolder) -> Iterator[TrainingCase]:
    """Yield corrections and replay, one at a time."""
    for scan in scans(arguments, range(SYNTHETIC)):
        yield prepare_case(scan, parent)
    for source in replay_sources(arguments.replay_cases):
        yield prepare_case(source.read(), parent)


def judging_cases(arguments: argparse.Namespace, parent: ModelFolder) -> Iterator[TrainingCase]:
    """Yield scans to test on."""
    for scan in scans(arguments, range(SYNTHETIC, 2 * SYNTHETIC), judging=True):
        yield prepare_case(scan, parent)


def scans(arguments: argparse.Namespace, seeds: Iterable[int], *, judging: bool = False) -> Iterator[LabeledScan]:
    """Yield patients of bench_retrain_real.py as corrections, or synthetic scans in their place.

    Args:
        arguments: The command line's.
        seeds: Seeds of synthetic scans.
        judging: Whether to yield the patients that take no part in the training.
    """
    if arguments.slabs:
        # It needs MONAI Label, which a machine that is only lent for the benchmark need not have.
        import bench_retrain_real

        for number in bench_retrain_real.PREDICTED if judging else bench_retrain_real.CORRECTED:
            truth = bench_retrain_real.truth_of(arguments.slabs, number)
            yield LabeledScan(number, number, Origin.CORRECTION, truth.image, truth.volume)
        return
    for seed in seeds:
        yield synthetic_case(seed, Origin.CORRECTION)


def stored(
    listing: Path, parent: ModelFolder, work: Path, cases: Callable[[], Iterable[TrainingCase]]
) -> tuple[StoredCase, ...]:
    """Store cases, or return those that an earlier call has stored.

    Args:
        listing: File with the list of cases; it is written once all are stored.
        parent: The model whose plans apply.
        work: Folder of the training.
        cases: Makes the cases.
    """
    file = listing.with_name(f"{listing.name}-{parent.version}.json")
    if file.is_file():
        entries = json.loads(file.read_text(encoding="utf-8"))
        return tuple(StoredCase(name, Origin(origin), case) for name, origin, case in entries)
    made = store_cases(cases(), parent, work)
    content = json.dumps([[case.name, case.origin.value, case.file] for case in made])
    file.write_text(content, encoding="utf-8")
    return made


def dice_of(network: torch.nn.Module, patches: Patches, count: int) -> Mapping[str, float]:
    """Return the Dice of each region over patches without augmentation; nan if it is in neither truth nor
    prediction."""
    network.eval()
    device = next(network.parameters()).device
    total = None
    for number in range(count):
        patch = patches.validation(number)
        with torch.no_grad():
            logits = network(patch["data"][None].to(device))
        finest = logits[0] if isinstance(logits, (list, tuple)) else logits
        hits = torch.stack(region_hits(finest.float().cpu(), patch["target"][None].float()))
        total = hits if total is None else total + hits
    assert total is not None
    right, false, missed = total.double()
    dice = (2 * right / (2 * right + false + missed)).tolist()
    return dict(zip(next(names for names in REGIONS.values() if len(names) == len(dice)), dice, strict=True))


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
