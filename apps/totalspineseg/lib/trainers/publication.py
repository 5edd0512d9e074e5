"""From a judged candidate to a version: published with its verdict, and served where that is sound."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from lib.errors import StorageError, WeightsError
from lib.files import storage_errors
from lib.gate.verdict import GateReport
from lib.nnunet.model_folder import ModelFolder
from lib.registry.manage import require_served
from lib.registry.records import VersionRecord, read_record, write_record
from lib.registry.store import Choice, ModelStore
from lib.trainers.candidates import DONE_FILE, Candidates

PREFIX: Final = "trained-"
"""Of a version's name; its run's id follows."""


@dataclass(frozen=True)
class Judged:
    """What the gate decided on.

    Attributes:
        report: Its report.
        share: Of the trained weights in what it decided on.
    """

    report: GateReport
    share: float

    @property
    def sentence(self) -> str:
        """What the gate said, and of how much of the trained weights where that is not all of them."""
        if self.share == 1:
            return self.report.reason
        return f"{self.report.reason}; it holds {self.share:.0%} of the trained weights, since all of them did not pass"


def published(store: ModelStore, name: str) -> tuple[Judged, Mapping[str, Any]] | None:
    """What the gate said of a version that was published before, and its record; None when it was not.

    A version holds the weights of its verdict alone: another look at the same candidates may pass other ones.

    Raises:
        StorageError: The version has no readable record.
    """
    if name not in store.versions():
        return None
    record = read_record(store, name) or {}
    try:
        return Judged(GateReport.from_json(record["gate"]), float(record["new_weights"])), record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"a readable record of {name!r} is required, got a damaged one; train anew without going on (--restart)"
        ) from error


def publish(store: ModelStore, record: VersionRecord, candidates: Candidates) -> None:
    """Let a version appear whole.

    Args:
        store: Where.
        record: Of the version; ``models`` and ``digests`` are filled in here.
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
    """Why a version that passed is not put into use, and how to do it; empty when nothing else is in use."""
    if not instead:
        return ""
    there = ", ".join(f"{compared[step].name} for step {step}" for step in sorted(instead))
    here = ", ".join(f"{chosen} for step {step}" for step, chosen in sorted(instead.items()))
    return (
        f"passed the gate, but not served: the weights it was compared with ({there}) must be in use, got {here}; "
        f"to serve it all the same: totalspineseg models activate {name}"
    )


def refused_since(store: ModelStore, name: str) -> str:
    """Why a version that passed is not put into use, where the gate has looked again; empty where nothing fell."""
    try:
        require_served(store, name)
    except WeightsError as refusal:
        return f"passed the gate when it was made, but not served: {refusal}"
    return ""


def taken_back(store: ModelStore, name: str) -> str:
    """Why a version that passed is not put into use once more, and how to do it; empty where nobody took it back."""
    if not store.is_taken_back(name):
        return ""
    return (
        "passed the gate and was in use, but not served again: somebody has put other weights into use since; to serve "
        f"it all the same: totalspineseg models activate {name}"
    )
