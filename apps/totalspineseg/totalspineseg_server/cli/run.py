"""Segment and number spine MRI: cord, canal, every vertebra and disc by name.

INPUT is an image (.nii, .nii.gz, .nrrd, a DICOM folder), a folder of images or of DICOM folders, or a BIDS
data set (sub-*/anat, sub-*/ses-*/anat). OUTPUT is a folder; a run that was interrupted continues where it stopped.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import (
    add_model_arguments,
    add_numbering_arguments,
    model_store,
    pins_of,
    print_unmet_pins,
)
from totalspineseg_server.cli.executor import add_executor_arguments, executor_of
from totalspineseg_server.errors import TotalSpineSegError
from totalspineseg_server.places import COMMAND
from totalspineseg_server.trust import is_doubtful

if TYPE_CHECKING:
    from totalspineseg_server.cohort.inputs import Case
    from totalspineseg_server.cohort.running import Summary
    from totalspineseg_server.cohort.work import RunOptions

EARLIER_LABELS: Final = ("step2_output", "step1_output")
"""Folders of OUTPUT whose label maps serve as localizers if there is no ``--loc``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="an image or a folder of images")
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT", help="folder for the results; it is made if it is missing"
    )
    parser.add_argument("--step1", action="store_true", help="stop after step 1 (discs, C1, canal, cord)")
    parser.add_argument("--iso", action="store_true", help="keep the results at 1 mm instead of the input's grid")
    parser.add_argument(
        "--loc",
        type=Path,
        metavar="FOLDER|FILE",
        help="label maps of localizers (other series of the same patients): a folder, or one file for all scans",
    )
    parser.add_argument(
        "--suffix", nargs="+", default=[], metavar="S", help="only images whose name has this ending, such as _T2w"
    )
    parser.add_argument(
        "--loc-suffix",
        metavar="S",
        help="name ending of the localizer in place of --suffix: --suffix _T2w --loc-suffix _T1w pairs "
        "sub-01_T2w with sub-01_T1w (without --loc: among the results already in OUTPUT)",
    )
    parser.add_argument(
        "--keep-only", nargs="+", metavar="FOLDER", help="write only these folders of OUTPUT, such as step2_output"
    )
    parser.add_argument(
        "--bids",
        action="store_true",
        help="write the label maps also as BIDS derivatives, into OUTPUT/derivatives/totalspineseg",
    )
    parser.add_argument(
        "--seg", action="store_true", help="write the label maps of DICOM series also as DICOM SEG, into OUTPUT/seg"
    )
    parser.add_argument(
        "--sr",
        action="store_true",
        help="with --seg: write the measurements also as a DICOM structured report, into OUTPUT/sr",
    )
    add_numbering_arguments(parser)
    add_model_arguments(parser)
    add_executor_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="process finished scans again")
    parser.add_argument("--quiet", action="store_true", help="print failures only")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    from totalspineseg_server.cohort.inputs import find_cases, pair_localizers, skipped_sentences

    output: Path = arguments.output
    if output.exists() and not output.is_dir():
        raise TotalSpineSegError(cli_messages.OUTPUT_IS_FILE.format(output=str(output)))
    cases = find_cases(arguments.input, suffixes=arguments.suffix, exclude=output)
    if not arguments.quiet and (skipped := skipped_sentences(arguments.input, cases, exclude=output)):
        print(skipped, file=sys.stderr)
    earlier = [output / folder for folder in EARLIER_LABELS]
    cases = pair_localizers(
        cases, arguments.loc, suffixes=arguments.suffix, localizer_suffix=arguments.loc_suffix, earlier=earlier
    )
    options = _options(arguments, len(cases))
    summary, warning = _run(arguments, cases, options)
    if not arguments.quiet:
        _print_summary(summary, output)
    not_passed_on = _pass_on(arguments, cases, summary)
    for name, record in summary.records.items():
        print_unmet_pins(name, record)
    for name, failure in (*summary.damaged.items(), *summary.failures.items(), *not_passed_on.items()):
        print(f"{name}: {failure}", file=sys.stderr)
    if warning and not arguments.quiet:
        print(warning)
    if summary.interrupted:
        print(f"{COMMAND}: interrupted; the same command continues", file=sys.stderr)
        return 130
    return 1 if summary.failures or not_passed_on else 0


def _options(arguments: argparse.Namespace, count: int) -> "RunOptions":
    from totalspineseg_server.cohort.outputs import FOLDERS
    from totalspineseg_server.cohort.work import RunOptions

    if arguments.pin and count > 1:
        raise TotalSpineSegError(cli_messages.PIN_FOR_SCANS.format(count=count))
    keep = FOLDERS if arguments.keep_only is None else tuple(arguments.keep_only)
    if unknown := [folder for folder in keep if folder not in FOLDERS]:
        raise TotalSpineSegError(f"--keep-only must name folders of {', '.join(FOLDERS)}, got {', '.join(unknown)}")
    if arguments.step1:
        keep = tuple(folder for folder in keep if not folder.startswith("step2"))
        if not keep:
            raise TotalSpineSegError(cli_messages.NO_STEP2.format(folders=" ".join(arguments.keep_only)))
    _require_labels(arguments, keep)
    return RunOptions(
        iso=arguments.iso, step1=arguments.step1, keep=keep, method=arguments.method, pins=pins_of(arguments)
    )


def _require_labels(arguments: argparse.Namespace, keep: Collection[str]) -> None:
    """Check that a run writes the label maps that ``--bids`` and ``--seg`` need."""
    from totalspineseg_server.cohort.interchange import LABELS

    for option in ("bids", "seg"):
        if getattr(arguments, option) and LABELS not in keep:
            raise TotalSpineSegError(cli_messages.MAPS_NEEDED.format(option=option, labels=LABELS))
    if arguments.sr and not arguments.seg:
        raise TotalSpineSegError(cli_messages.SR_NEEDS_SEG)
    if arguments.seg and arguments.iso:
        raise TotalSpineSegError(cli_messages.SEG_NEEDS_GRID)


def _pass_on(arguments: argparse.Namespace, cases: "Sequence[Case]", summary: "Summary") -> dict[str, str]:
    """Write the files for ``--bids`` and ``--seg``; return name -> sentence for each scan without a DICOM SEG."""
    from totalspineseg_server.cohort.interchange import DERIVATIVES, SEG, is_dicom_case, write_bids, write_segs

    output: Path = arguments.output
    written, failures = [], dict[str, str]()
    if arguments.bids:
        count = write_bids(output, cases, summary.records, iso=arguments.iso)
        written.append(f"{count} label maps as BIDS derivatives in {output / DERIVATIVES}")
    if arguments.seg:
        count, failures = write_segs(output, cases, summary.records, reports=arguments.sr)
        others = sum(not is_dicom_case(case) for case in cases)
        left_out = f" ({others} scans are not DICOM)" if others else ""
        written.append(f"{count} DICOM SEG in {output / SEG}{left_out}")
    for line in written if not arguments.quiet else ():
        print(line)
    return failures


def _run(arguments: argparse.Namespace, cases: "tuple[Case, ...]", options: "RunOptions") -> "tuple[Summary, str]":
    """Process the scans; return the summary, and a sentence that warns of the weights ("" for none)."""
    from totalspineseg_server.cohort.documents import weights_warning, write_documents
    from totalspineseg_server.cohort.running import Progress, run
    from totalspineseg_server.cohort.work import Work
    from totalspineseg_server.nnunet.discovery import files_in_use
    from totalspineseg_server.nnunet.runtimes import chosen_for_all, with_runtime
    from totalspineseg_server.registry.releases import weights_text

    store = model_store(arguments.data_dir, arguments.weights)
    steps = (1,) if options.step1 else (1, 2)
    models = {step: files_in_use(store, step) for step in steps}
    runtime = chosen_for_all(arguments.runtime, arguments.device, models.values())
    versions = {f"step{step}": with_runtime(model.version, runtime) for step, model in models.items()}
    work = Work(arguments.output, options, versions)
    progress = Progress(len(cases), None if arguments.quiet else sys.stderr)
    executor = executor_of(arguments, work, store, runtime)
    summary = run(work, cases, executor, overwrite=arguments.overwrite, progress=progress)
    progress.close()
    weights = weights_text(store, {step: store.resolve(step).name for step in steps})
    warning = weights_warning(store, summary, versions)
    asked = _asked(arguments)
    write_documents(arguments.output, cases, summary, versions=versions, weights=weights, warning=warning, asked=asked)
    return summary, warning


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options as typed, for ``run.json``."""
    return {name: _plain(value) for name, value in vars(arguments).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _print_summary(summary: "Summary", output: Path) -> None:
    from totalspineseg_server.numbering.findings import IMAGE

    new = len(summary.records) - len(summary.skipped)
    print(
        f"{new} done, {len(summary.skipped)} finished before, {len(summary.failures)} failed, {summary.seconds:.1f} "
        f"s; results in {output}"
    )
    for name, record in summary.records.items():
        for finding in record["findings"] if name not in summary.skipped else ():
            if finding["kind"] == IMAGE:
                print(f"{name}: {finding['message']}")
    doubtful = [name for name, record in summary.records.items() if is_doubtful(record)]
    if doubtful:
        print(f"names are doubtful in {len(doubtful)}: {', '.join(sorted(doubtful)[:10])}; see {output}/report.html")
