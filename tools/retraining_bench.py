"""Share between the benchmarks of retraining how they predict, submit as 3D Slicer does, and compare."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from local_server import ROOT
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from totalspineseg_server.agreement import GROUPS, LEVELS, CaseScore
from totalspineseg_server.anatomy import UNREVIEWED, UNREVIEWED_NAME, WIRE_LABELS
from totalspineseg_server.files import read_json, write_json
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.nnunet.finetune_settings import OPTIMIZERS
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.segments import from_names, to_wire, without_regions
from totalspineseg_server.training.retrain_settings import RetrainSettings

HALVED: Final = 0.5
"""Largest share of the error that may be left, for the aim to be reached."""
REFUSED: Final = "Status: 422"
"""Part of the client's error if the server answered, but found no spine."""
SETTINGS: Final = ("iterations", "batch_size", "optimizer", "learning_rate", "replay_cases", "replay_share", "device")
Rows = Mapping[str, Mapping[str, float]]
"""Measure -> "before" and "after"."""
Table = Mapping[str, Rows]
"""Kind of scans -> rows."""
MEAN: Final = "mean Dice"
MEASURES: Final = (MEAN, LEVELS)
"""The measures that decide."""
MARGIN: Final = 0.01
"""Largest loss of any kind of scans, in the mean Dice and in the share of levels with the right name."""


class ServerError(RuntimeError):
    """A scan could not be predicted; the message names it."""


class Progress:
    """The finished parts of a run, in a file that a repeated command reads.

    Args:
        file: The file; its folder is made if it is missing.
        about: Settings of the run; a run with other settings does not continue it.

    Raises:
        ServerError: The file is about another run.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        self._file = file
        # Compare in the form that JSON reads back.
        known = json.loads(json.dumps(about))
        self.done: dict[str, Any] = read_json(file) if file.exists() else {"about": known}
        if self.done.get("about") != known:
            raise ServerError(
                f"{file} belongs to a run with other settings ({json.dumps(self.done.get('about'))}). Repeat these, or "
                "choose another folder with --out."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, self.done)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what was made under a name, or make it."""
        if name not in self.done:
            self.done[name] = make()
            write_json(self._file, self.done)
        return self.done[name]


@dataclass(frozen=True)
class Case:
    """A scan of a benchmark with its truth in codes; a scan outside the studies has a ``file``, which is sent along."""

    name: str
    truth: Volume
    file: Path | None = None


@dataclass(frozen=True)
class Answer:
    """The server's prediction of a scan.

    Attributes:
        codes: Codes on the grid of the image; all 0 if no spine was found.
        versions: Versions that made it.
        certainty: Certainty of the names; empty if there are none.
    """

    codes: LabelArray
    versions: frozenset[str] = frozenset()
    certainty: str = ""


def training_arguments(parser: argparse.ArgumentParser, *, iterations: int, batch_size: int) -> None:
    """Add the settings of the training, the initial weights, and the folder for results."""
    usual = RetrainSettings()
    parser.add_argument("--iterations", type=int, default=iterations)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default=usual.finetune.optimizer)
    parser.add_argument("--learning-rate", default="auto", help="a number, or auto for one that fits the network")
    parser.add_argument("--replay-cases", type=int, default=usual.replay_cases)
    parser.add_argument("--replay-share", type=float, default=usual.finetune.replay_share)
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    parser.add_argument("--weights", default="starter", help="weights to begin with, as for 'totalspineseg serve'")
    parser.add_argument("--out", type=Path, default=ROOT / "bench", help="folder for logs, curves and figures")


def settings_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings of the training as a client sends them."""
    return {name: str(getattr(arguments, name)) for name in SETTINGS}


def ask(client: MONAILabelClient, case: Case) -> Answer:
    """Predict a scan.

    Raises:
        ServerError: It was refused for another reason than a missing spine.
    """
    try:
        image, sent = (case.name, {}) if case.file is None else ("", {"file": str(case.file)})
        file, reply = client.infer("totalspineseg", image, {"result_extension": ".nii.gz"}, **sent)
    except MONAILabelClientException as error:
        if REFUSED not in error.msg:
            raise ServerError(f"{case.name}: {error.msg[:500]}") from error
        return Answer(np.zeros_like(case.truth.data))
    codes = from_names(read_labels(Path(file)).data, reply["label_names"])
    Path(file).unlink()
    numbering = reply.get("numbering") or {}
    return Answer(codes, frozenset(reply["models"].values()), str(numbering.get("certainty") or ""))


def submit(client: MONAILabelClient, name: str, label: Volume, folder: Path, *, unreviewed: Sequence[str] = ()) -> None:
    """Send a reader's finished label, in wire ids with its names, as 3D Slicer does.

    Args:
        client: A connected client.
        name: Name of the image.
        label: In codes, ``UNREVIEWED`` where nobody checked. Not modified.
        folder: Folder for the temporary file.
        unreviewed: Names of structures that nobody checked.
    """
    file = folder / "label.nii.gz"
    # This is a separate segment after the published ones, as a reader adds it.
    region = len(WIRE_LABELS) + 1
    wire = np.where(label.data == UNREVIEWED, np.uint8(region), to_wire(without_regions(label.data)))
    write_volume(file, wire, label.grid)
    names = [{"name": entry, "idx": value} for entry, value in {**WIRE_LABELS, UNREVIEWED_NAME: region}.items()]
    client.save_label(name, str(file), params={"label_info": names, "unreviewed": list(unreviewed)})
    file.unlink()


def rows_of(
    before: Sequence[CaseScore], after: Sequence[CaseScore], groups: Iterable[str] = tuple(GROUPS)
) -> dict[str, Mapping[str, float]]:
    """Return the means over scans, before and after; ``MEAN`` is over the groups."""
    rows: dict[str, Mapping[str, float]] = {}
    for measure in (*groups, LEVELS):
        pair = [float(np.nanmean([score.value(measure) for score in scores])) for scores in (before, after)]
        rows[measure] = {"before": pair[0], "after": pair[1]}
    means = {when: float(np.mean([rows[group][when] for group in groups])) for when in ("before", "after")}
    return {**rows, MEAN: means}


def error_left(rows: Rows, measure: str) -> float:
    """Return the share of an error that is left; 0 if there was no error."""
    before, after = (1 - rows[measure][when] for when in ("before", "after"))
    return after / before if before else 0.0


def sentence(rows: Rows, kind: str) -> str:
    """Return a sentence that says how much of the error on a kind of scans is left, and whether half of it is gone."""
    left = {measure: error_left(rows, measure) for measure in MEASURES}
    text = ", ".join(f"{measure} {share:.0%}" for measure, share in left.items())
    half = "half of it is gone" if left[MEAN] <= HALVED else "half of it is not gone yet"
    return f"error left on the {kind}: {text}; {half}"


def worse(table: Table, measures: Iterable[str] = MEASURES) -> list[str]:
    """Return what fell by more than the margin; empty if nothing did."""
    return [
        f"{measure} of the {kind}: {rows[measure]['before']:.3f} -> {rows[measure]['after']:.3f}"
        for kind, rows in table.items()
        for measure in measures
        if measure in rows and rows[measure]["before"] - rows[measure]["after"] > MARGIN
    ]


def print_table(table: Table) -> None:
    """Print a row for each measure of each kind of scans."""
    print(f"| {'scans of the':<12} | {'measure':<10} | before |  after | change |\n|---|---|---|---|---|")
    for kind, rows in table.items():
        for measure, pair in rows.items():
            change = pair["after"] - pair["before"]
            print(f"| {kind:<12} | {measure:<10} | {pair['before']:6.3f} | {pair['after']:6.3f} | {change:+6.3f} |")


def gate_report(store: ModelStore) -> dict[str, Any]:
    """Return the newest version, the versions in use, and the gate's report; empty if nothing was published."""
    versions = store.versions()
    if not versions:
        return {}
    record: dict[str, Any] = read_json(store.versions_dir / versions[-1] / "version.json")
    return {"version": versions[-1], "active": dict(store.active()), "gate": record.get("gate")}


def keep_logs(studies: Path, target: Path) -> None:
    """Copy logs, curves and reports of all trainings of a studies folder."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (studies / ".totalspineseg" / "training").rglob("*"):
        if file.suffix in (".txt", ".png", ".json") and file.is_file():
            shutil.copyfile(file, target / f"{file.parent.name}-{file.name}")
