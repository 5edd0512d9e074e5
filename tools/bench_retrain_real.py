"""Test whether corrections help on people: slabs of the SPIDER data set, before and after training on a few of them.

Starts the real server, predicts patients, submits corrections of others by name, retrains through the train endpoint,
and predicts again with the version in use after the gate, together with scans of the old synthetic scanner. A
correction has what SPIDER's masks show: discs, vertebrae, the canal. Where they show nothing (the sacrum, above the
topmost disc, processes that may belong to either of two vertebrae) it is "unreviewed", and so is the predicted cord.

    python tools/bench_retrain_real.py SLABS
    python tools/bench_retrain_real.py SLABS --reverse

If it is killed, the same command continues with the same folder (``--out``). Exit code 0: it ran, and nothing fell by
more than 0.01; 1: something did, or the training failed.

Source of the slabs: van der Graaf et al., Lumbar spine segmentation in MR images, Sci Data 2024; Zenodo 10159290; CC BY
4.0.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from bench_retrain import PEOPLE, draw  # noqa: E402
from local_server import APP, TrainingFailedError, own_app, serving, train  # noqa: E402
from monailabel.client.client import MONAILabelClient  # noqa: E402
from retraining_bench import (  # noqa: E402
    MARGIN,
    MEAN,
    Answer,
    Case,
    Progress,
    Rows,
    ServerError,
    Table,
    ask,
    error_left,
    gate_report,
    keep_logs,
    print_table,
    rows_of,
    sentence,
    settings_of,
    submit,
    training_arguments,
    worse,
)
from spider_cases import read_patients, read_slab  # noqa: E402
from synthetic_scanner import old_scanner  # noqa: E402

from totalspineseg_server.agreement import GROUPS, LEVELS, CaseScore, score_case  # noqa: E402
from totalspineseg_server.anatomy import CANAL, CORD, NAME_OF, UNREVIEWED  # noqa: E402
from totalspineseg_server.errors import TotalSpineSegError  # noqa: E402
from totalspineseg_server.files import read_json, write_json  # noqa: E402
from totalspineseg_server.geometry import LabelArray, Volume  # noqa: E402
from totalspineseg_server.io.volumes import write_volume  # noqa: E402
from totalspineseg_server.nnunet.model_folder import ModelFolder  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402
from totalspineseg_server.registry.model_store import STARTER, ModelStore  # noqa: E402
from totalspineseg_server.registry.records import lineage  # noqa: E402
from totalspineseg_server.trust import is_doubtful  # noqa: E402

CORRECTED: Final = ("005", "052", "098", "136", "177")
"""Patients whose corrections are used for training, the usual five first."""
PREDICTED: Final = ("007", "034", "065", "118", "161", "185", "220", "018", "110", "166")
"""Patients who are predicted before and after; the starter weights were never trained on the first seven."""
REVERSE_PREDICTED: Final = (*CORRECTED, "055", "057", "127", "129", "162")
"""Patients of the reverse split, whose corrections come from the first of ``PREDICTED``."""
REAL_GROUPS: Final = ("discs", "vertebrae", "canal")
"""Structures in SPIDER's masks; the canal includes the cord."""
TRAINED_ON: Final = "real_cases_sha256"
"""Entry of the ``training.json`` beside weights with the scans of people on which they were trained."""
CORD_BORDER_MM: Final = 4.0
"""How far the cord may reach beyond a prediction that is too thin. Its border would otherwise be learned as canal."""
PATIENTS, OLD, REFERENCE = "patients", "old scanner", "reference"
DECIDING: Final = (MEAN, LEVELS, *REAL_GROUPS)
"""Measures that must not fall by more than ``MARGIN``; for the synthetic scans only the mean and the levels."""


@dataclass(frozen=True)
class Truth:
    """The known truth of a patient.

    Attributes:
        image: Nearest RAS.
        codes: Codes of discs, vertebrae and canal, ``UNREVIEWED`` where the masks show nothing.
    """

    image: Volume
    codes: LabelArray

    @property
    def volume(self) -> Volume:
        """The codes on the grid of the image."""
        return Volume(self.codes, self.image.affine)


@dataclass(frozen=True)
class Found:
    """The result of a prediction.

    Attributes:
        dice: Group -> Dice; None if it does not apply.
        levels: Levels of the truth.
        levels_found: Number of these that were found.
        levels_right: Number of the found ones with the right name.
        flagged: Whether a reader is warned about the names.
        versions: Versions that made the prediction.
    """

    dice: Mapping[str, float | None]
    levels: int
    levels_found: int
    levels_right: int
    flagged: bool
    versions: Sequence[str]

    @property
    def score(self) -> CaseScore:
        """The score in the form that the benchmarks compare."""
        dice = {name: math.nan if value is None else value for name, value in self.dice.items()}
        return CaseScore(dice, self.levels, self.levels_found, self.levels_right)

    @property
    def right(self) -> bool:
        """Whether every level has its own name."""
        return self.levels_right == self.levels


def main() -> int:
    """Run the benchmark; return 0 if nothing became worse by more than the margin."""
    arguments = arguments_of()
    try:
        table, left = run(arguments)
    except (TrainingFailedError, ServerError, TotalSpineSegError) as error:
        sys.exit(str(error))
    print(f"\n{left}")
    fell = worse(table, DECIDING)
    print(f"worse by more than {MARGIN}: {'; '.join(fell) or 'nothing'}")
    return 1 if fell else 0


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slabs", type=Path, help="folder of NNN_image.nii.gz and NNN_label.nii.gz")
    parser.add_argument(
        "--reverse", action="store_true", help="correct the patients who are otherwise predicted, and vice versa"
    )
    parser.add_argument("--tests", type=int, default=10, help="patients that are predicted before and after")
    parser.add_argument("--corrections", type=int, default=5, help="patients that are corrected")
    parser.add_argument("--old", type=int, default=4, help="scans of the old synthetic scanner that are predicted")
    training_arguments(parser, iterations=500, batch_size=2)
    arguments = parser.parse_args(words)
    arguments.out = arguments.out / f"real{'-reverse' if arguments.reverse else ''}"
    return arguments


def split(arguments: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patients who are corrected, and those who are predicted."""
    corrected, predicted = (PREDICTED, REVERSE_PREDICTED) if arguments.reverse else (CORRECTED, PREDICTED)
    return corrected[: arguments.corrections], predicted[: arguments.tests]


def run(arguments: argparse.Namespace) -> tuple[Table, str]:
    """Predict, correct, train and predict again, without repeating what was done before.

    Returns:
        The table, and a sentence about the remaining error.

    Raises:
        TrainingFailedError: The training ended without a verdict.
        ServerError: A scan could not be predicted, or the folder belongs to another run.
        TotalSpineSegError: A slab cannot be read.
    """
    if not arguments.slabs.is_dir():
        raise ServerError(f"There is no folder {str(arguments.slabs)!r}. Name the one with the slabs (REAL=FOLDER).")
    start, out = time.monotonic(), arguments.out
    corrected, predicted = split(arguments)
    about = {
        "corrected": list(corrected),
        "predicted": list(predicted),
        "old": arguments.old,
        "weights": arguments.weights,
        "settings": settings_of(arguments),
    }
    progress = Progress(out / "progress.json", about)
    print(learned(arguments.weights, predicted), flush=True)
    app, studies = out / "app", out / "studies"
    studies.mkdir(exist_ok=True)
    # Mark the app folder when it is complete, because half a folder would be mistaken for weights.
    store = ModelStore(app / "model")
    if "app" not in progress.done:
        shutil.rmtree(app, ignore_errors=True)
        own_app(app, arguments.weights)
        progress.once("app", lambda: True)
    truths = {number: truth_of(arguments.slabs, number) for number in (*corrected, *predicted)}
    for number, truth in truths.items():
        if not (file := studies / f"{study(number)}.nii.gz").exists():
            write_volume(file, truth.image.data, truth.image.grid)
    kinds = {
        PATIENTS: [Case(study(number), truths[number].volume) for number in predicted],
        OLD: draw(studies, "old", arguments.old, old_scanner, (PEOPLE, 2)),
    }
    with serving(studies, app, out / "server.log", device=arguments.device) as url:
        client = MONAILabelClient(url, tmpdir=str(out), client_id="bench")

        def all_of(when: str) -> dict[str, list[Found]]:
            found = {
                kind: [
                    Found(**progress.once(f"{when} {c.name}", lambda c=c: asdict(look(ask(client, c), c)))) for c in cs
                ]
                for kind, cs in kinds.items()
            }
            print(f"{when}: {sum(map(len, found.values()))} scans predicted", flush=True)
            return found

        before = all_of("before")
        for number in corrected:
            progress.once(f"corrected {number}", lambda n=number: correct(client, n, truths[n], out))
        print(f"{len(corrected)} corrections submitted; training", flush=True)
        status = progress.once(
            "training",
            lambda: train(client, "totalspineseg", settings_of(arguments), show=lambda s: print(f"  {s}", flush=True)),
        )
        after = all_of("after")
    keep_logs(studies, out)
    report = gate_report(store)
    table = tables(before, after, report)
    print(f"\n{status.get('message')}\n")
    print_table(table)
    print_names(before[PATIENTS], after[PATIENTS])
    for when, found in (("before", before), ("after", after)):
        print(
            f"served {when}: {', '.join(sorted({v for some in found.values() for one in some for v in one.versions}))}"
        )
    print(f"training and gate {int(status['seconds']) / 60:.0f} minutes, this call {time.monotonic() - start:.0f} s")
    gone = 1 - error_left(table[PATIENTS], MEAN)
    found = {"about": about, "table": table, "gone": gone, "train": status, "gate": report}
    write_json(out / "bench_retrain_real.json", found)
    return table, f"{gone:.0%} of the error is gone; {sentence(table[PATIENTS], PATIENTS)}"


def study(number: str) -> str:
    """Return the name of a patient's image among the studies."""
    return f"sub-spider{number}_T2w"


def learned(weights: str, predicted: Sequence[str]) -> str:
    """Return a sentence that says on which of the predicted patients the initial weights may have been trained."""
    if not trained_on_people(weights):
        return f"The weights {weights!r} record no training on people."
    trains = {patient.number for patient in read_patients() if not patient.held_out}
    known = [number for number in predicted if number in trains]
    if not known:
        return f"The weights {weights!r} were trained on people, and on none of these patients by the list."
    return (
        f"The weights {weights!r} were trained on people and MAY HAVE LEARNED FROM {len(known)} of the "
        f"{len(predicted)} predicted patients ({', '.join(known)}), so 'before' is too good there. Choose older "
        "weights with --weights."
    )


def trained_on_people(weights: str) -> bool:
    """Return whether weights or their ancestors have a record of training on scans of people."""
    store = ModelStore(APP / "model", weights=weights)
    for step in (1, 2):
        choice = store.resolve(step)
        for name in lineage(store, choice.name, step):
            root = (store.model_dir if name == STARTER else store.versions_dir) / name
            # A folder that is given by its path may have the name of other weights.
            root = choice.root if name == choice.name else root
            if not root.is_dir():
                continue
            file = ModelFolder.open(root, step=step).path / "training.json"
            if file.is_file() and read_json(file).get(TRAINED_ON):
                return True
    return False


def truth_of(slabs: Path, number: str, *, sure: bool = True) -> Truth:
    """Read a slab, and name the structures in its masks.

    Args:
        slabs: Folder of the slabs.
        number: Number of the patient.
        sure: Whether the names are right; otherwise landmarks that may be other discs are ``UNREVIEWED``.

    Raises:
        TotalSpineSegError: The slab cannot be read or named.
    """
    slab = read_slab(slabs, number, sure=sure)
    first, second = slab.readings
    known = np.where(first == second, first, UNREVIEWED)
    # The whole canal is known, but not which part of it is cord.
    known = np.where((slab.codes == CANAL) & np.isin(second, (CANAL, CORD)), CANAL, known)
    return Truth(slab.image, known.astype(np.uint8))


def label_of(truth: Truth, predicted: LabelArray) -> tuple[Volume, tuple[str, ...]]:
    """Return the correction of a reader who checked what the masks show, and the names that nobody checked.

    Nobody drew the cord, so what is close to the predicted one may be cord, too, and is "unreviewed".

    Args:
        truth: The structures in the masks.
        predicted: Predicted codes. Not modified.
    """
    codes = truth.codes.copy()
    cord = (truth.codes == CANAL) & (predicted == CORD)
    if cord.any():
        away = ndimage.distance_transform_edt(~cord, sampling=truth.volume.grid.spacing)
        codes[(truth.codes == CANAL) & (away <= CORD_BORDER_MM)] = UNREVIEWED
    codes[cord] = CORD
    unchecked = (NAME_OF[CORD],) if (codes == CORD).any() else ()
    return Volume(codes, truth.image.affine), unchecked


def correct(client: MONAILabelClient, number: str, truth: Truth, folder: Path) -> list[str]:
    """Predict a patient and submit the correction; return the names that nobody checked."""
    answer = ask(client, Case(study(number), truth.volume))
    label, unchecked = label_of(truth, answer.codes)
    submit(client, study(number), label, folder, unreviewed=unchecked)
    return list(unchecked)


def look(answer: Answer, case: Case) -> Found:
    """Score a prediction."""
    score = score_case(case.truth.data, answer.codes)
    dice = {name: None if math.isnan(value) else value for name, value in score.dice.items()}
    flagged = is_doubtful({"certainty": answer.certainty})
    counts = (score.levels, score.levels_found, score.levels_right)
    return Found(dice, *counts, flagged, sorted(answer.versions))


def tables(
    before: Mapping[str, Sequence[Found]], after: Mapping[str, Sequence[Found]], report: Mapping[str, Any]
) -> Table:
    """Return the table before and after for each kind of scans, with the gate's scores on the reference set."""
    table: dict[str, Rows] = {}
    for kind, found in before.items():
        if found:
            pair = ([one.score for one in found], [one.score for one in after[kind]])
            table[kind] = rows_of(*pair, REAL_GROUPS if kind == PATIENTS else tuple(GROUPS))
    if reference := reference_rows(report):
        table[REFERENCE] = reference
    return table if OLD not in table else {**table, OLD: {m: table[OLD][m] for m in (MEAN, LEVELS)}}


def reference_rows(report: Mapping[str, Any]) -> Rows:
    """Return the gate's scores of the version in use on the reference set; empty if no new version is in use."""
    gate = report.get("gate")
    if not gate or not gate["publish"]:
        return {}
    measures = gate["sets"][0]["measures"]
    rows = {
        name: {"before": values["active"], "after": values["candidate"]}
        for name, values in measures.items()
        if values["active"] is not None
    }
    groups = [rows[name] for name in GROUPS if name in rows]
    mean = {when: float(np.mean([row[when] for row in groups])) for when in ("before", "after")}
    return {MEAN: mean, LEVELS: rows[LEVELS]}


def print_names(before: Sequence[Found], after: Sequence[Found]) -> None:
    """Print how many scans have the right names, and in how many of the others a reader is warned."""
    for when, found in (("before", before), ("after", after)):
        right = sum(one.right for one in found)
        silent = sum(not one.right and not one.flagged for one in found)
        flagged = sum(one.right and one.flagged for one in found)
        print(
            f"{when}: all names right in {right} of {len(found)} patients ({flagged} of these flagged); wrong and not "
            f"flagged: {silent}"
        )


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
