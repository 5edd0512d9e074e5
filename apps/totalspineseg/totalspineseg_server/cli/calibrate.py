"""Measure on labeled scans how far networks can be trusted: which landmark class lies on which disc.

The result is saved beside the weights and used from the next scan on. Leave out scans that the networks have learned
from, because these make them look better than they are. A site's finished corrections can be used too: give the folder
of its studies.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from totalspineseg_server.bids import LABEL_SUFFIX
from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import existing_path, model_store
from totalspineseg_server.places import COMMAND

if TYPE_CHECKING:
    from totalspineseg_server.trust import Trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="weights to measure: starter, official, an installed version, or a folder with both steps",
    )
    parser.add_argument(
        "scans", type=existing_path, metavar="SCANS", help="BIDS folder with derivative labels, or a folder of studies"
    )
    parser.add_argument(
        "--label-suffix",
        default=LABEL_SUFFIX,
        metavar="S",
        help="labels are named IMAGE + S below derivatives/ (default: %(default)s)",
    )
    parser.add_argument("--add", action="store_true", help="add to the earlier measurement instead of replacing it")
    parser.add_argument(
        "--device", default="auto", metavar="cuda|cpu", help="device to run on (default: a GPU if there is one)"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if a scan had to be left out."""
    from totalspineseg_server.cli.prepare import labeled_scans
    from totalspineseg_server.errors import LabelError
    from totalspineseg_server.nnunet.calibration import calibrate, joined
    from totalspineseg_server.nnunet.cases import Skipped
    from totalspineseg_server.nnunet.discovery import write_trust
    from totalspineseg_server.nnunet.model_folder import models_in_use
    from totalspineseg_server.nnunet.runtimes import require

    require(arguments.device, "torch")
    store = model_store(None, arguments.weights)
    models = models_in_use(store)
    skipped: list[Skipped] = []
    sources, unusable = labeled_scans(arguments.scans, arguments.label_suffix)
    if not sources:
        raise LabelError(cli_messages.NO_LABELED_SCANS.format(folder=str(arguments.scans), command=COMMAND))

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
        before_each=lambda name: print(f"measuring {name}", file=sys.stderr),
    )
    if blind := [step for step, trust in found.items() if not trust.scans]:
        raise LabelError(cli_messages.NOTHING_MEASURED.format(steps=" and ".join(map(str, blind))))
    for step, trust in found.items():
        known = joined(models[step].trust, trust) if arguments.add else trust
        write_trust(models[step].path, known)
        print(
            f"step {step}, {known.scans} scans, "
            f"{'mean of the image and its mirror image' if known.mirror else 'image without mirroring'}:"
        )
        for line in lines(known):
            print(f"  {line}")
    return 1 if skipped else 0


def lines(trust: "Trust") -> list[str]:
    """Return the measurements, one line for each landmark."""
    from totalspineseg_server.anatomy import LANDMARK_DISCS, NAME_OF

    result = []
    for code, seen in zip(LANDMARK_DISCS, trust.landmarks, strict=True):
        if seen.scans:
            result.append(
                f"{NAME_OF[code]}: on its own disc {seen.own:.1f} of {seen.scans:.0f}, on the one above "
                f"{seen.above:.1f} of {seen.scans_above:.0f}, below {seen.below:.1f} of {seen.scans_below:.0f}"
            )
    end = trust.lower_end
    if end.scans:
        result.append(
            f"lower end, {end.scans:.0f} scans: last lumbar vertebra taken for S1 {end.shifted:.0f}, S1 drawn as a "
            f"vertebra {end.s1:.0f}, a disc drawn below L5-S {end.below + end.below_thin:.0f}"
        )
    for failures, how in ((trust.uncontradicted, "nothing contradicts"), (trust.contradicted, "something contradicts")):
        if failures.scans:
            result.append(
                f"names that {how}: wrong in {failures.wrong:.0f} of {failures.scans:.0f} scans, expected in "
                f"{failures.expected:.1f}"
            )
    if trust.parity_levels:
        result.append(f"odd and even swapped in {trust.parity_wrong:.0f} of {trust.parity_levels:.0f} vertebrae")
    result.append(f"the cord is drawn where its logit is at least {-trust.cord_logit:.2f}")
    return result
