"""Test whether a score finds the scans that need a reader, and whether choosing by it teaches more than a random
choice.

    python tools/bench_selection.py offers --real FOLDER --spider FOLDER
    python tools/bench_selection.py trainings [--quick] [--out FOLDER]

``offers`` trains nothing: it names real scans like ``bench_real.py``, puts them into the order *doubtful first*, and
prints how many of the first fifth have wrong names. For comparison it prints the share among all scans, which is the
mean of a random order.

``trainings`` runs the loop of a site through the real server, about three hours on two cores: score all scans, take
five by a strategy, correct them, train, predict test scans; three rounds, three seeds, *most to learn* against
*random*. The sites are synthetic and mixed on purpose. Finished parts are kept in the folder, so that a repeated
command continues. The table and the plot of the finished sites are made after each seed.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

import bench_real  # noqa: E402
from bench_retrain import predict  # noqa: E402
from local_server import UNFINISHED, own_app, serving, train  # noqa: E402
from monailabel.client.client import MONAILabelClient  # noqa: E402
from retraining_bench import Case, Progress, ServerError, submit  # noqa: E402
from synthetic_scanner import FloatImage, new_scanner, old_scanner  # noqa: E402

from totalspineseg_server.activelearning.scores import Parts  # noqa: E402
from totalspineseg_server.agreement import GROUPS, LEVELS, CaseScore  # noqa: E402
from totalspineseg_server.corrections.correction_store import CorrectionStore  # noqa: E402
from totalspineseg_server.corrections.ids import HISTORY_DIR  # noqa: E402
from totalspineseg_server.files import move_folder, partial_folder  # noqa: E402
from totalspineseg_server.geometry import Volume  # noqa: E402
from totalspineseg_server.io.volumes import write_volume  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402
from totalspineseg_server.synthesis import Field, SpineOptions, SyntheticSpine, random_spine  # noqa: E402

FIFTH: Final = 5
ORDERS: Final[Mapping[str, Callable[[Parts], float | None]]] = {
    "doubtful first (all parts)": lambda parts: parts.doubt,
    "names alone": lambda parts: parts.names,
    "findings alone": lambda parts: parts.findings,
    "steps alone": lambda parts: parts.steps,
    "mirror alone": lambda parts: parts.mirror,
}
STRATEGIES: Final = ("random", "most_to_learn")
PEOPLE: Final = 70_201
"""First part of every scan's seed; no other synthetic set of the project uses it or the numbers next to it."""
POLL_S: Final = 2.0
ERRORS: Final = ("outlines", "names")
"""Measured errors: 1 - mean Dice of the groups, and the share of levels with a wrong name."""


def first_fifth(
    results: Sequence[bench_real.Result], value: Callable[[Parts], float | None]
) -> list[bench_real.Result]:
    """Return the first fifth of the scans; scans without a value are last, equal scans are ordered by name."""
    ordered = sorted(results, key=lambda result: (-(value(result.parts) or 0.0), result.name))
    return ordered[: math.ceil(len(results) / FIFTH)]


def chance_of(hits: int, chosen: int, wrong: int, total: int) -> float:
    """Return the probability of at least this many wrong scans in a random choice."""
    ways = math.comb(total, chosen)
    return sum(math.comb(wrong, k) * math.comb(total - wrong, chosen - k) for k in range(hits, chosen + 1)) / ways


def offers(real: Path | None, spider: Path | None) -> None:
    """Print the table of the part without training."""
    results = [result for result in bench_real.named(real, spider)[0] if result.levels and result.clear]
    if not results:
        sys.exit("There is no scan with a clear truth. Name a folder with --real or --spider.")
    wrong = sum(not result.right for result in results)
    print()
    for result in sorted(results, key=lambda result: -(result.parts.doubt or 0.0)):
        parts = ", ".join(f"{name} {value:.2f}" for name, value in vars(result.parts).items() if value is not None)
        print(f"{result.parts.doubt or 0:.3f} {'right' if result.right else 'WRONG'} {result.name}: {parts}")
    print(
        f"\n{len(results)} scans, {wrong} wrongly named ({wrong / len(results):.0%}, as in a random order on average)\n"
    )
    print("| order | wrong in the first fifth | share | chance of a random order to do as well |\n|---|---|---|---|")
    for name, value in ORDERS.items():
        first = first_fifth(results, value)
        hits = sum(not result.right for result in first)
        luck = chance_of(hits, len(first), wrong, len(results))
        print(f"| {name} | {hits} of {len(first)} | {hits / len(first):.0%} | {luck:.3f} |")


@dataclass(frozen=True)
class Kind:
    """One kind of scan at a mixed site.

    Attributes:
        name: Name of the kind.
        field: Field of view.
        scanner: Makes the image.
        share: Number of its scans among 24 of the site.
        lumbar: Lumbar vertebrae.
        thoracic: Thoracic vertebrae.
    """

    name: str
    field: Field
    scanner: Callable[[np.random.Generator, SyntheticSpine], FloatImage]
    share: int
    lumbar: int = 5
    thoracic: int = 12


KINDS: Final = (
    Kind("usual", Field.LUMBAR, old_scanner, 12),
    Kind("lumbar", Field.LUMBAR, new_scanner, 4),
    Kind("neck", Field.CERVICOTHORACIC, new_scanner, 3),
    Kind("chest", Field.THORACOLUMBAR, new_scanner, 3),
    Kind("sixlumbar", Field.LUMBAR, new_scanner, 1, lumbar=6),
    Kind("fewribs", Field.THORACOLUMBAR, new_scanner, 1, thoracic=11),
)
"""Kinds of scans of a site: the weights know half of them; the others are a new scanner in three fields of view, and
two anomalies."""


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        seeds: Number of sites, each with other people.
        rounds: Number of trainings for each strategy and site.
        corrections: Number of scans corrected before each training.
        tests: Number of predicted scans of each kind.
        extent_mm: Width and depth of the scans.
        share: Share of each kind's scans, at least one scan.
        settings: Settings of the trainings, as texts.
    """

    seeds: int = 3
    rounds: int = 3
    corrections: int = 5
    tests: int = 1
    extent_mm: tuple[float, float] = (60.0, 150.0)
    share: float = 1.0
    settings: tuple[tuple[str, str], ...] = (("iterations", "150"), ("batch_size", "1"), ("replay_cases", "24"))


QUICK: Final = Plan(
    seeds=1,
    rounds=1,
    corrections=1,
    extent_mm=(30.0, 120.0),
    share=0.1,
    settings=(("iterations", "2"), ("batch_size", "1"), ("replay_cases", "0"), ("device", "cpu")),
)


def make_scans(folder: Path, seed: int, kind: Kind, count: int, plan: Plan, *, first: int) -> Iterator[Case]:
    """Make scans of a kind as files in a folder, and keep their truths in memory; existing files stay."""
    for number in range(first, first + count):
        rng = np.random.default_rng([PEOPLE, seed, KINDS.index(kind), number])
        options = SpineOptions(
            field=kind.field,
            thoracic=kind.thoracic,
            lumbar=kind.lumbar,
            width_mm=plan.extent_mm[0],
            depth_mm=plan.extent_mm[1],
            jitter=0.7,
        )
        spine = random_spine(rng, options)
        truth = Volume(spine.labels, spine.affine)
        # Names do not begin with the kind, so that an order by name does not depend on it.
        name = (
            f"sub-{np.random.default_rng([PEOPLE, seed, KINDS.index(kind), number, 1]).integers(10**9):09}_{kind.name}"
        )
        file = folder / f"{name}.nii.gz"
        if not file.is_file():
            write_volume(file, kind.scanner(rng, spine), truth.grid)
        yield Case(name, truth, file)


class Site:
    """A site under a strategy: a studies folder, a server's models, and the progress.

    Args:
        folder: Folder of the site.
        seed: Seed of the people.
        strategy: Strategy that offers the scans.
        plan: Size of the run.
        weights: Initial weights.
    """

    def __init__(self, folder: Path, seed: int, strategy: str, plan: Plan, weights: str) -> None:
        self.folder, self.strategy, self.plan = folder, strategy, plan
        self.studies, tests = folder / "studies", folder / "tests"
        for made in (self.studies, tests):
            made.mkdir(parents=True, exist_ok=True)
        self.tests: list[Case] = []
        self.scans: dict[str, Case] = {}
        for kind in KINDS:
            count = max(1, round(plan.share * kind.share))
            self.tests += make_scans(tests, seed, kind, plan.tests, plan, first=1000)
            self.scans |= {case.name: case for case in make_scans(self.studies, seed, kind, count, plan, first=0)}
        self.app = folder / "app"
        if not self.app.is_dir():
            # The folder is moved once it is complete, because half an app folder would be mistaken for weights.
            with partial_folder(folder) as fresh:
                own_app(fresh, weights)
                move_folder(fresh, self.app)

    def run(self, name: str, progress: Progress) -> dict[str, Any]:
        """Run the missing parts for the site.

        Args:
            name: Name of the site.
            progress: The finished parts of all sites.

        Returns:
            The errors ``before``, and the figures after each of the ``rounds``.
        """
        rounds = [f"{name}, round {number}" for number in range(1, self.plan.rounds + 1)]
        if not {f"{name}, before", *rounds} <= progress.done.keys():
            with serving(self.studies, self.app, self.folder / "server.log") as url:
                client = MONAILabelClient(url, tmpdir=str(self.folder), client_id="bench")
                progress.once(f"{name}, before", lambda: errors_of(predict(client, self.tests)[0]))
                for number, entry in enumerate(rounds, 1):
                    progress.once(entry, partial(self._round, client, url, number, entry, progress))
        return {"before": progress.done[f"{name}, before"], "rounds": [progress.done[entry] for entry in rounds]}

    def _round(self, client: MONAILabelClient, url: str, number: int, name: str, progress: Progress) -> dict[str, Any]:
        if self.strategy != "random":
            scored(url)
        while len(self.corrected()) < number * self.plan.corrections:
            sample = client.next_sample(self.strategy, {})
            submit(client, sample["id"], self.scans[sample["id"]].truth, self.folder)
        # This is done once, because another training on the same labels would be another round.
        status = progress.once(
            f"{name}, training", lambda: train(client, "totalspineseg", dict(self.plan.settings), show=_show)
        )
        scores, versions = predict(client, self.tests)
        return {
            "corrected": self.corrected(),
            "status": status.get("status"),
            "message": status.get("message"),
            "served": sorted(versions),
            "errors": errors_of(scores),
        }

    def corrected(self) -> dict[str, Any]:
        """Return how each corrected scan was offered, by the record of its label."""
        return {c.image: c.offered for c in CorrectionStore(self.studies / HISTORY_DIR).all()}


def scored(url: str) -> None:
    """Let the server score all scans, and wait."""
    requests.post(f"{url}/scoring/doubt", json={}, timeout=60).raise_for_status()
    while (task := requests.get(f"{url}/scoring/", timeout=60).json())["status"] in UNFINISHED:
        time.sleep(POLL_S)
    if task["status"] != "DONE":
        sys.exit(f"The scoring ended as {task['status']}: {list(task.get('details', ()))[-3:]}")


def errors_of(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Return both errors, each as a mean over scans; a group that is in no scan does not count."""
    known = {measure: [v for score in scores if (v := score.value(measure)) == v] for measure in (*GROUPS, LEVELS)}
    means = {measure: float(np.mean(values)) for measure, values in known.items() if values}
    return {
        "outlines": 1 - float(np.mean([means[group] for group in GROUPS if group in means])),
        "names": 1 - means[LEVELS],
    }


def trainings(plan: Plan, out: Path, weights: str) -> Iterator[dict[str, Any]]:
    """Run the missing parts of the trainings; after each seed, yield the ``plan`` and all finished ``sites`` by name.

    Raises:
        ServerError: The folder belongs to another plan.
    """
    progress, sites = Progress(out / "selection.json", asdict(plan)), {}
    for seed in range(plan.seeds):
        for strategy in STRATEGIES:
            name = f"{seed}/{strategy}"
            print(f"site {name}", flush=True)
            sites[name] = Site(out / f"site-{seed}" / strategy, seed, strategy, plan, weights).run(name, progress)
        yield {"plan": asdict(plan), "sites": dict(sites)}


def curve(known: Mapping[str, Any], strategy: str, error: str) -> list[list[float]]:
    """Return the errors of each site under a strategy: before, then after each round."""
    sites = [site for name, site in sorted(known["sites"].items()) if name.endswith(f"/{strategy}")]
    return [[site["before"][error], *(entry["errors"][error] for entry in site["rounds"])] for site in sites]


def table(known: Mapping[str, Any]) -> str:
    """Return the table of errors by number of corrections: the mean of the sites (and of each site)."""
    step = known["plan"]["corrections"]
    lines = ["| error | corrections | " + " | ".join(STRATEGIES) + " |", "|---|---|" + "---|" * len(STRATEGIES)]
    for error in ERRORS:
        columns = [curve(known, strategy, error) for strategy in STRATEGIES]
        for number in range(len(columns[0][0])):
            cells = []
            for sites in columns:
                values = [site[number] for site in sites]
                cells.append(f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
            lines.append(f"| {error} | {number * step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(known: Mapping[str, Any], file: Path) -> None:
    """Plot the table: a line for the mean of each strategy, and thin lines for its sites."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, error in zip(figure.subplots(1, len(ERRORS)), ERRORS, strict=True):
        for color, strategy in zip(("gray", "tab:blue"), STRATEGIES, strict=True):
            sites = np.array(curve(known, strategy, error))
            x = np.arange(sites.shape[1]) * known["plan"]["corrections"]
            axes.plot(x, sites.T, color=color, alpha=0.3)
            axes.plot(x, sites.mean(axis=0), color=color, marker="o", label=strategy)
        axes.set(xlabel="corrections", ylabel=f"error of {error}", ylim=(0, None))
        axes.legend()
    figure.savefig(file)


def _show(line: str) -> None:
    print(f"  {line}", flush=True)


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    halves = parser.add_subparsers(dest="half", required=True)
    first = halves.add_parser("offers")
    first.add_argument("--real", type=Path, help="folder with images and truth, see bench_real.py")
    first.add_argument("--spider", type=Path, help="folder with NNN_image and NNN_label")
    second = halves.add_parser("trainings")
    second.add_argument("--out", type=Path, default=ROOT / "bench" / "selection", help="folder for all results")
    second.add_argument("--weights", default="starter", help="weights to begin with, as for 'totalspineseg serve'")
    second.add_argument("--quick", action="store_true", help="tiny scans and trainings, to check that it runs")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run one of the two parts."""
    arguments = arguments_of(words)
    if arguments.half == "offers":
        offers(arguments.real, arguments.spider)
        return
    try:
        for known in trainings(QUICK if arguments.quick else Plan(), arguments.out, arguments.weights):
            plot(known, arguments.out / "selection.png")
            print(f"\n{table(known)}\n\nplot: {arguments.out / 'selection.png'}", flush=True)
    except ServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    unwind_on_signals()
    main()
