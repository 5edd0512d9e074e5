"""Train from scratch with nnU-Net's own planning, preprocessing and training; an interrupted training can be
continued."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch

from totalspineseg_server import places
from totalspineseg_server.errors import TrainingError
from totalspineseg_server.files import read_json_if_there, storage_errors, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.nnunet.plugin.spine_trainer import EPOCHS_VARIABLE, ITERATIONS_VARIABLE, SpineTrainer
from totalspineseg_server.nnunet.raw_dataset import require_fold, subjects_of, write_splits
from totalspineseg_server.nnunet.raw_folder import DATASET_FILE, NnunetFolders
from totalspineseg_server.nnunet.runtimes import resolve_device
from totalspineseg_server.nnunet.training_log import TEXT_FILE
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.model_store import DATASET_OF_STEP, dataset_name
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.runs import is_running, only_one

PLUGIN_DIR: Final = Path(__file__).resolve().parents[1] / "nnunet" / "plugin"
CONFIGURATION: Final = "3d_fullres"
"""The configuration that TotalSpineSeg used; cases are at 1 mm already."""
PLANNED_FILE: Final = "totalspineseg.json"
"""File in nnU-Net's preprocessed folder that records the cases from which it was made."""
SETTINGS_FILE: Final = "training.json"
OUTPUT_FILE: Final = "nnunet.txt"
"""File with everything that nnU-Net prints."""
FINAL_FILE: Final = "checkpoint_final.pth"
STARTED: Final = (FINAL_FILE, "checkpoint_latest.pth", "checkpoint_best.pth")
DONE_FILE: Final = Path("validation") / "summary.json"
POLL_S: Final = 0.5
PLAN_SECONDS: Final = 24 * 3600.0
"""How long a fold waits while another one plans and preprocesses, seconds."""
TAIL_LINES: Final = 400
"""Lines of nnU-Net's output that are searched for the reason of a failure."""
PLAN_MODULE: Final = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
TRAIN_MODULE: Final = "nnunetv2.run.run_training"


@dataclass(frozen=True)
class ScratchSettings:
    """Settings of a training from scratch; the defaults are nnU-Net's, which TotalSpineSeg used.

    Attributes:
        size: Residual encoder preset of nnU-Net: "M", "L" (which TotalSpineSeg used) or "XL".
        epochs: Number of epochs.
        iterations: Iterations per epoch; the batch size is that of the plan.
        gpus: Number of GPUs that share the batch (nnU-Net's distributed data parallel).
        device: "auto", "cuda" or "cpu".
        workers: Processes that prepare cases and batches; None for nnU-Net's default, 0 for none.
    """

    size: str = "L"
    epochs: int = 1000
    iterations: int = 250
    gpus: int = 1
    device: str = "auto"
    workers: int | None = None

    @property
    def plans(self) -> str:
        """Name of the plans in nnU-Net."""
        return f"nnUNetResEncUNet{self.size}Plans"


def train_from_scratch(
    folders: NnunetFolders,
    step: int,
    fold: str,
    settings: ScratchSettings | None = None,
    *,
    restart: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Plan, preprocess and train one fold of one step; if it is interrupted, the next call continues.

    Args:
        folders: Folders with the raw dataset.
        step: 1 or 2.
        fold: "0" to "4", or "all", which trains on every case.
        settings: Settings; an unfinished run must have the same.
        restart: Delete the run of this fold, finished or not, and make a new plan unless other folds use the present
            one.
        tell: Called with each line of progress.

    Returns:
        The model folder, with ``fold_<fold>/checkpoint_final.pth`` in it.

    Raises:
        TrainingError: There is no case or no such device, another training of this fold is running, the cases or
            settings have changed since it began, or nnU-Net failed.
        StorageError: A folder cannot be written.
    """
    run = _Scratch(folders, step, fold, settings or ScratchSettings(), tell)
    run.check()
    with only_one(run.folder) as lock:
        run.lock = lock
        run.plan(restart=restart)
        return run.train()


class _Scratch:
    """One fold of one step."""

    def __init__(
        self, folders: NnunetFolders, step: int, fold: str, settings: ScratchSettings, tell: Callable[[str], None]
    ) -> None:
        self.folders, self.step, self.fold, self.settings, self.tell = folders, step, fold, settings, tell
        self.dataset = dataset_name(step)
        self.raw = folders.raw / self.dataset
        self.preprocessed = folders.preprocessed / self.dataset
        self.model = folders.results / self.dataset / f"{SpineTrainer.__name__}__{settings.plans}__{CONFIGURATION}"
        self.folder = self.model / f"fold_{fold}"
        self.lock: IO[str] | None = None

    def check(self) -> None:
        """Check for errors before the training takes hours."""
        subjects = subjects_of(self.raw)
        if not subjects:
            raise TrainingError(training_messages.NO_CASES.format(folder=str(self.raw), command=COMMAND))
        require_fold(self.fold, subjects.values())
        try:
            self.device = resolve_device(self.settings.device).type
        except ValueError as error:
            raise TrainingError(str(error)) from error
        gpus = torch.cuda.device_count() if self.device == "cuda" else 0
        if self.settings.gpus > max(1, gpus):
            raise TrainingError(training_messages.TOO_FEW_GPUS.format(asked=self.settings.gpus, found=gpus))
        self.cases = len(subjects)

    def plan(self, *, restart: bool) -> None:
        """Make nnU-Net's fingerprint, plan and preprocessing, unless they exist for these cases."""
        with locked(self.preprocessed, seconds=PLAN_SECONDS):
            digest = _digest(self.raw)
            known = read_json_if_there(self.preprocessed / PLANNED_FILE, training_messages.UNKNOWN_PLAN)
            others = self._others_begun()
            if others and any(value != digest for value in known.values()):
                raise TrainingError(
                    training_messages.OTHER_PLAN.format(
                        trained=", ".join(others),
                        dataset=self.dataset,
                        results=str(self.folders.results / self.dataset),
                    )
                )
            if restart:
                self._forget()
                known = known if others else {}
            elif self._begun and any(value != digest for value in known.values()):
                raise TrainingError(training_messages.OTHER_CASES.format(dataset=self.dataset))
            if known.get(self.settings.plans) != digest:
                self._plan(digest, {plans: value for plans, value in known.items() if value == digest})

    def _plan(self, digest: str, known: dict[str, str]) -> None:
        self.tell(f"{self.dataset}: planning and preprocessing {self.cases} cases")
        words = ["-d", DATASET_OF_STEP[self.step], "-pl", f"nnUNetPlannerResEnc{self.settings.size}"]
        words += ["-c", CONFIGURATION, "--clean", "--verify_dataset_integrity", "--no_pbar"]
        if known:
            # The cases are the same, but were planned for another network size, and a training of that size may be
            # reading them.
            words += ["--no_pp"]
        if self.settings.workers is not None:
            # The planner does not accept 0 processes (which means "in this process" to the training).
            count = str(max(1, self.settings.workers))
            words += ["-np", count, "-npfp", count]
        # After an interruption everything is planned again, because only some of the files are from these cases.
        write_json(self.preprocessed / PLANNED_FILE, known)
        self._run(PLAN_MODULE, words, {})
        write_splits(self.raw, self.preprocessed)
        if _digest(self.raw) != digest:
            raise TrainingError(training_messages.CASES_CHANGED.format(dataset=self.dataset, command=COMMAND))
        write_json(self.preprocessed / PLANNED_FILE, {**known, self.settings.plans: digest})

    def _forget(self) -> None:
        """Delete the run of this fold."""
        with storage_errors(self.folder):
            for entry in self.folder.iterdir():
                if self.lock is not None and entry.name == Path(self.lock.name).name:
                    continue
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @property
    def _begun(self) -> bool:
        return any((self.folder / name).is_file() for name in STARTED)

    def _others_begun(self) -> list[str]:
        """Return the other folds, of any network size, that use the plan: those with a state, and those in training
        now."""
        folds = sorted((self.folders.results / self.dataset).glob(f"{SpineTrainer.__name__}__*/fold_*"))
        return [f"{fold.parent.name}/{fold.name}" for fold in folds if fold != self.folder and _relies_on_plan(fold)]

    def train(self) -> Path:
        """Run nnU-Net's training, from the start or continued, and its validation."""
        if (self.folder / DONE_FILE).is_file():
            self.tell(f"{self.dataset}, fold {self.fold}: already trained; use --restart to train it again")
            return self.model
        begun = self._begun
        self._require_same_settings(begun)
        words = [DATASET_OF_STEP[self.step], CONFIGURATION, self.fold, "-p", self.settings.plans]
        words += ["-tr", SpineTrainer.__name__, "-device", self.device]
        words += ["--c"] * begun
        words += ["-num_gpus", str(self.settings.gpus)] if self.settings.gpus > 1 else []
        gpus = "one GPU" if self.settings.gpus == 1 else f"{self.settings.gpus} GPUs"
        where = "the CPU, far too slow for real use" if self.device == "cpu" else gpus
        verb = "continuing" if begun else "training"
        self.tell(f"{self.dataset}, fold {self.fold}: {verb} on {where}; nnU-Net's output is in {self._output}")
        variables = {EPOCHS_VARIABLE: self.settings.epochs, ITERATIONS_VARIABLE: self.settings.iterations}
        if self.settings.workers is not None:
            variables["nnUNet_n_proc_DA"] = self.settings.workers
            variables["nnUNet_def_n_proc"] = max(1, self.settings.workers)
        self._run(TRAIN_MODULE, words, {name: str(value) for name, value in variables.items()})
        return self.model

    def _require_same_settings(self, begun: bool) -> None:
        """Check that a run continues with the settings it began with, since the learning rate depends on the number of
        epochs."""
        file = self.folder / SETTINGS_FILE
        wanted = {
            name: value for name, value in asdict(self.settings).items() if name in ("size", "epochs", "iterations")
        }
        known = read_json_if_there(file, training_messages.START_OVER) if begun else {}
        if known and known != wanted:
            raise TrainingError(training_messages.OTHER_SETTINGS.format(first=_listed(known), now=_listed(wanted)))
        write_json(file, wanted)

    @property
    def _output(self) -> Path:
        return self.folder / OUTPUT_FILE

    def _run(self, module: str, words: Sequence[str], variables: dict[str, str]) -> None:
        """Run one of nnU-Net's programs in a process of its own, and pass its log on line by line."""
        environment = {**os.environ, **self.folders.environment(), **variables}
        environment["nnUNet_extTrainer"] = str(PLUGIN_DIR)
        environment["PYTHONPATH"] = places.python_path()
        if not any(map(shutil.which, ("cc", "gcc", "clang"))):
            # Compiling the network needs a C compiler; without one nnU-Net would stop.
            environment.setdefault("nnUNet_compile", "f")
        log = self.folder / TEXT_FILE
        seen = log.stat().st_size if log.exists() else 0
        with storage_errors(self.folder):
            output = self._output.open("a", encoding="utf-8")
        with output:
            start = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                # Let the child hold the lock as long as it trains, even if this process is killed.
                pass_fds=() if self.lock is None or sys.platform == "win32" else (self.lock.fileno(),),
            )
            try:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    seen = self._pass_on(log, seen)
            finally:
                process.terminate()
                process.wait()
        self._pass_on(log, seen)
        if process.returncode != 0:
            raise TrainingError(self._failure(process.returncode, start))

    def _pass_on(self, log: Path, seen: int) -> int:
        """Pass on the log's lines from a position, and return the new position."""
        if not log.exists():
            return seen
        with log.open("rb") as stream:
            stream.seek(seen)
            whole, newline, _ = stream.read().rpartition(b"\n")
        for line in whole.decode("utf-8", "replace").splitlines():
            self.tell(line)
        return seen + len(whole) + len(newline)

    def _failure(self, code: int, start: int) -> str:
        with self._output.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        printed = [line.strip() for line in lines if line.strip()]
        errors = [line for line in printed if "Error" in line]
        reason = (errors or printed or ["no output"])[-1]
        memory = any("out of memory" in line.lower() for line in printed)
        remedy = training_messages.SMALLER_SIZE if memory else training_messages.OUTPUT_AT.format(file=self._output)
        return training_messages.NNUNET_FAILED.format(code=code, reason=reason[:200], remedy=remedy)


def _relies_on_plan(fold: Path) -> bool:
    if any((fold / name).is_file() for name in STARTED):
        return True
    # In its first epochs a training has no state yet; a training that waits for the plan has no settings either.
    return (fold / SETTINGS_FILE).is_file() and is_running(fold)


def _digest(dataset: Path) -> str:
    """Return a digest of the cases, their sizes, times and subjects."""
    try:
        digest = hashlib.sha256((dataset / DATASET_FILE).read_bytes())
    except FileNotFoundError as error:
        raise TrainingError(
            training_messages.UNFINISHED_DATASET.format(dataset=str(dataset), file=DATASET_FILE, command=COMMAND)
        ) from error
    digest.update(json.dumps(subjects_of(dataset)).encode())
    for file in sorted((*(dataset / "imagesTr").iterdir(), *(dataset / "labelsTr").iterdir())):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))
