"""Measure on labeled scans how far networks can be believed: which landmark class lies on which disc.

What is found is kept beside the weights and used from the next scan on. Scans that the networks have learned from would
flatter them: leave those out. A site's finished corrections count too: give the folder of its studies.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from lib.cli.common import existing_path, model_store

if TYPE_CHECKING:
    from lib.trust import Trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="starter, official, an installed version, or a folder with both steps"
    )
    parser.add_argument(
        "scans", type=existing_path, metavar="SCANS", help="BIDS folder with derivative labels, or a folder of studies"
    )
    parser.add_argument(
        "--label-suffix",
        default="_label-spine_dseg",
        metavar="S",
        help="labels are named IMAGE + S below derivatives/ (default: %(default)s)",
    )
    parser.add_argument("--add", action="store_true", help="to what was measured before, instead of replacing it")
    parser.add_argument("--device", default="auto", metavar="cuda|cpu", help="default: a GPU if there is one")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 when a scan had to be left out."""
    from lib.cli.prepare import labeled_scans
    from lib.errors import LabelError
    from lib.nnunet.calibration import STEPS, calibrate, joined
    from lib.nnunet.cases import Skipped
    from lib.nnunet.model_folder import ModelFolder
    from lib.nnunet.runtimes import require
    from lib.nnunet.trust_file import write_trust

    require(arguments.device, "torch")
    store = model_store(None, arguments.weights)
    choices = {step: store.resolve(step) for step in STEPS}
    models: dict[int, ModelFolder] = {
        step: ModelFolder.open(choice.root, step=step, name=choice.name) for step, choice in choices.items()
    }
    skipped: list[Skipped] = []
    sources, unusable = labeled_scans(arguments.scans, arguments.label_suffix)
    if not sources:
        raise LabelError(
            f"scans with labels are required, got none in {str(arguments.scans)!r}; see 'totalspineseg prepare --help' "
            "for how they lie"
        )

    def skip(case: Skipped) -> None:
        skipped.append(case)
        print(f"left out {case.name}: {case.reason}", file=sys.stderr)

    for case in unusable:
        skip(case)
    found = calibrate(
        models,
        sources,
        device=arguments.device,
        on_skip=skip,
        before_each=lambda name: print(f"looking at {name}", file=sys.stderr),
    )
    if blind := [step for step, trust in found.items() if not trust.scans]:
        raise LabelError(
            f"Nothing was measured of step {' and '.join(map(str, blind))}, so nothing was changed: no labeled disc "
            "was found in any scan. Any lines above say which scans were left out; give other scans."
        )
    for step, trust in found.items():
        known = joined(models[step].trust, trust) if arguments.add else trust
        write_trust(models[step].path, known)
        print(f"step {step}, {known.scans} scans, {'mean with the mirror' if known.mirror else 'image as it is'}:")
        for line in lines(known):
            print(f"  {line}")
    return 1 if skipped else 0


def lines(trust: "Trust") -> list[str]:
    """What was measured, a line a landmark."""
    from lib.anatomy import LANDMARK_DISCS, NAME_OF

    result = []
    for code, seen in zip(LANDMARK_DISCS, trust.landmarks, strict=True):
        if seen.scans:
            result.append(
                f"{NAME_OF[code]}: on its own disc {seen.own:.1f} of {seen.scans:.0f}, on the one above "
                f"{seen.above:.1f} of {seen.scans_above:.0f}, below {seen.below:.1f} of {seen.scans_below:.0f}"
            )
    if trust.parity_levels:
        result.append(f"odd or even wrong in {trust.parity_wrong:.0f} of {trust.parity_levels:.0f} vertebrae")
    result.append(f"cord drawn from a logit of {-trust.cord_logit:.2f} on")
    return result
