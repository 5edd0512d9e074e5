"""Test the numbering on difficult synthetic columns with known truth: all fields of view, mistakes and variants.

Usage: python tools/bench_numbering.py [--seed N] [--quick] [--limit N] [--json FILE] [--verbose] [--pairs]

Prints, for each kind of mistake and each field of view: scans with every level right, levels right, scans whose names
are doubtful (the others are certain or counted), right or not certain ("r. or n.") if the evidence identifies the
numbering, scans confidently wrong, and the iterative method on the same cases; then the calibration of the levels'
probabilities. With --pairs every column has a map of each step, with its own mistakes or the same ones, and step 2 is
named with and without the names of step 1.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tests")]

import columns  # noqa: E402
from totalspineseg_server.anatomy import DISC_CLASSES, DISCS, LANDMARK_CLASS, LANDMARK_DISCS, VERTEBRAE, Kind  # noqa: E402
from totalspineseg_server.files import write_json  # noqa: E402
from totalspineseg_server.geometry import Volume  # noqa: E402
from totalspineseg_server.numbering.chain import Numbering  # noqa: E402
from totalspineseg_server.numbering.evidence import Step1Names  # noqa: E402
from totalspineseg_server.numbering.naming import name_map, step1_names  # noqa: E402
from totalspineseg_server.numbering.states import LUMBAR_PRIOR, THORACIC_PRIOR  # noqa: E402

BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.001)


COARSE_MM = 1.5
"""Voxel size of most cases: three times faster than the networks' 1 mm."""
FINE_SHARE = 0.15
"""Share of cases at 1 mm."""


@dataclass
class Plan:
    """A case to be made."""

    fov: str
    variant: str
    step: int
    mistakes: tuple[str, ...]
    curvature: float
    seed: int
    swapped: bool = False
    spacing: float = COARSE_MM


@dataclass
class Outcome:
    """The result of a case."""

    plan: Plan
    judged: int
    wrong: int
    confident: bool
    probability: float
    runner_up: bool
    identified: bool
    iterative_wrong: int
    seconds: float
    doubtful: bool
    levels: list[tuple[float, bool]] = field(default_factory=list)
    errors: dict[int, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of case, for the table."""
        if len(self.plan.mistakes) > 1:
            return "combined"
        return self.plan.mistakes[0] if self.plan.mistakes else "clean"


def plans(seed: int, *, quick: bool) -> Iterator[Plan]:
    """Yield all cases: each mistake alone in each field of view, combinations, and every variant."""
    rng = np.random.default_rng(seed)
    names = list(columns.MISTAKES)
    number = seed * 100_000

    def plan(fov: str, variant: str, step: int, mistakes: tuple[str, ...], curvature: float = 1.0) -> Plan:
        nonlocal number
        number += 1
        spacing = 1.0 if rng.random() < FINE_SHARE else COARSE_MM
        return Plan(fov, variant, step, mistakes, curvature, number, bool(rng.random() < 0.3), spacing)

    for fov in columns.FIELDS:
        for step in (1, 2):
            yield plan(fov, "normal", step, ())
            yield plan(fov, "normal", step, (), 1.8)
            for name in names if not quick else rng.choice(names, 2, replace=False).tolist():
                yield plan(fov, "normal", step, (name,))
            for _ in range(10 if not quick else 1):
                count = int(rng.integers(2, 5))
                chosen = tuple(rng.choice(names, count, replace=False).tolist())
                yield plan(fov, "normal", step, chosen, float(rng.choice([0.6, 1.0, 1.6])))
            for variant in [v for v in columns.VARIANTS if v != "normal"]:
                yield plan(fov, variant, step, ())
                if not quick:
                    yield plan(fov, variant, step, (str(rng.choice(names)),))


def draw(plan: Plan) -> columns.Case | None:
    """Make the case; None if a mistake does not apply to it."""
    rng = np.random.default_rng(plan.seed)
    thoracic, lumbar = columns.VARIANTS[plan.variant]
    case = columns.build(
        rng, fov=plan.fov, thoracic=thoracic, lumbar=lumbar, curvature=plan.curvature, spacing=plan.spacing
    )
    case = columns.classes(case, plan.step, swapped=plan.swapped)
    for name in plan.mistakes:
        if not columns.MISTAKES[name](case, rng):
            return None
    return case


SHARED_MISTAKES = 0.5
"""Share of pairs in which both networks make the same mistakes."""


def named_before(plan: Plan) -> Step1Names | None:
    """Return the names of step 1 in the same column, from a map with its own mistakes; None if nothing can be named."""
    rng = np.random.default_rng([plan.seed, 1])
    others = rng.choice(list(columns.MISTAKES), int(rng.integers(0, 3)), replace=False).tolist()
    mistakes = plan.mistakes if rng.random() < SHARED_MISTAKES else tuple(others)
    case = draw(replace(plan, step=1, mistakes=()))
    if case is None:
        return None
    for name in mistakes:
        columns.MISTAKES[name](case, rng)
    return step1_names(*name_map(Volume(case.raw, case.affine), 1))


def identified(case: columns.Case, plan: Plan) -> bool:
    """Return whether the classes in the map determine the numbering for an observer who sees them perfectly.

    Only landmarks on their own disc count. One of them is enough in a normal column without misleading landmarks;
    against a misleading one, two are needed. A variant needs true landmarks on both sides of its unusual part.
    """
    true, misled = set(), False
    for value, code in LANDMARK_CLASS.items():
        here = case.raw[(case.truth == code) & np.isin(case.raw, DISC_CLASSES)]
        if here.size >= 300 and (here == value).mean() > 0.7:
            true.add(code)
        elsewhere = (case.raw == value) & (case.truth != code) & np.isin(case.truth, DISCS)
        misled |= int(elsewhere.sum()) > 100
    c2_c3, c7_t1, t12_l1, l5_s = LANDMARK_DISCS
    lumbar_seen = bool(np.isin(case.truth, VERTEBRAE[19:]).any())
    if plan.variant in ("T11", "T13") and lumbar_seen:
        return t12_l1 in true and l5_s in true and bool({c2_c3, c7_t1} & true) and not misled
    if plan.variant in ("L4", "L6") and lumbar_seen and plan.fov not in ("thoracic",):
        return t12_l1 in true and l5_s in true and bool({c2_c3, c7_t1} & true) and not misled
    if plan.fov in ("lumbar", "lower lumbar", "thoracolumbar"):
        return {t12_l1, l5_s} <= true and not misled
    return len(true) >= (3 if misled else 1)


def judge(plan: Plan, case: columns.Case, step1: Step1Names | None = None) -> Outcome:
    """Name the case with both methods and compare with the truth."""
    volume = Volume(case.raw, case.affine)
    start = time.perf_counter()
    labels, numbering = name_map(volume, plan.step, step1=step1)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    assert numbering is not None
    errors = columns.errors(case, labels)
    plain, _ = name_map(volume, plan.step, method="iterative")  # type: ignore[arg-type]
    truth = _piece_truth(case, numbering)
    seen = [
        (level.probability, level.code == code) for level, code in zip(numbering.levels, truth, strict=True) if code
    ]
    runner_up = any(
        all(a == t for a, t in zip(other.codes, truth, strict=True) if t) for other in numbering.alternatives
    )
    return Outcome(
        plan,
        columns.judged(case),
        len(errors),
        numbering.confident,
        numbering.probability,
        runner_up,
        identified(case, plan),
        len(columns.errors(case, plain)),
        seconds,
        numbering.certainty == "doubtful",
        seen,
        errors,
    )


def _piece_truth(case: columns.Case, numbering: Numbering) -> list[int]:
    """Return the true code of each level's piece; 0 if it is not a level."""
    result = []
    for level in numbering.levels:
        numbered = numbering.pieces.disc_map if level.kind is Kind.DISC else numbering.pieces.vertebra_map
        if numbered is None or level.piece < 0:
            result.append(level.code if level.piece < 0 else 0)
            continue
        piece = (numbering.pieces.discs if level.kind is Kind.DISC else numbering.pieces.vertebrae)[level.piece]
        inside = case.truth[piece.box][numbered[piece.box] == level.piece + 1]
        of_kind = inside[np.isin(inside, DISCS) == (level.kind is Kind.DISC)]
        of_kind = of_kind[of_kind > 2]
        result.append(int(np.bincount(of_kind).argmax()) if of_kind.size > 0.3 * inside.size else 0)
    return result


def table(outcomes: list[Outcome], key: str) -> None:
    """Print a line for each kind or field of view."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[getattr(outcome, key) if key == "kind" else getattr(outcome.plan, key)].append(outcome)
    print(
        f"{key:18} {'scans':>5} {'all right':>9} {'levels':>7} {'doubtful':>8} {'ident.':>6} {'r. or n.':>8} "
        f"{'conf.wrong':>11} | {'iter. right':>11} {'levels':>7}"
    )
    for name, group in [*groups.items(), ("all", outcomes)]:
        print(f"{name:18} {_line(group)}")
    print()


def _line(group: list[Outcome]) -> str:
    known = [o for o in group if o.identified]
    good = sum(_good(o) for o in known)
    judged = sum(o.judged for o in group)
    right = sum(o.wrong == 0 for o in group)
    doubtful = sum(o.doubtful for o in group)
    share = f"{good / len(known):8.1%}" if known else f"{'-':>8}"
    wrong = sum(_confidently_wrong(o) for o in group)
    levels = 1 - sum(o.wrong for o in group) / judged
    iterative = sum(o.iterative_wrong == 0 for o in group)
    iterative_levels = 1 - sum(o.iterative_wrong for o in group) / judged
    return (
        f"{len(group):5} {right / len(group):9.1%} {levels:7.1%} {doubtful / len(group):8.1%} {len(known):6} {share} "
        f"{wrong:4} ({wrong / len(group):4.1%}) | {iterative / len(group):11.1%} {iterative_levels:7.1%}"
    )


def _good(outcome: Outcome) -> bool:
    return outcome.wrong == 0 or (not outcome.confident and outcome.runner_up)


def _confidently_wrong(outcome: Outcome) -> bool:
    return outcome.confident and outcome.wrong > 0


def calibration(outcomes: list[Outcome]) -> None:
    """Print how many levels with each probability are right: in all cases, and with variants as rare as in people.

    A third of the cases are variants, which most fields of view cannot show, so the usual names are wrong more often
    than in a clinic.
    """
    counts = Counter(o.plan.variant for o in outcomes)
    share = {name: THORACIC_PRIOR[t] * LUMBAR_PRIOR[n] for name, (t, n) in columns.VARIANTS.items()}
    levels = [(p, ok, share[o.plan.variant] / counts[o.plan.variant]) for o in outcomes for p, ok in o.levels]
    print(f"{'probability':14} {'levels':>7} {'expected':>8} {'right':>7} {'as in people':>13}")
    for low, high in pairwise(BINS):
        mine = [level for level in levels if low <= level[0] < high]
        if mine:
            expected, right, weight = (np.array(values, dtype=float) for values in zip(*mine, strict=True))
            people = (right * weight).sum() / weight.sum()
            head = f"{low:.2f} - {min(high, 1):.2f}    {len(mine):7}"
            print(f"{head} {expected.mean():8.1%} {right.mean():7.1%} {people:13.1%}")
    print()


def main() -> None:
    """Run everything and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="about 130 cases")
    parser.add_argument("--limit", type=int, help="only this many random cases")
    parser.add_argument("--json", type=Path, help="write every outcome")
    parser.add_argument("--verbose", action="store_true", help="print what went wrong")
    parser.add_argument("--pairs", action="store_true", help="step 2 alone, and with the names of step 1")
    arguments = parser.parse_args()
    outcomes, alone = [], []
    todo = [p for p in plans(arguments.seed, quick=arguments.quick) if p.step == 2 or not arguments.pairs]
    if arguments.limit:
        chosen = np.random.default_rng(arguments.seed).permutation(len(todo))[: arguments.limit]
        todo = [todo[k] for k in chosen]
    for plan in todo:
        case = draw(plan)
        if case is None:
            continue
        if arguments.pairs:
            alone.append(judge(plan, case))
        outcome = judge(plan, case, named_before(plan) if arguments.pairs else None)
        outcomes.append(outcome)
        if arguments.verbose and (outcome.wrong or (outcome.identified and not outcome.confident)):
            state = "CONFIDENT" if outcome.confident else "not certain"
            mark = "identified" if outcome.identified else "open"
            head = f"{plan.fov} {plan.variant} step {plan.step} {plan.mistakes} x{plan.curvature} seed {plan.seed}"
            print(
                f"{head}: {state} {outcome.probability:.3f} {mark} runner-up {outcome.runner_up} {outcome.errors}",
                flush=True,
            )
    if alone:
        print("step 2 by itself:")
        table(alone, "fov")
        print("with the names of step 1:")
    table(outcomes, "kind")
    table(outcomes, "fov")
    table(outcomes, "variant")
    known = [o for o in outcomes if o.identified]
    good, wrong = sum(map(_good, known)), sum(map(_confidently_wrong, known))
    print(
        f"identified: {len(known)} scans, right or not certain with the truth as runner-up {good / len(known):.2%}, "
        f"confidently wrong {wrong} ({wrong / len(known):.2%})"
    )
    print(f"confidently wrong in total, of {len(outcomes)}: {sum(map(_confidently_wrong, outcomes))}\n")
    calibration(outcomes)
    seconds = np.median([o.seconds for o in outcomes])
    print(f"median seconds a scan, component finding and painting included: {seconds:.2f}")
    if arguments.json:
        write_json(arguments.json, [asdict(o) for o in outcomes], default=int)


if __name__ == "__main__":
    main()
