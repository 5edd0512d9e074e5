"""The work on one scan: read, through the networks, write, and the record that says it is finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from lib import pipeline
from lib.cohort.inputs import Case
from lib.cohort.levels import levels_in_view, structures_json
from lib.cohort.options import RunOptions
from lib.cohort.outputs import FOLDERS, REPORTS, Result, make_folders, result_files, write_result
from lib.cohort.record import read_record, record_path, remove_record, write_json
from lib.cohort.stamps import same_content, stamp
from lib.cohort.stopwatch import Stopwatch
from lib.errors import ImageError, StorageError, TotalSpineSegError
from lib.geometry import Volume, labels_on_grid
from lib.image import Image
from lib.leftovers import remove_leftovers
from lib.measurements import measure
from lib.numbering.chain import Numbering
from lib.numbering.doubtful import doubtful_codes
from lib.numbering.lint import lint
from lib.numbering.report import report
from lib.pipeline import Options
from lib.prediction import Predictor
from lib.volume_io import read_codes, read_image

STALE_PARTIAL_S: Final = 3600
"""A temporary file older than this was left by a run that was killed."""
MAX_SKEW_DEG: Final = 1.0
"""Above it angles are off by more than they are measured to; rounded headers stay below a tenth of it."""
WHAT_IS_WRITTEN: Final = ("iso", "step1", "keep")
"""Options that choose files and their grid, and change nothing that is found."""
RECORD_FORMAT: Final = 4
"""Rises when records change in a way that makes older ones unusable, or their names and numbers wrong."""

Record = dict[str, Any]


class Networks(Protocol):
    """Gives the warm predictor of a step."""

    def get(self, step: Literal[1, 2]) -> Predictor:
        """The predictor.

        Raises:
            WeightsError: There are no usable weights.
        """


@dataclass(frozen=True)
class Loaded:
    """A scan as read."""

    image: Image
    localizer: Volume | None
    watch: Stopwatch


@dataclass(frozen=True)
class Found:
    """What the networks found.

    Attributes:
        result: Arrays.
        numbering: What the chain model knows of the levels; None with the iterative method.
        watch: Seconds so far.
        failure: Why there is no step 2 although one was asked for; None when all went well.
        apart: Whether the localizer lies beside the scan, so that it says nothing.
    """

    result: Result
    numbering: Numbering | None
    watch: Stopwatch
    failure: TotalSpineSegError | None = None
    apart: bool = False


class Work:
    """What a run does with each of its scans; the same wherever it runs.

    Args:
        output: OUTPUT.
        options: What to do.
        versions: Step -> version of the weights in use, part of every record.
    """

    def __init__(self, output: Path, options: RunOptions, versions: dict[str, str]) -> None:
        self.output, self.options, self.versions = output, options, versions

    def make_room(self) -> None:
        """Create the folders, and delete what a killed run left half-written.

        Raises:
            StorageError: The output folder cannot be written.
        """
        make_folders(self.output, self.options.keep)
        for folder in (*self.options.keep, REPORTS, "."):
            remove_leftovers(self.output / folder, STALE_PARTIAL_S)

    def require_apart(self, cases: Sequence[Case]) -> None:
        """Check that no scan and no localizer is a file that the run would delete or write.

        Raises:
            StorageError: One is; nothing was touched.
        """
        folders = {(self.output / folder).resolve() for folder in (*FOLDERS, REPORTS)}
        results = {(self.output / file).resolve() for case in cases for file in _every_file(case)}
        for case in cases:
            if case.path.parent.resolve() in folders or case.path.resolve().parent in folders:
                raise StorageError(
                    f"scans outside the folders that OUTPUT gets are required, got {str(case.path)!r}, which would be "
                    "replaced; choose another OUTPUT"
                )
            if case.localizer is not None and case.localizer.resolve() in results:
                raise StorageError(
                    f"localizers other than results of the scans to be done are required, got {str(case.localizer)!r}, "
                    "which would be replaced; copy it to another folder, or choose another OUTPUT"
                )

    def of_another(self, case: Case) -> str:
        """Why the results under a scan's name are not its own: they are of a file of that name in another place.

        Returns:
            One sentence; empty when there are none, or they are of this scan, moved or replaced where it lay.
        """
        record = read_record(self.output, case.name) or {}
        source = record.get("source", "")
        try:
            before = record["made_with"]["input"][1]
        except (KeyError, IndexError, TypeError):
            return ""
        if source in ("", _source(case)) or same_content(before, stamp(case.path)):
            return ""
        return (
            f"an OUTPUT without results of another scan called {case.name!r} is required, got those of {source!r}; "
            "choose another OUTPUT, or replace them with --overwrite"
        )

    def finished(self, case: Case) -> Record | None:
        """The record of a scan that needs nothing more; None: it is to be done (again)."""
        record = read_record(self.output, case.name)
        if record is None or record.get("made_with") != self._identity(case):
            return None
        files: list[str] = record.get("files", [])
        return record if all((self.output / file).is_file() for file in files) else None

    def read(self, case: Case) -> Loaded:
        """Read a scan and its localizer; what an earlier run left of the scan is deleted first.

        So whatever fails from here on, no old result can be taken for one of this run. Files that this run does not
        write stay, if they were found in the same image in the same way.

        Raises:
            ImageError: One of them cannot be read.
            StorageError: The old results cannot be removed.
        """
        if not case.path.exists():
            # Results of a scan that is out of reach at the moment stay as they are.
            raise ImageError(f"a scan is required, got {case.path.name!r}, which does not exist; fetch or restore it")
        self._forget(case)
        watch = Stopwatch()
        with watch("read"):
            image = read_image(case.path)
            localizer = None if case.localizer is None else read_codes(case.localizer)
        return Loaded(image, localizer, watch)

    def compute(self, case: Case, loaded: Loaded, networks: Networks) -> Found:
        """Pass a scan through the networks; a failure of step 2 leaves what step 1 found.

        Args:
            case: The scan.
            loaded: From ``read``.
            networks: The warm networks.

        Raises:
            NoSpineError: Step 1 found no disc or no canal.
        """
        watch = loaded.watch
        scan = pipeline.prepare(loaded.image, warnings=loaded.image.warnings, clock=watch)
        localizer = None if loaded.localizer is None else labels_on_grid(loaded.localizer, scan.iso.grid)
        named = None if localizer is None else Volume(localizer, scan.iso.affine)
        options = Options(method=self.options.method, localizer=named, pins=self.options.pins)
        located = pipeline.locate(scan, networks.get(1), options, clock=watch)
        segmentation, numbering, failure = None, located.numbering, None
        if not self.options.step1:
            try:
                segmentation = pipeline.finish(located, networks.get(2), options, clock=watch)
                numbering = segmentation.numbering
            except TotalSpineSegError as error:
                failure = error
        integers = loaded.image.data.dtype.kind in "iub"
        labels = located.labels if segmentation is None else segmentation.labels
        doubtful = doubtful_codes(numbering, labels)
        apart = localizer is not None and not localizer.any()
        return Found(Result(located, segmentation, doubtful, integers), numbering, watch, failure, apart)

    def write(self, case: Case, found: Found) -> Record:
        """Write all files of a scan, its record last.

        Args:
            case: The scan.
            found: From ``compute``. Not modified.

        Raises:
            StorageError: A file could not be written.
            TotalSpineSegError: Step 2 failed; what step 1 found is written, but the scan is not finished.
        """
        watch, options, result = found.watch, self.options, found.result
        with watch("write"):
            files = write_result(self.output, case.name, result, iso=options.iso, keep=options.keep)
        if found.failure is not None:
            raise found.failure
        with watch("measure"):
            iso = result.located.scan.iso
            spacing = iso.spacing
            step: Literal[1, 2] = 1 if result.segmentation is None else 2
            structures = structures_json(result.labels, spacing, step=step)
            measurable = result.segmentation is not None and iso.grid.skew_deg <= MAX_SKEW_DEG
            rows = measure(result.labels, spacing, doubtful=result.doubtful) if measurable else []
        odd = pipeline.image_findings(result.located.scan, found.numbering)
        record = {
            "scan": case.name,
            "source": _source(case),
            **report(found.numbering, (*odd, *lint(result.labels, spacing)), affine=iso.affine),
            "in_view": levels_in_view(structures, step=step),
            "structures": structures,
            "warnings": _warnings(case, found),
            "measurements": rows,
            "files": files,
            "seconds": watch.as_json(),
            "made_with": self._identity(case),
        }
        write_json(record_path(self.output, case.name), record)
        return record

    def _forget(self, case: Case) -> None:
        before = (read_record(self.output, case.name) or {}).get("made_with")
        remove_record(self.output, case.name)
        keep, step1 = (self.options.keep, self.options.step1) if self._found_alike(case, before) else (FOLDERS, False)
        files = result_files(case.name, keep=keep, step1=step1)
        try:
            for file in files:
                (self.output / file).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"permission to replace the results of {case.name!r} is required ({error.strerror})"
            ) from error

    def _found_alike(self, case: Case, before: Record | None) -> bool:
        """Whether earlier files of a scan tell of the same image, numbered the same way by the same weights."""
        now = self._identity(case)
        if before is None or before.get("format") != RECORD_FORMAT:
            return False
        for made_with in (before, now):
            made_with["options"] = {k: v for k, v in made_with["options"].items() if k not in WHAT_IS_WRITTEN}
            made_with["models"] = {step: made_with["models"].get(step) for step in self.versions}
        return before == now

    def _identity(self, case: Case) -> dict[str, Any]:
        """What a finished scan must agree in to be skipped."""
        return {
            "format": RECORD_FORMAT,
            "input": [case.path.name, stamp(case.path)],
            "localizer": None if case.localizer is None else [case.localizer.name, stamp(case.localizer)],
            "options": self.options.as_json(),
            "models": self.versions,
        }


def _source(case: Case) -> str:
    return str(case.path.absolute())


def _every_file(case: Case) -> tuple[str, ...]:
    """All that any run may write for a scan, relative to the output, but its record."""
    return result_files(case.name, keep=FOLDERS, step1=False)


def _warnings(case: Case, found: Found) -> list[str]:
    warnings = list[str]()
    if case.no_localizer:
        warnings.append(case.no_localizer)
    skew = found.result.located.scan.grid.skew_deg
    if skew > MAX_SKEW_DEG:
        warnings.append(f"the header skews the image by {skew:.0f} degrees; nothing was measured, and volumes are off")
    if found.apart:
        warnings.append("the localizer does not meet this scan and was of no use; take one of the same examination")
    return warnings
