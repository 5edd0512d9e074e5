"""Test whether corrections help: a scanner that the weights do not know, before and after training on a few
corrections.

Starts the real server on a copy of the starter weights, predicts scans of a new and of the old scanner, submits
corrections of other scans of the new one as 3D Slicer does, retrains through the train endpoint, and predicts again
with the version that the gate published. Prints one table, and whether half of the error on the new scanner is gone.
Exit code 0: it ran, and nothing became worse by more than 0.01; 1: something did, or the training failed.

    python tools/bench_retrain.py
    python tools/bench_retrain.py --iterations 1500 --batch-size 8
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from local_server import TrainingFailedError, own_app, serving, train  # noqa: E402
from monailabel.client.client import MONAILabelClient  # noqa: E402
from retraining_bench import (  # noqa: E402
    MARGIN,
    Case,
    ServerError,
    Table,
    ask,
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
from synthetic_scanner import FloatImage, new_scanner, old_scanner  # noqa: E402

from totalspineseg_server.agreement import CaseScore, score_case  # noqa: E402
from totalspineseg_server.files import write_json  # noqa: E402
from totalspineseg_server.geometry import Volume  # noqa: E402
from totalspineseg_server.io.volumes import write_volume  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402
from totalspineseg_server.synthesis import Field, SpineOptions, SyntheticSpine, random_spine  # noqa: E402

PEOPLE: Final = 60_101
"""First part of every scan's seed; no other synthetic set of the project uses it or the numbers next to it."""
FIELDS: Final = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.THORACOLUMBAR)


def main() -> int:
    """Run the benchmark; return 0 if nothing became worse by more than the margin."""
    arguments = arguments_of()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="totalspineseg-retrain-") as name:
        folder = Path(name)
        app, studies = folder / "app", folder / "studies"
        studies.mkdir()
        store = own_app(app, arguments.weights)
        corrected = draw(studies, "corrected", arguments.corrections, new_scanner, (arguments.people, 0))
        tests = {
            "new scanner": draw(studies, "new", arguments.tests, new_scanner, (arguments.people, 1)),
            "old scanner": draw(studies, "old", arguments.old, old_scanner, (arguments.people, 2)),
        }
        print(f"{len(list(studies.iterdir()))} synthetic scans made; starting the server", flush=True)
        settings = settings_of(arguments)
        with serving(studies, app, folder / "server.log", device=arguments.device) as url:
            client = MONAILabelClient(url, tmpdir=str(folder), client_id="bench")
            try:
                before = {kind: predict(client, cases) for kind, cases in tests.items()}
                print(f"{sum(map(len, tests.values()))} of them predicted", flush=True)
                predict(client, corrected)
                for case in corrected:
                    submit(client, case.name, case.truth, folder)
                print(f"{len(corrected)} corrections submitted; training", flush=True)
                status = train(client, "totalspineseg", settings, show=lambda line: print(f"  {line}", flush=True))
                after = {kind: predict(client, cases) for kind, cases in tests.items()}
            except (TrainingFailedError, ServerError) as error:
                sys.exit(str(error))
        keep_logs(studies, arguments.out)
        report = gate_report(store)
    pair = {"before": before, "after": after}
    table = {kind: rows_of(before[kind][0], after[kind][0]) for kind in tests}
    served = {when: sorted(set().union(*(kind[1] for kind in scores.values()))) for when, scores in pair.items()}
    _print(table, status, served, time.monotonic() - start)
    content = {"table": table, "train": status, "served": served, "gate": report, "settings": settings}
    write_json(arguments.out / "bench_retrain.json", content)
    return 1 if worse(table) else 0


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training_arguments(parser, iterations=800, batch_size=1)
    parser.add_argument("--tests", type=int, default=8, help="scans of the new scanner that are predicted")
    parser.add_argument("--old", type=int, default=4, help="scans of the old scanner that are predicted")
    parser.add_argument("--corrections", type=int, default=5, help="scans of the new scanner that are corrected")
    parser.add_argument(
        "--people", type=int, default=PEOPLE, help="seed of all spines; with 60102 they are other people"
    )
    return parser.parse_args(words)


def draw(
    studies: Path,
    kind: str,
    count: int,
    scanner: Callable[[np.random.Generator, SyntheticSpine], FloatImage],
    seed: tuple[int, int],
) -> list[Case]:
    """Make scans from one scanner, each of another subject, and write those that are not in the studies yet."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng([*seed, number])
        options = SpineOptions(
            field=FIELDS[number % len(FIELDS)], thoracic=12, lumbar=5, width_mm=60, depth_mm=150, jitter=0.7
        )
        spine = random_spine(rng, options)
        truth = Volume(spine.labels, spine.affine)
        name = f"sub-{kind}{number + 1}_T2w"
        file = studies / f"{name}.nii.gz"
        if not file.exists():
            write_volume(file, scanner(rng, spine), truth.grid)
        cases.append(Case(name, truth))
    return cases


def predict(client: MONAILabelClient, cases: Sequence[Case]) -> tuple[list[CaseScore], set[str]]:
    """Return the scores of the model in use, and its versions; a scan without a spine scores as an empty map."""
    answers = [ask(client, case) for case in cases]
    scores = [score_case(case.truth.data, answer.codes) for case, answer in zip(cases, answers, strict=True)]
    return scores, set().union(*(answer.versions for answer in answers))


def _print(
    table: Table,
    status: Mapping[str, Any],
    served: Mapping[str, Sequence[str]],
    seconds: float,
) -> None:
    print(f"\n{status.get('message')}\n")
    print_table(table)
    print(f"\n{sentence(table['new scanner'], 'new scanner')}")
    print(f"worse by more than {MARGIN}: {'; '.join(worse(table)) or 'nothing'}")
    for when, versions in served.items():
        print(f"served {when}: {', '.join(versions)}")
    print(f"training and gate {status.get('seconds')} s, in total {seconds:.0f} s")


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
