"""Fine-tune networks of the official shape on a GPU, in one call of less than ten minutes. No GPU has run it yet.

    python tools/bench_gpu.py FOLDER                                   # random weights: seconds, waiting, memory
    python tools/bench_gpu.py FOLDER --weights MODELS --slabs SPIDER   # what real weights learn from five patients

Nothing is downloaded: carry the repository with its environment, and MODELS and SPIDER where they are used. It stops
when ``--minutes`` are up; then, or after a kill, the same command continues with FOLDER. It trains a step on
corrections of five patients (without slabs: of synthetic scans) and synthetic replay. For patches of other patients it
prints the Dice before and after, the seconds per iteration, the share of the time that the device waited for patches,
and the peak of its memory. The figures are also in FOLDER/bench_gpu.json. Exit code 0: it ran.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from bench_official import official_shape, synthetic_scan  # noqa: E402
from bench_retrain_real import CORRECTED, PREDICTED, truth_of  # noqa: E402
from local_server import APP  # noqa: E402

from totalspineseg_server.nnunet.cases import LabeledScan, Origin, TrainingCase, prepare_case  # noqa: E402
from totalspineseg_server.nnunet.checkpoint import load_checkpoint  # noqa: E402
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
from totalspineseg_server.nnunet.runtimes import resolve_device  # noqa: E402
from totalspineseg_server.nnunet.targets import REGIONS  # noqa: E402
from totalspineseg_server.nnunet.training import region_hits  # noqa: E402
from totalspineseg_server.nnunet.training_log import Progress, dice_text  # noqa: E402
from totalspineseg_server.synthesis import Field  # noqa: E402
from totalspineseg_server.training.remembered import replay_sources  # noqa: E402

RESERVE_S: Final = 60.0
"""Part of the time that is reserved for the last measurement and for writing, seconds."""
SYNTHETIC: Final = 2
"""Number of corrections, and of test scans, if there are no slabs."""
WIDTH_MM: Final = 72.0


def main(words: list[str] | None = None) -> int:
    """Run the benchmark and print what was measured."""
    start = time.monotonic()
    arguments = arguments_of(words)
    end = start + 60 * arguments.minutes - RESERVE_S
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
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
    (folder / "bench_gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name, value in found.items():
        print(f"{name}: {dice_text(value) if name in ('before', 'after') else value}")
    return 0


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
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
    parser.add_argument("--minutes", type=float, default=9.0, help="minutes that the call may take")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args(words)


def parent_of(arguments: argparse.Namespace) -> ModelFolder:
    """Return the model to start from; random weights are written once."""
    step, made = arguments.step, arguments.folder / f"made{arguments.step}"
    if arguments.weights:
        return ModelFolder.open(arguments.weights, step=step, name="given")
    if not (made / "plans.json").is_file():
        torch.manual_seed(step)
        official_shape(made, ModelFolder.open(APP / "model" / "starter", step=step), arguments.patch)
    return ModelFolder.open(made, step=step, name="random")


def training_cases(arguments: argparse.Namespace, parent: ModelFolder) -> Iterator[TrainingCase]:
    """Yield corrections and replay, one at a time."""
    for scan in scans(arguments, CORRECTED, seeds=range(SYNTHETIC)):
        yield prepare_case(scan, parent)
    for source in replay_sources(arguments.replay_cases):
        yield prepare_case(source.read(), parent)


def judging_cases(arguments: argparse.Namespace, parent: ModelFolder) -> Iterator[TrainingCase]:
    """Yield scans to test on."""
    for scan in scans(arguments, PREDICTED, seeds=range(SYNTHETIC, 2 * SYNTHETIC)):
        yield prepare_case(scan, parent)


def scans(arguments: argparse.Namespace, patients: Iterable[str], seeds: Iterable[int]) -> Iterator[LabeledScan]:
    """Yield patients as corrections, or synthetic scans in their place."""
    if arguments.slabs:
        for number in patients:
            truth = truth_of(arguments.slabs, number)
            yield LabeledScan(number, number, Origin.CORRECTION, truth.image, truth.volume)
        return
    for seed in seeds:
        pair = synthetic_scan(Field.LUMBAR, WIDTH_MM, None, seed=seed)
        yield LabeledScan(f"synthetic-{seed}", f"synthetic-{seed}", Origin.CORRECTION, *pair)


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
    sys.exit(main())
