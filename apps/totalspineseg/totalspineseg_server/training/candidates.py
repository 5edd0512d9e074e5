"""Keep the networks that a run has trained in the run's folder, and publish a judged one as a version."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import PARTIAL_PREFIX, read_json, storage_errors, write_json
from totalspineseg_server.nnunet.cases import Skipped
from totalspineseg_server.nnunet.finetune_job import PREPROCESSED_DIR, STATES
from totalspineseg_server.nnunet.model_folder import ModelFolder, mixed_weights, write_candidate
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.manage import require_served
from totalspineseg_server.registry.model_store import Choice, ModelStore
from totalspineseg_server.registry.records import VersionRecord, read_record, write_record
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.verdict import GateReport
from totalspineseg_server.trust import Trust

CANDIDATE_DIR: Final = "candidate"
MIXED_DIR: Final = "mixed-"
"""Beginning of the name of a folder with the candidate's weights mixed with those in use; the share of new weights
follows."""
DONE_FILE: Final = "done.json"
"""File that is written into a candidate's folder once it is complete."""
PREFIX: Final = "trained-"
"""Beginning of a version's name; the run's id follows."""


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


@dataclass(frozen=True)
class Judged:
    """The gate's decision.

    Attributes:
        report: Its report.
        share: Share of the trained weights in the network that it decided on.
    """

    report: GateReport
    share: float

    @property
    def sentence(self) -> str:
        """The gate's reason, with the share of trained weights if that is not all of them."""
        if self.share == 1:
            return self.report.reason
        return training_messages.SHARE.format(reason=self.report.reason, share=self.share)


def published(store: ModelStore, name: str) -> tuple[Judged, Mapping[str, Any]] | None:
    """Return the verdict on a version and its record if it was published before, else None.

    A published version has the share of new weights that its verdict was about. If the same candidates are judged
    again, another share may pass.

    Raises:
        StorageError: The version has no readable record.
    """
    if name not in store.versions():
        return None
    record = read_record(store, name) or {}
    try:
        return Judged(GateReport.from_json(record["gate"]), float(record["new_weights"])), record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(training_messages.DAMAGED_RECORD.format(name=name)) from error


def publish(store: ModelStore, record: VersionRecord, candidates: Candidates) -> None:
    """Publish a version, which appears complete or not at all.

    Args:
        store: The model versions.
        record: Record of the version; ``models`` and ``digests`` are filled in here.
        candidates: The trained networks.

    Raises:
        StorageError: It cannot be written; nothing appears.
    """
    with store.publish(record.name) as staging:
        with storage_errors(staging):
            for step in record.steps:
                source = candidates.folder(step, record.new_weights)
                shutil.copytree(source, staging, ignore=lambda *_: [DONE_FILE], dirs_exist_ok=True)
        models = {step: ModelFolder.open(staging, step=step, name=record.name) for step in record.steps}
        versions = {str(step): model.version for step, model in models.items()}
        digests = {str(step): model.digest for step, model in models.items()}
        write_record(staging, replace(record, models=versions, digests=digests))


def not_served(name: str, compared: Mapping[int, Choice], instead: Mapping[int, str]) -> str:
    """Return why a version that passed is not put into use, and how to use it; empty if nothing else is in use."""
    if not instead:
        return ""
    there = ", ".join(f"{compared[step].name} for step {step}" for step in sorted(instead))
    here = ", ".join(f"{chosen} for step {step}" for step, chosen in sorted(instead.items()))
    return training_messages.NOT_SERVED.format(there=there, here=here, command=COMMAND, name=name)


def refused_since(store: ModelStore, name: str) -> str:
    """Return why a version that passed is not put into use after the gate judged it again; empty if it passed again."""
    try:
        require_served(store, name)
    except WeightsError as refusal:
        return training_messages.REFUSED_SINCE.format(refusal=refusal)
    return ""


def taken_back(store: ModelStore, name: str) -> str:
    """Return why a version that passed is not put into use again, and how to do it; empty if it may be."""
    if not store.is_taken_back(name):
        return ""
    return training_messages.TAKEN_BACK.format(command=COMMAND, name=name)
