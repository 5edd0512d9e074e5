"""Process one scan: read it, run the networks, write the results, and last the record that marks it as finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from totalspineseg_server import pipeline
from totalspineseg_server.clock import Stopwatch
from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.interchange import interchange_files
from totalspineseg_server.cohort.outputs import FOLDERS, REPORTS, Result, make_folders, result_files, write_result
from totalspineseg_server.cohort.record import (
    fingerprint,
    levels_in_view,
    read_record,
    record_path,
    remove_record,
    same_content,
    set_damaged_aside,
    structures_json,
)
from totalspineseg_server.errors import ImageError, StorageError, TotalSpineSegError
from totalspineseg_server.files import remove_leftovers, storage_errors, write_json
from totalspineseg_server.geometry import Volume, labels_on_grid
from totalspineseg_server.image import Image
from totalspineseg_server.io.file_content import real_path
from totalspineseg_server.io.volumes import read_codes, read_image
from totalspineseg_server.measurements import Row, structure_rows
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.evidence import Pin
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.numbering.naming import Method
from totalspineseg_server.numbering.report import doubtful_codes, report
from totalspineseg_server.pipeline import Options
from totalspineseg_server.prediction import Prediction, Predictor

STALE_PARTIAL_S: Final = 3600
"""Age above which a temporary file is assumed to belong to a run that was killed, seconds."""
WHAT_IS_WRITTEN: Final = ("iso", "step1", "keep")
"""Options that choose files and their grid but do not change the results."""
RECORD_FORMAT: Final = 5
"""Version of the record format. It is raised when older records become unusable, or their names or numbers wrong."""

Record = dict[str, Any]


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that affect its results.

    Attributes:
        iso: Whether results stay on the 1 mm grid instead of the grid of the input image.
        step1: Whether to stop after step 1.
        keep: Output folders to write.
        method: Method that names the levels.
        pins: Levels that a reader has pinned (for a single scan).
    """

    iso: bool = False
    step1: bool = False
    keep: tuple[str, ...] = FOLDERS
    method: Method = "chain"
    pins: tuple[Pin, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the options for the record of a scan, which is processed again if they change."""
        return {
            "iso": self.iso,
            "step1": self.step1,
            "keep": list(self.keep),
            "method": self.method,
            "pins": [[pin.code, *pin.point_mm] for pin in self.pins],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunOptions":
        """Return the options from the values of ``as_json``."""
        pins = tuple(Pin(code, (x, y, z)) for code, x, y, z in content["pins"])
        return cls(content["iso"], content["step1"], tuple(content["keep"]), content["method"], pins)


class Networks(Protocol):
    """Holds the loaded predictor of each step."""

    def get(self, step: Literal[1, 2]) -> Predictor:
        """Return the predictor.

        Raises:
            WeightsError: There are no usable weights.
        """


@dataclass(frozen=True)
class Loaded:
    """A scan with its localizer, as read from disk.

    Attributes:
        image: The scan.
        scan: The scan, ready for the networks.
        localizer: Codes of the localizer on the grid of ``scan.iso``; None if there is none.
        watch: Seconds so far.
    """

    image: Image
    scan: pipeline.Scan
    localizer: Volume | None
    watch: Stopwatch


@dataclass(frozen=True)
class Answers:
    """The answers of the networks for a scan.

    Attributes:
        loaded: The scan.
        options: Options for naming the levels.
        located: Result of step 1.
        step2: Input of step 2 with the answer of its network; None if there is none.
        failure: Why there is none although it was requested; None if there is no failure.
    """

    loaded: Loaded
    options: Options
    located: pipeline.Located
    step2: tuple[pipeline.Step2Input, Prediction] | None = None
    failure: TotalSpineSegError | None = None


@dataclass(frozen=True)
class Found:
    """Named results of a scan.

    Attributes:
        result: Arrays.
        numbering: Levels and their certainty from the chain model; None with the iterative method.
        watch: Seconds so far.
        failure: Why there is no result of step 2 although it was requested; None if there is no failure.
        apart: Whether the localizer does not overlap the scan, so that it is of no use.
    """

    result: Result
    numbering: Numbering | None
    watch: Stopwatch
    failure: TotalSpineSegError | None = None
    apart: bool = False


class Work:
    """The work of a run on one scan; the same on every machine.

    Args:
        output: OUTPUT.
        options: Options of the run.
        versions: Step -> version of the weights in use, which is part of every record.
    """

    def __init__(self, output: Path, options: RunOptions, versions: dict[str, str]) -> None:
        self.output, self.options, self.versions = output, options, versions

    def make_room(self) -> None:
        """Create the folders, and delete incomplete files of a killed run.

        Raises:
            StorageError: The output folder cannot be written.
        """
        make_folders(self.output, self.options.keep)
        for folder in (*self.options.keep, REPORTS, "."):
            remove_leftovers(self.output / folder, STALE_PARTIAL_S)

    def require_apart(self, cases: Sequence[Case]) -> None:
        """Check that no scan and no localizer is a file that the run would delete or write.

        Raises:
            StorageError: One of them is such a file; nothing was changed.
        """
        folders = {real_path(self.output / folder) for folder in (*FOLDERS, REPORTS)}
        results = {real_path(self.output / file) for case in cases for file in _every_file(case)}
        for case in cases:
            if real_path(case.path.parent) in folders or real_path(case.path).parent in folders:
                raise StorageError(cohort_messages.SCAN_IN_OUTPUT.format(scan=str(case.path)))
            if case.localizer is not None and real_path(case.localizer) in results:
                raise StorageError(cohort_messages.LOCALIZER_IN_OUTPUT.format(localizer=str(case.localizer)))

    def damaged_record(self, case: Case) -> str:
        """Set the record of a scan aside if it cannot be read, and return a sentence about it; empty for none.

        Raises:
            StorageError: It cannot be renamed.
        """
        aside = set_damaged_aside(self.output, case.name)
        return "" if aside is None else cohort_messages.DAMAGED_RECORD.format(file=str(aside))

    def of_another(self, case: Case) -> str:
        """Return why the results under a scan's name are not its own: they belong to another file with that name.

        Returns:
            One sentence; empty if there are no results, or if they belong to this scan, even if it was moved or
            replaced.
        """
        record = read_record(self.output, case.name) or {}
        source = record.get("source", "")
        try:
            before = record["made_with"]["input"][1]
        except (KeyError, IndexError, TypeError):
            return ""
        if source in ("", _source(case)) or same_content(before, fingerprint(case.path)):
            return ""
        return cohort_messages.OTHER_RESULTS.format(name=case.name, source=source)

    def finished(self, case: Case) -> Record | None:
        """Return the record of a finished scan; None if the scan must be processed (again)."""
        record = read_record(self.output, case.name)
        if record is None or record.get("made_with") != self._identity(case):
            return None
        files: list[str] = record.get("files", [])
        return record if all((self.output / file).is_file() for file in files) else None

    def read(self, case: Case) -> Loaded:
        """Read a scan and its localizer and resample them, after deleting the scan's results of an earlier run.

        Whatever fails from here on, an old result cannot be mistaken for one of this run. Files that this run does not
        write stay if they were made from the same image in the same way.

        Raises:
            ImageError: One of them cannot be read, or its header gives an impossible field of view.
            StorageError: The old results cannot be removed.
        """
        if not case.path.exists():
            # Keep the results of a scan that cannot be reached at the moment.
            raise ImageError(cohort_messages.SCAN_GONE.format(scan=case.path.name))
        self._forget(case)
        watch = Stopwatch()
        with watch("read"):
            image = read_image(case.path)
            localizer = None if case.localizer is None else read_codes(case.localizer)
        scan = pipeline.prepare(image, warnings=image.warnings, clock=watch)
        if localizer is not None:
            localizer = Volume(labels_on_grid(localizer, scan.iso.grid), scan.iso.affine)
        return Loaded(image, scan, localizer, watch)

    def compute(self, case: Case, loaded: Loaded, networks: Networks) -> Answers:
        """Run the networks on a scan; if step 2 fails, the result of step 1 remains.

        What does not decide about the networks' input is left to ``write``, during which they work on the next scan.

        Args:
            case: The scan.
            loaded: From ``read``.
            networks: The loaded networks.

        Raises:
            NoSpineError: Step 1 found no disc or no canal.
        """
        watch = loaded.watch
        options = Options(method=self.options.method, localizer=loaded.localizer, pins=self.options.pins)
        located = pipeline.locate(loaded.scan, networks.get(1), options, clock=watch)
        if self.options.step1:
            return Answers(loaded, options, located)
        try:
            step2, predictor = pipeline.input_after(located, options, clock=watch), networks.get(2)
            with watch("step 2 network"):
                prediction = predictor.predict(step2.channels)
        except TotalSpineSegError as error:
            return Answers(loaded, options, located, failure=error)
        return Answers(loaded, options, located, (step2, prediction))

    def write(self, case: Case, answers: Answers) -> Record:
        """Name the levels, and write all files of a scan, its record last.

        Args:
            case: The scan.
            answers: From ``compute``. Not modified.

        Raises:
            StorageError: A file could not be written.
            TotalSpineSegError: Step 2 failed; the result of step 1 is written, but the scan is not finished.
        """
        found = _named(answers)
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
            rows = [] if result.segmentation is None else _measured(result, found.numbering)
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
        write_json(record_path(self.output, case.name), record, allow_nan=False)
        return record

    def _forget(self, case: Case) -> None:
        before = (read_record(self.output, case.name) or {}).get("made_with")
        remove_record(self.output, case.name)
        keep, step1 = (self.options.keep, self.options.step1) if self._found_alike(case, before) else (FOLDERS, False)
        files = result_files(case.name, keep=keep, step1=step1)
        for file in (*files, *interchange_files(case)):
            with storage_errors(self.output / file):
                (self.output / file).unlink(missing_ok=True)

    def _found_alike(self, case: Case, before: Record | None) -> bool:
        """Return whether earlier files of a scan were made from the same image by the same method and weights."""
        now = self._identity(case)
        if before is None or before.get("format") != RECORD_FORMAT:
            return False
        for made_with in (before, now):
            made_with["options"] = {k: v for k, v in made_with["options"].items() if k not in WHAT_IS_WRITTEN}
            made_with["models"] = {step: made_with["models"].get(step) for step in self.versions}
        return before == now

    def _identity(self, case: Case) -> dict[str, Any]:
        """Return the values that must match those of a finished scan for it to be skipped."""
        return {
            "format": RECORD_FORMAT,
            "input": [case.path.name, fingerprint(case.path)],
            "localizer": None if case.localizer is None else [case.localizer.name, fingerprint(case.localizer)],
            "options": self.options.as_json(),
            "models": self.versions,
        }


def _named(answers: Answers) -> Found:
    """Return the named results of a scan."""
    loaded, located, failure = answers.loaded, answers.located, answers.failure
    segmentation, numbering = None, located.numbering
    if answers.step2 is not None:
        try:
            segmentation = pipeline.segmented(*answers.step2, answers.options, clock=loaded.watch)
            numbering = segmentation.numbering
        except TotalSpineSegError as error:
            failure = error
    doubtful = doubtful_codes(numbering, located.labels if segmentation is None else segmentation.labels)
    integers = loaded.image.data.dtype.kind in "iub"
    apart = loaded.localizer is not None and not loaded.localizer.data.any()
    result = Result(located, segmentation, doubtful, integers, loaded.image)
    return Found(result, numbering, loaded.watch, failure, apart)


def _measured(result: Result, numbering: Numbering | None) -> list[Row]:
    scan = result.located.scan
    return structure_rows(
        Volume(result.labels, scan.iso.affine),
        scan.grid,
        image=None if result.image is None else (result.image, result.labels_on_input),
        doubtful=result.doubtful,
        certainty=None if numbering is None else numbering.certainty,
        sizes=not scan.iso.grid.is_skewed,
    )


def _source(case: Case) -> str:
    return str(case.path.absolute())


def _every_file(case: Case) -> tuple[str, ...]:
    """Return all files that any run may write for a scan, relative to the output, except its record."""
    return (*result_files(case.name, keep=FOLDERS, step1=False), *interchange_files(case))


def _warnings(case: Case, found: Found) -> list[str]:
    warnings = list[str]()
    if case.no_localizer:
        warnings.append(case.no_localizer)
    if found.apart:
        warnings.append(cohort_messages.LOCALIZER_APART)
    return warnings
