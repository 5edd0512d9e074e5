"""Publish a judged candidate as a version with its verdict, and put it into use if that is sound."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import storage_errors
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.manage import require_served
from totalspineseg_server.registry.model_store import Choice, ModelStore
from totalspineseg_server.registry.records import VersionRecord, read_record, write_record
from totalspineseg_server.training.candidates import DONE_FILE, Candidates
from totalspineseg_server.training.verdict import GateReport

PREFIX: Final = "trained-"
"""Beginning of a version's name; the run's id follows."""


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
        return (
            f"{self.report.reason}; it has {self.share:.0%} of the trained weights, because with all of them it did "
            "not pass"
        )


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
        raise StorageError(f"The record of {name!r} is damaged. Start a new training with --restart.") from error


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
    return (
        f"passed the gate, but is not served: it was compared with {there}, and now other weights are in use "
        f"({here}). To serve it anyway: {COMMAND} models activate {name}"
    )


def refused_since(store: ModelStore, name: str) -> str:
    """Return why a version that passed is not put into use after the gate judged it again; empty if it passed again."""
    try:
        require_served(store, name)
    except WeightsError as refusal:
        return f"passed the gate when it was made, but was not put into use: {refusal}"
    return ""


def taken_back(store: ModelStore, name: str) -> str:
    """Return why a version that passed is not put into use again, and how to do it; empty if it may be."""
    if not store.is_taken_back(name):
        return ""
    return (
        "passed the gate and was in use, but is not served again, because somebody has put other weights into use "
        f"since. To serve it anyway: {COMMAND} models activate {name}"
    )
