"""Fine-tune the starter weights on patients of the SPIDER data set, as a site fine-tunes them on its corrections.

    python tools/tune_starter.py SLABS OUT --step 2 --iterations 800

Trains one step with the fine-tuning of ``totalspineseg retrain`` on the patients whom ``spider_patients.csv`` does not
hold out, and on the synthetic spines that it replays. A patient's label is the correction of ``bench_retrain_real.py``:
discs, vertebrae and canal from the masks; what they do not show is "unreviewed", and so is the cord; with
``--hide-t12-l1`` also T12-L1, which a slab without ribs does not tell from its neighbors. OUT becomes a
starter folder with the new weights of this step and the given weights of the other one; ``mix_starter.py`` averages it
with those that it began with. If the tool is killed, the same command continues.

Source of the slabs: van der Graaf et al., Lumbar spine segmentation in MR images, Sci Data 2024; Zenodo 10159290; CC BY
4.0.
"""

import argparse
import shutil
import sys
from collections.abc import Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from bench_retrain_real import TRAINED_ON, Truth, label_of, truth_of  # noqa: E402
from spider_cases import Patient, read_patients  # noqa: E402

from totalspineseg_server.anatomy import CODE_OF, DISC_T12_L1, NAME_OF  # noqa: E402
from totalspineseg_server.errors import TotalSpineSegError  # noqa: E402
from totalspineseg_server.files import read_json, sha256_of, write_json  # noqa: E402
from totalspineseg_server.geometry import LabelArray  # noqa: E402
from totalspineseg_server.io.volumes import read_labels, write_volume  # noqa: E402
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource, prepare_cases  # noqa: E402
from totalspineseg_server.nnunet.draws import draws_of, in_order_of_choice  # noqa: E402
from totalspineseg_server.nnunet.finetune import Progress, fine_tune  # noqa: E402
from totalspineseg_server.nnunet.finetune_job import store_cases  # noqa: E402
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings  # noqa: E402
from totalspineseg_server.nnunet.model_folder import ModelFolder, models_in  # noqa: E402
from totalspineseg_server.nnunet.predictor import WarmPredictor  # noqa: E402
from totalspineseg_server.nnunet.starter_model import export_model  # noqa: E402
from totalspineseg_server.nnunet.starter_plans import FEATURES, STARTER_FOLDERS  # noqa: E402
from totalspineseg_server.training.remembered import replay_sources  # noqa: E402
from totalspineseg_server.training.retrain_settings import REPLAY_CASES  # noqa: E402
from totalspineseg_server.training.scoring import Model, predict_named  # noqa: E402

STARTER = ROOT / "apps" / "totalspineseg" / "model" / "starter"
WORK = "tuning"
"""Folder in OUT with predictions, cases, states and logs."""


def tune(
    slabs: Path,
    out: Path,
    step: int,
    settings: FinetuneSettings,
    *,
    weights: Path,
    replay_cases: int,
    hidden: Set[int] = frozenset(),
) -> None:
    """Write a starter folder with fine-tuned weights of one step.

    Args:
        slabs: Folder of the slabs.
        out: Folder to write.
        step: 1 or 2.
        settings: Settings of the fine-tuning.
        weights: Starter folder to begin with.
        replay_cases: Number of synthetic spines to replay.
        hidden: Codes of structures about which the patients' labels teach nothing, apart from the cord.

    Raises:
        TotalSpineSegError: A slab cannot be read, a network cannot be loaded, or the training failed.
    """
    parents, work = models_in(weights), out / WORK / f"step{step}"
    networks = {k: WarmPredictor(folder, device=settings.device) for k, folder in parents.items()}
    model = Model(networks[1], networks[2])
    patients = [patient for patient in read_patients() if not patient.held_out]
    people = [source_of(slabs, patient, model, out / WORK / "predicted", hidden) for patient in patients]
    sources = in_order_of_choice([*people, *replay_sources(replay_cases)], settings.seed)
    wanted = draws_of(sources, settings.replay_share).count(settings.iterations * settings.batch_size)
    prepared = prepare_cases(
        sources,
        parents[step],
        on_skip=lambda case: print(f"Left out {case.name}: {case.reason}", flush=True),
        at_most=wanted,
        before_each=lambda name: print(f"preparing {name}", flush=True),
        finder=networks[1] if step == 2 else None,
    )
    cases = store_cases(prepared, parents[step], work)
    used = [patient for patient in patients if name_of(patient) in {case.name for case in cases}]
    if not used:
        raise TotalSpineSegError(f"{str(slabs)!r} has no slab of a patient to train on. Name the folder of the slabs.")
    trained = fine_tune(parents[step], cases, work, settings, on_progress=show)
    for other, parent in parents.items():
        if other != step:
            shutil.copytree(parent.path, out / STARTER_FOLDERS[other], dirs_exist_ok=True)
    folder = out / STARTER_FOLDERS[step]
    export_model(folder, step, trained.weights, FEATURES)
    write_json(folder / "training.json", record_of(slabs, used, parents[step], settings, replay_cases, hidden))


def source_of(slabs: Path, patient: Patient, model: Model, predicted: Path, hidden: Set[int]) -> ScanSource:
    """Return the correction of a patient, which is read when it is needed.

    Args:
        slabs: Folder of the slabs.
        patient: The patient.
        model: Networks whose predicted cord is marked as such.
        predicted: Folder that keeps the predictions for the next call.
        hidden: See ``tune``.
    """
    name = name_of(patient)

    def read() -> LabeledScan:
        truth = truth_of(slabs, patient.number, sure=patient.sure)
        label, unchecked = label_of(truth, prediction_of(truth, model, predicted / f"{name}.nii.gz"))
        unreviewed = hidden | {CODE_OF[entry] for entry in unchecked}
        return LabeledScan(name, name, Origin.CORRECTION, truth.image, label, unreviewed=frozenset(unreviewed))

    return ScanSource(name, Origin.CORRECTION, read)


def name_of(patient: Patient) -> str:
    """Return the name of a patient's case."""
    return f"spider-{patient.number}"


def prediction_of(truth: Truth, model: Model, file: Path) -> LabelArray:
    """Return the codes that networks find in a patient, from a file if it exists, else into it."""
    if not file.exists():
        codes, _ = predict_named(truth.image, model)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_volume(file, codes, truth.image.grid)
    return np.asarray(read_labels(file).data, np.uint8)


def record_of(
    slabs: Path,
    used: list[Patient],
    parent: ModelFolder,
    settings: FinetuneSettings,
    replay_cases: int,
    hidden: Set[int],
) -> dict[str, Any]:
    """Return what the file beside the weights says about their training."""
    earlier = parent.path / "training.json"
    people = set(read_json(earlier).get(TRAINED_ON, ())) if earlier.is_file() else set()
    people |= {sha256_of(slabs / f"{patient.number}_label.nii.gz") for patient in used}
    return {
        "step": parent.step,
        "fine_tuned": asdict(settings),
        "replay_cases": replay_cases,
        "hidden": sorted(NAME_OF[code] for code in hidden),
        "begun_from_sha256": sha256_of(parent.checkpoint),
        TRAINED_ON: sorted(people),
    }


def show(progress: Progress) -> None:
    """Print the progress every now and then."""
    if progress.iteration % 25 == 0:
        done = f"step {progress.step}: {progress.iteration} of {progress.iterations} iterations"
        print(f"{done}, {progress.seconds:.0f} s, pseudo Dice {progress.best:.3f}", flush=True)


def main() -> int:
    """Fine-tune; return 1 if it failed."""
    usual = FinetuneSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slabs", type=Path, metavar="SLABS", help="folder of NNN_image.nii.gz and NNN_label.nii.gz")
    parser.add_argument("out", type=Path, metavar="OUT", help="starter folder to write")
    parser.add_argument("--step", type=int, choices=(1, 2), required=True, help="the network to fine-tune")
    parser.add_argument("--weights", type=Path, default=STARTER, help="starter folder to begin with")
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--replay-share", type=float, default=usual.replay_share)
    parser.add_argument("--replay-cases", type=int, default=REPLAY_CASES)
    parser.add_argument("--hide-t12-l1", action="store_true", help="do not teach which disc is T12-L1")
    parser.add_argument("--device", default=usual.device, help="auto (a GPU if there is one), cpu or cuda")
    arguments = parser.parse_args()
    settings = FinetuneSettings(
        iterations=arguments.iterations, replay_share=arguments.replay_share, device=arguments.device
    )
    hidden = {DISC_T12_L1} if arguments.hide_t12_l1 else set()
    options: dict[str, Any] = {"weights": arguments.weights, "replay_cases": arguments.replay_cases, "hidden": hidden}
    try:
        tune(arguments.slabs, arguments.out, arguments.step, settings, **options)
    except TotalSpineSegError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
