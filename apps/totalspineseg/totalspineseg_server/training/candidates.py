"""Keep the networks that a run has trained in the run's folder until the gate has judged them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import PARTIAL_PREFIX, read_json, write_json
from totalspineseg_server.nnunet.candidate import mixed_weights, write_candidate
from totalspineseg_server.nnunet.cases import Skipped
from totalspineseg_server.nnunet.finetune_job import STATES
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.preprocessed import PREPROCESSED_DIR
from totalspineseg_server.trust import Trust

CANDIDATE_DIR: Final = "candidate"
MIXED_DIR: Final = "mixed-"
"""Beginning of the name of a folder with the candidate's weights mixed with those in use; the share of new weights
follows."""
DONE_FILE: Final = "done.json"
"""File that is written into a candidate's folder once it is complete."""


@dataclass(frozen=True)
class Lesson:
    """The cases on which one network was trained.

    Attributes:
        cases: Names of the cases.
        skipped: Cases that could not be used.
        best: Best mean pseudo Dice; None if there was no report.
    """

    cases: frozenset[str]
    skipped: tuple[Skipped, ...]
    best: float | None


class Candidates:
    """The trained networks of one run.

    Args:
        run: The run's folder.
        parents: Step -> the model in use that its training started from.
    """

    def __init__(self, run: Path, parents: Mapping[int, ModelFolder]) -> None:
        self._run, self._parents = run, parents

    @property
    def name(self) -> str:
        """The run's id."""
        return self._run.name

    def work(self, step: int) -> Path:
        """Return the folder of a step's training: its cases, states and logs."""
        return self._run / f"step{step}"

    def folder(self, step: int, share: float) -> Path:
        """Return the folder of the network that has this share of the trained weights."""
        return self.work(step) / (CANDIDATE_DIR if share == 1 else f"{MIXED_DIR}{share:g}")

    def open(self, step: int, share: float = 1) -> ModelFolder:
        """Open a trained network, its weights mixed with the parent's if ``share`` is below 1.

        Raises:
            WeightsError: It does not exist.
            StorageError: The mixed weights cannot be written.
        """
        if share != 1:
            parent, trained, folder = self._parents[step], self.open(step), self.folder(step, share)
            shutil.rmtree(folder, ignore_errors=True)
            write_candidate(parent, mixed_weights(parent, trained, share), folder, trained.trust)
        return ModelFolder.open(self.folder(step, share), step=step, name="candidate")

    def keep(self, step: int, weights: Mapping[str, torch.Tensor], lesson: Lesson, trust: Trust) -> None:
        """Write a trained network and how far it is trusted; after that, its training is not repeated.

        Raises:
            StorageError: It cannot be written.
        """
        folder = self.folder(step, 1)
        (folder / DONE_FILE).unlink(missing_ok=True)
        write_candidate(self._parents[step], weights, folder, trust)
        skipped = [[case.name, case.reason] for case in lesson.skipped]
        write_json(folder / DONE_FILE, {"best": lesson.best, "cases": sorted(lesson.cases), "skipped": skipped})
        for name in STATES:
            (self.work(step) / name).unlink(missing_ok=True)
        shutil.rmtree(self.work(step) / PREPROCESSED_DIR, ignore_errors=True)

    def lesson(self, step: int) -> Lesson | None:
        """Return the cases on which a step was trained; None if it is not trained yet, or its network is missing."""
        try:
            self.open(step)
            content = read_json(self.folder(step, 1) / DONE_FILE)
            skipped = tuple(Skipped(str(name), str(reason)) for name, reason in content["skipped"])
            return Lesson(frozenset(content["cases"]), skipped, content["best"])
        except (WeightsError, StorageError, ValueError, KeyError, TypeError):
            return None


def clear(run: Path) -> None:
    """Remove the working files of a run that has ended or is not continued; logs and reports stay."""
    for name in (CANDIDATE_DIR, f"{MIXED_DIR}*", PREPROCESSED_DIR):
        for folder in run.glob(f"step[12]/{name}"):
            # Remove this first, so that a partial folder is never mistaken for a complete one.
            (folder / DONE_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    for name in (*STATES, f"{PARTIAL_PREFIX}*"):
        for file in run.glob(f"step[12]/{name}"):
            file.unlink(missing_ok=True)
