"""Take networks of the official shape with random weights through every step; print seconds and peak memory.

    .venv/bin/python tools/bench_official.py FOLDER [--patch 256 256 48] [--scan lumbar] [--steps make install ..]

Each step is a separate process, so that its peak memory can be measured; FOLDER keeps what the next step needs (about 8
GB).
- make: write two zips like the official ones: ResidualEncoderUNet with 141 million parameters, weights and momentum;
- install: `weights install --zip`;
- request: the server answers one request on a synthetic scan; the networks compute every tile in full, and the labels
  of the starter networks are used for the next stage;
- train: one iteration of a fine-tuning of step 1, on one patch (`--training-patch` for a smaller one);
- publish: its result becomes a version;
- export: `models export`;
- stock: nnU-Net's own predictor loads the exported folder and computes one tile.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import local_server
import numpy as np
import requests
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from server_process import server_process

from totalspineseg_server.cli import main as totalspineseg
from totalspineseg_server.corrections.ids import new_id
from totalspineseg_server.files import read_json, write_json
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, prepare_case
from totalspineseg_server.nnunet.discovery import STEP_CHANNELS
from totalspineseg_server.nnunet.finetune import fine_tune
from totalspineseg_server.nnunet.finetune_job import store_cases
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings
from totalspineseg_server.nnunet.installation import STEP1_PATCH, STEP1_PATCH_RELEASE, assets
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.processes import unwind_on_signals
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import VersionRecord
from totalspineseg_server.registry.releases import NEWEST
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
from totalspineseg_server.training.candidates import Candidates, Lesson, publish

FEATURES: Final = [32, 64, 128, 256, 320, 320, 320]
BLOCKS: Final = [1, 3, 4, 6, 6, 6, 6]
COARSEST: Final = 3
"""Number of voxels along an axis that is not halved again."""
TRAINER: Final = "nnUNetTrainerDAExtGPU__nnUNetPlans__3d_fullres"
SEED: Final = 11
WIDTH_MM: Final = 72.0
"""Width of the scan, right to left: a sagittal series of about eighteen slices."""
STEPS: Final = ("make", "install", "request", "train", "publish", "export", "stock")
VERSION: Final = "bench-1"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--patch", type=int, nargs=3, default=STEP1_PATCH, metavar="N", help="tile (z, y, x), voxels")
    parser.add_argument("--training-patch", type=int, nargs=3, metavar="N", help="default: the tile")
    parser.add_argument("--scan", choices=[field.name.lower() for field in Field], default="whole")
    parser.add_argument("--width", type=float, default=WIDTH_MM, metavar="MM", help="of the scan, right to left")
    parser.add_argument("--depth", type=float, metavar="MM", help="of the scan, front to back (default: usual)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--alone", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        torch.set_num_threads(arguments.threads)
        torch.manual_seed(SEED)
        globals()[f"{arguments.alone}_step"](arguments)
        return 0
    print("| step | seconds | CPU seconds | peak memory, MiB |\n|---|---|---|---|", flush=True)
    for step in arguments.steps:
        # Linux counts the process and the children that it waited for: the peak of the largest one.
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *sys.argv, "--alone", step], stdout=sys.stderr)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            return process.returncode
        seconds, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
        print(f"| {step} | {seconds:.0f} | {cpu:.0f} | {used.ru_maxrss >> 10} |", flush=True)
    return 0


def make_step(arguments: argparse.Namespace) -> None:
    """Write the zips of a release."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    starter = ModelStore(local_server.APP / "model").named("starter").root
    for step, asset in enumerate(assets(release_of_patch(arguments.patch)), start=1):
        like = ModelFolder.open(starter, step=step)
        folder = arguments.folder / "made" / like.path.parent.name / TRAINER
        official_shape(folder, like, arguments.patch, momentum=True)
        (folder / "fold_0" / "progress.png").write_bytes(b"plot")
        with zipfile.ZipFile(arguments.folder / asset, "w") as archive:
            for path in sorted(folder.parent.rglob("*")):
                archive.write(path, path.relative_to(folder.parents[1]))
        for path in folder.rglob("*.pth"):
            print(f"step {step}: {path.name} holds {path.stat().st_size} bytes")
            path.unlink()


def install_step(arguments: argparse.Namespace) -> None:
    """Install the zips in a separate app."""
    zips = [str(arguments.folder / asset) for asset in assets(release_of_patch(arguments.patch))]
    _command("weights", "install", "--data-dir", str(_store(arguments).model_dir), "--zip", *zips)


def request_step(arguments: argparse.Namespace) -> None:
    """Ask a server to segment one scan."""
    studies, app, log = arguments.folder / "studies", arguments.folder / "app", arguments.folder / "server.log"
    studies.mkdir(exist_ok=True)
    scan = studies / f"{arguments.scan}.nii.gz"
    image, _ = synthetic_scan(Field[arguments.scan.upper()], arguments.width, arguments.depth)
    write_volume(scan, image.data, image.grid)
    app.mkdir(exist_ok=True)
    (app / "main.py").unlink(missing_ok=True)
    (app / "main.py").symlink_to(Path(__file__).resolve().parent / "official_app" / "main.py")
    environment = {"OMP_NUM_THREADS": str(arguments.threads)}
    with server_process(studies, app, log, environment=environment) as (url, process):
        start = time.perf_counter()
        query = {"image": arguments.scan, "output": "json"}
        answer = requests.post(f"{url}/infer/totalspineseg", params=query, timeout=2 * 3600)
        answer.raise_for_status()
        reply = answer.json()
        seconds = time.perf_counter() - start
        peak = next(
            line
            for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            if "VmHWM" in line
        )
        print(f"{scan.name} {image.data.shape}: {seconds:.0f} s; {peak}\n{reply['weights']}")
        print(json.dumps(reply["latencies"]))


def train_step(arguments: argparse.Namespace) -> None:
    """Do one training iteration: a correction, and a synthetic case with the parent as teacher."""
    parent = ModelFolder.open(_store(arguments).resolve(1).root, step=1, name=_store(arguments).resolve(1).name)
    patch = list(arguments.training_patch or arguments.patch)
    folder = replace(parent, configuration={**parent.configuration, "patch_size": patch})
    pair = synthetic_scan(Field.LUMBAR, WIDTH_MM, None)
    cases = [prepare_case(LabeledScan(kind.value, kind.value, kind, *pair), folder) for kind in KINDS]
    settings = FinetuneSettings(iterations=1, batch_size=1, warmup=1, epoch=1, validation_patches=1, device="cpu")
    work = arguments.folder / "run" / "step1"
    start = time.perf_counter()
    tuned = fine_tune(folder, store_cases(cases, folder, work), work, settings)
    print(f"patch {patch}, batch {tuned.batch_size}: {time.perf_counter() - start:.0f} s, Dice {tuned.best:.3f}")
    lesson = Lesson(frozenset(case.name for case in cases), (), None)
    Candidates(work.parent, {1: parent}).keep(1, tuned.weights, lesson, parent.trust)


KINDS: Final = (Origin.CORRECTION, Origin.UNCORRECTED)


def publish_step(arguments: argparse.Namespace) -> None:
    """Make a version of the trained network, and put it into use."""
    store = _store(arguments)
    choice = store.resolve(1)
    parent = ModelFolder.open(choice.root, step=1, name=choice.name)
    origin = {"1": {"name": parent.name, "version": parent.version}}
    record = VersionRecord(VERSION, new_id(()), (1,), origin, {})
    publish(store, record, Candidates(arguments.folder / "run", {1: parent}))
    _command("models", "activate", VERSION, "--data-dir", str(store.model_dir))


def export_step(arguments: argparse.Namespace) -> None:
    """Write the version as a zip for nnU-Net."""
    zip_file = str(arguments.folder / "export.zip")
    _command("models", "export", VERSION, zip_file, "--data-dir", str(_store(arguments).model_dir))


def stock_step(arguments: argparse.Namespace) -> None:
    """Let nnU-Net itself load the exported model, and compute one tile."""
    target = arguments.folder / "stock"
    with zipfile.ZipFile(arguments.folder / "export.zip") as archive:
        archive.extractall(target)
    (folder,) = (path.parent for path in target.glob("*/*/plans.json"))
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    start = time.perf_counter()
    image = torch.from_numpy(np.random.default_rng(SEED).normal(size=(1, *arguments.patch)).astype(np.float32))
    logits = predictor.predict_logits_from_preprocessed_data(image)
    print(f"{folder.name}: {tuple(logits.shape)} in {time.perf_counter() - start:.0f} s")


def synthetic_scan(field: Field, width_mm: float, depth_mm: float | None, *, seed: int = SEED) -> tuple[Volume, Volume]:
    """Return image and labels at 1 mm."""
    rng = np.random.default_rng(seed)
    size = {"width_mm": width_mm} | ({"depth_mm": depth_mm} if depth_mm else {})
    spine = random_spine(rng, SpineOptions(field=field, thoracic=12, lumbar=5, spacing_mm=(1, 1, 1), **size))
    image = render(rng, spine, RenderOptions(contrast="T2", strength=0.5))
    return Volume(image, spine.affine), Volume(spine.labels, spine.affine)


def official_shape(folder: Path, like: ModelFolder, patch: Sequence[int], *, momentum: bool = False) -> ModelFolder:
    """Write a model folder of the official networks' shape with random weights.

    Args:
        folder: The new folder.
        like: A model whose step, regions and other plans it gets.
        patch: Tile (z, y, x), voxels.
        momentum: Whether the optimizer's state is stored, too, as after a training.
    """
    plans = read_json(like.path / "plans.json")
    dataset = read_json(like.path / "dataset.json")
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": list(patch), "spacing": [1.0, 1.0, 1.0]}
    architecture = configuration["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    kwargs = architecture["arch_kwargs"]
    kwargs.pop("n_conv_per_stage", None)
    kwargs |= {
        "n_stages": len(FEATURES),
        "features_per_stage": FEATURES,
        "kernel_sizes": [[3, 3, 3]] * len(FEATURES),
        "strides": _strides(patch),
        "n_blocks_per_stage": BLOCKS,
        "n_conv_per_stage_decoder": [1] * (len(FEATURES) - 1),
    }
    network = get_network_from_plans(
        architecture["network_class_name"],
        kwargs,
        architecture["_kw_requires_import"],
        STEP_CHANNELS[like.step],
        len(like.regions),
        deep_supervision=True,
    )
    print(f"{sum(value.numel() for value in network.parameters()) / 1e6:.1f} million parameters, tile {list(patch)}")
    checkpoint: dict[str, Any] = {
        "network_weights": network.state_dict(),
        "trainer_name": TRAINER.partition("__")[0],
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset},
        "inference_allowed_mirroring_axes": None,
        "current_epoch": 1000,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice_per_class_or_region": [np.full(9, 0.5)]},
    }
    if momentum:
        state = {k: {"momentum_buffer": torch.zeros_like(v)} for k, v in enumerate(network.parameters())}
        checkpoint["optimizer_state"] = {"state": state, "param_groups": [{"lr": 1e-5, "params": list(state)}]}
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", dataset)
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_best.pth")
    return ModelFolder.open(folder, step=like.step)


def _strides(patch: Sequence[int]) -> list[list[int]]:
    """Return the strides of each stage: every axis is halved as long as ``COARSEST`` voxels are left."""
    sizes, strides = list(patch), [[1, 1, 1]]
    for _ in FEATURES[1:]:
        strides.append([2 if size >= 2 * COARSEST else 1 for size in sizes])
        sizes = [size // stride for size, stride in zip(sizes, strides[-1], strict=True)]
    return strides


def release_of_patch(patch: Sequence[int]) -> str:
    """Return the release for the names of the zips."""
    return STEP1_PATCH_RELEASE if tuple(patch) == STEP1_PATCH else NEWEST


def _store(arguments: argparse.Namespace) -> ModelStore:
    return ModelStore(arguments.folder / "app" / "model")


def _command(*words: str) -> None:
    if code := totalspineseg(list(words)):
        sys.exit(code)


if __name__ == "__main__":
    # Processes that this process has started must not continue after it.
    unwind_on_signals()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
