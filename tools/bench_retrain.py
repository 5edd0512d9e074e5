"""Does correcting help? A scanner the weights have not seen, before and after retraining on a few corrections.

Starts the real server on a copy of the starter weights, predicts unseen scans of a new and of the old scanner,
submits corrections of other scans of the new one as 3D Slicer does, retrains through the train endpoint, and
predicts again with what the gate published. Prints one table, and whether half of the error on the new scanner is
gone. Exit code 0: it ran, and nothing became worse by more than 0.01; 1: something did, or the training failed.

    python tools/bench_retrain.py
    python tools/bench_retrain.py --iterations 1500 --batch-size 8
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from local_server import TrainingFailedError, own_app, serving, train  # noqa: E402
from monailabel.client.client import MONAILabelClient, MONAILabelClientException  # noqa: E402
from synthetic_scanner import FloatImage, new_scanner, old_scanner  # noqa: E402

from lib.agreement import GROUPS, LEVELS, CaseScore, score_case  # noqa: E402
from lib.anatomy import WIRE_LABELS  # noqa: E402
from lib.corrections.wire import from_names, to_wire  # noqa: E402
from lib.geometry import Volume  # noqa: E402
from lib.processes import unwind_on_signals  # noqa: E402
from lib.registry.store import ModelStore  # noqa: E402
from lib.synthesis import Field, SpineOptions, SyntheticSpine, random_spine  # noqa: E402
from lib.trainers.settings import RetrainSettings  # noqa: E402
from lib.volume_io import read_labels, write_volume  # noqa: E402

PEOPLE: Final = 60_101
"""First part of every scan's seed; no other synthetic set of the project uses it, nor the numbers next to it."""
FIELDS: Final = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.THORACOLUMBAR)
HALVED: Final = 0.5
"""Share of the error on the new scanner that shall be left at most."""
REFUSED: Final = "Status: 422"
"""How the client tells that the server answered, and found no spine."""
SETTINGS: Final = ("iterations", "batch_size", "learning_rate", "replay_cases", "replay_share", "device")
Table = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Scanner -> measure -> "before" and "after"."""
MEASURES: Final = ("mean Dice", LEVELS)
"""Those that decide."""
MARGIN: Final = 0.01
"""What either scanner may lose at most, of the mean Dice and of the share of levels under their name."""


@dataclass(frozen=True)
class Case:
    """One scan of the benchmark; one that is not among the studies has a ``file``, which is sent along."""

    name: str
    truth: Volume
    file: Path | None = None


def main() -> int:
    """Run it; 0 when nothing became worse beyond the margin."""
    arguments = arguments_of()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="totalspineseg-retrain-") as name:
        folder = Path(name)
        app, studies = folder / "app", folder / "studies"
        studies.mkdir()
        store = own_app(app, arguments.weights)
        corrected = _draw(studies, "corrected", arguments.corrections, new_scanner, (arguments.people, 0))
        tests = {
            "new scanner": _draw(studies, "new", arguments.tests, new_scanner, (arguments.people, 1)),
            "old scanner": _draw(studies, "old", arguments.old, old_scanner, (arguments.people, 2)),
        }
        print(f"{len(list(studies.iterdir()))} synthetic scans drawn; starting the server", flush=True)
        with serving(studies, app, folder / "server.log", device=arguments.device) as url:
            client = MONAILabelClient(url, tmpdir=str(folder), client_id="bench")
            before = {kind: _predict(client, cases) for kind, cases in tests.items()}
            print(f"{sum(map(len, tests.values()))} of them predicted", flush=True)
            _predict(client, corrected)
            for case in corrected:
                _correct(client, case, folder)
            print(f"{len(corrected)} corrections submitted; training", flush=True)
            settings = {name: str(getattr(arguments, name)) for name in SETTINGS}
            try:
                status = train(client, "totalspineseg", settings, show=_show)
            except TrainingFailedError as error:
                sys.exit(str(error))
            after = {kind: _predict(client, cases) for kind, cases in tests.items()}
        pair = {"before": before, "after": after}
        report = _report(store)
        kept = arguments.out
        kept.mkdir(parents=True, exist_ok=True)
        for file in (studies / ".totalspineseg" / "training").rglob("*"):
            if file.suffix in (".txt", ".png", ".json") and file.is_file():
                shutil.copyfile(file, kept / f"{file.parent.name}-{file.name}")
    table = {kind: _rows(before[kind][0], after[kind][0]) for kind in tests}
    served = {when: sorted(set().union(*(kind[1] for kind in scores.values()))) for when, scores in pair.items()}
    _print(table, status, served, time.monotonic() - start)
    content = {"table": table, "train": status, "served": served, "gate": report, "settings": settings}
    (kept / "bench_retrain.json").write_text(json.dumps(content, indent=1))
    return 1 if worse(table) else 0


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    usual = RetrainSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--learning-rate", default="auto", help="a number, or auto for one that fits the network")
    parser.add_argument("--replay-cases", type=int, default=usual.replay_cases)
    parser.add_argument("--replay-share", type=float, default=usual.finetune.replay_share)
    parser.add_argument("--tests", type=int, default=8, help="scans of the new scanner that are predicted")
    parser.add_argument("--old", type=int, default=4, help="scans of the old scanner that are predicted")
    parser.add_argument("--corrections", type=int, default=5, help="scans of the new scanner that are corrected")
    parser.add_argument("--people", type=int, default=PEOPLE, help="seed of all spines; 60102 draws other people")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda")
    parser.add_argument("--weights", default="starter", help="weights to begin with, as for 'totalspineseg serve'")
    parser.add_argument("--out", type=Path, default=ROOT / "bench", help="folder for logs, curves and figures")
    return parser.parse_args(words)


def _draw(
    studies: Path,
    kind: str,
    count: int,
    scanner: Callable[[np.random.Generator, SyntheticSpine], FloatImage],
    seed: tuple[int, int],
) -> list[Case]:
    """Scans of one scanner, each of another subject, written as studies."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng([*seed, number])
        options = SpineOptions(
            field=FIELDS[number % len(FIELDS)], thoracic=12, lumbar=5, width_mm=60, depth_mm=150, jitter=0.7
        )
        spine = random_spine(rng, options)
        truth = Volume(spine.labels, spine.affine)
        name = f"sub-{kind}{number + 1}_T2w"
        write_volume(studies / f"{name}.nii.gz", scanner(rng, spine), truth.grid)
        cases.append(Case(name, truth))
    return cases


def _predict(client: MONAILabelClient, cases: Sequence[Case]) -> tuple[list[CaseScore], set[str]]:
    """Scores of the served model and its versions; a scan it refuses (no spine found) scores as an empty map."""
    scores, versions = [], set()
    for case in cases:
        codes = np.zeros_like(case.truth.data)
        try:
            image, sent = (case.name, {}) if case.file is None else ("", {"file": str(case.file)})
            file, reply = client.infer("totalspineseg", image, {"result_extension": ".nii.gz"}, **sent)
        except MONAILabelClientException as error:
            if REFUSED not in error.msg:
                sys.exit(f"{case.name}: {error.msg[:500]}")
        else:
            codes = from_names(read_labels(Path(file)).data, reply["label_names"])
            versions |= set(reply["models"].values())
            Path(file).unlink()
        scores.append(score_case(case.truth.data, codes))
    return scores, versions


def _correct(client: MONAILabelClient, case: Case, folder: Path) -> None:
    """The reader's finished label, in wire ids with its names, as Slicer sends it."""
    label = folder / "label.nii.gz"
    write_volume(label, to_wire(case.truth.data), case.truth.grid)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    client.save_label(case.name, str(label), params={"label_info": names})


def _show(line: str) -> None:
    print(f"  {line}", flush=True)


def _report(store: ModelStore) -> dict[str, Any]:
    versions = store.versions()
    if not versions:
        return {}
    record: dict[str, Any] = json.loads((store.versions_dir / versions[-1] / "version.json").read_text())
    return {"version": versions[-1], "active": dict(store.active()), "gate": record["gate"]}


def _rows(before: Sequence[CaseScore], after: Sequence[CaseScore]) -> dict[str, Mapping[str, float]]:
    """Measure -> means before and after; "mean Dice" over the groups."""
    rows: dict[str, Mapping[str, float]] = {}
    for measure in (*GROUPS, LEVELS):
        pair = [float(np.nanmean([score.value(measure) for score in scores])) for scores in (before, after)]
        rows[measure] = {"before": pair[0], "after": pair[1]}
    for when in ("before", "after"):
        values = [rows[group][when] for group in GROUPS]
        rows["mean Dice"] = {**rows.get("mean Dice", {}), when: float(np.mean(values))}
    return rows


def _error_left(rows: Mapping[str, Mapping[str, float]], measure: str) -> float:
    before, after = (1 - rows[measure][when] for when in ("before", "after"))
    return after / before if before else 0.0


def sentence(table: Table) -> str:
    """How much of the error on the new scanner is left, and whether half of it is gone."""
    left = {measure: _error_left(table["new scanner"], measure) for measure in MEASURES}
    text = ", ".join(f"{measure} {share:.0%}" for measure, share in left.items())
    half = "half of it is gone" if left["mean Dice"] <= HALVED else "half of it is not gone yet"
    return f"error left on the new scanner: {text}; {half}"


def worse(table: Table) -> list[str]:
    """What fell by more than the margin; empty when nothing did."""
    return [
        f"{measure} of the {kind}: {rows[measure]['before']:.3f} -> {rows[measure]['after']:.3f}"
        for kind, rows in table.items()
        for measure in MEASURES
        if rows[measure]["before"] - rows[measure]["after"] > MARGIN
    ]


def _print(
    table: Table,
    status: Mapping[str, Any],
    served: Mapping[str, Sequence[str]],
    seconds: float,
) -> None:
    print(f"\n{status.get('message')}\n")
    print(f"| {'scans of the':<12} | {'measure':<10} | before |  after | change |\n|---|---|---|---|---|")
    for kind, rows in table.items():
        for measure, pair in rows.items():
            change = pair["after"] - pair["before"]
            print(f"| {kind:<12} | {measure:<10} | {pair['before']:6.3f} | {pair['after']:6.3f} | {change:+6.3f} |")
    print(f"\n{sentence(table)}")
    print(f"worse by more than {MARGIN}: {'; '.join(worse(table)) or 'nothing'}")
    for when, versions in served.items():
        print(f"served {when}: {', '.join(versions)}")
    print(f"training and gate {status.get('seconds')} s, all {seconds:.0f} s")


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
