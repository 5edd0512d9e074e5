"""A run: every scan of a folder through the warm networks, its files, its record."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from lib import pipeline
from lib.cohort.inputs import Case, stamp
from lib.cohort.levels import doubtful_codes, levels_in_view, structures_json
from lib.cohort.options import RunOptions
from lib.cohort.outputs import REPORTS, Result, make_folders, write_result
from lib.cohort.overlap import Done, overlapped
from lib.cohort.progress import Progress
from lib.cohort.record import read_record, record_path, remove_record, write_json
from lib.cohort.stopwatch import Stopwatch
from lib.geometry import Volume
from lib.measurements import measure
from lib.numbering.chain import Numbering
from lib.numbering.lint import lint
from lib.numbering.report import report
from lib.pipeline import Options
from lib.prediction import Predictor
from lib.volume_io import read_image, read_labels

STALE_PARTIAL_S: Final = 3600
"""A temporary file older than this was left by a run that was killed."""
RECORD_FORMAT: Final = 1
"""Rises when records change in a way that makes older ones unusable."""


class Networks(Protocol):
    """Gives the warm predictor of a step."""

    def get(self, step: Literal[1, 2]) -> Predictor:
        """The predictor.

        Raises:
            WeightsError: There are no usable weights.
        """


@dataclass
class _Loaded:
    """A scan as read."""

    image: Volume
    localizer: Volume | None
    watch: Stopwatch


@dataclass
class _Found:
    """What the networks found."""

    result: Result
    numbering: Numbering | None
    watch: Stopwatch


@dataclass(frozen=True)
class Summary:
    """How a run went.

    Attributes:
        records: Name -> record of every finished scan of this run's inputs, skipped ones included.
        skipped: Names that were finished before.
        failures: Name -> sentence.
        seconds: Wall time.
        interrupted: The run was stopped by the user.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False


class Run:
    """One run.

    Args:
        output: OUTPUT; created.
        options: What to do.
        networks: Where the predictors come from.
        versions: Step -> version of the weights in use, part of every record.
    """

    def __init__(self, output: Path, options: RunOptions, networks: Networks, versions: dict[str, str]) -> None:
        self._output, self._options, self._networks, self._versions = output, options, networks, versions

    def __call__(
        self, cases: Sequence[Case], *, workers: int, overwrite: bool = False, progress: Progress | None = None
    ) -> Summary:
        """Segment the scans that are not finished yet.

        Args:
            cases: From ``find_cases`` and ``pair_localizers``.
            workers: Threads for reading and as many for writing.
            overwrite: Do finished scans again.
            progress: Told of every scan.

        Returns:
            How it went; an interrupt (Ctrl-C) ends the run early with what is done.

        Raises:
            StorageError: The output folder cannot be written.
        """
        start = time.monotonic()
        make_folders(self._output, self._options.keep)
        _remove_stale(self._output, (*self._options.keep, REPORTS, "."))
        known = {} if overwrite else {c.name: r for c in cases if (r := self._finished(c)) is not None}
        todo = [case for case in cases if case.name not in known]
        records, failures, interrupted = dict(known), dict[str, str](), False
        for name in known:
            if progress is not None:
                progress.advance(f"{name} (finished before)")
        stages = overlapped(todo, self._read, self._compute, self._write, workers=workers)
        try:
            for done in stages:
                self._note(done, records, failures)
                if progress is not None:
                    progress.advance(done.item.name, done.failure)
        except KeyboardInterrupt:
            interrupted = True
            stages.close()  # type: ignore[attr-defined]
            # What was being written meanwhile is finished as well.
            records |= {c.name: r for c in todo if c.name not in records and (r := self._finished(c)) is not None}
        return Summary(records, tuple(known), failures, time.monotonic() - start, interrupted)

    @staticmethod
    def _note(done: Done[Case, dict[str, Any]], records: dict[str, dict[str, Any]], failures: dict[str, str]) -> None:
        if done.written is None:
            failures[done.item.name] = done.failure or "unknown"
        else:
            records[done.item.name] = done.written

    def _identity(self, case: Case) -> dict[str, Any]:
        """What a finished scan must agree in to be skipped."""
        return {
            "format": RECORD_FORMAT,
            "input": [case.path.name, stamp(case.path)],
            "localizer": None if case.localizer is None else [case.localizer.name, stamp(case.localizer)],
            "options": self._options.as_json(),
            "models": self._versions,
        }

    def _finished(self, case: Case) -> dict[str, Any] | None:
        record = read_record(self._output, case.name)
        if record is None or record.get("made_with") != self._identity(case):
            return None
        files: list[str] = record.get("files", [])
        return record if all((self._output / file).is_file() for file in files) else None

    def _read(self, case: Case) -> _Loaded:
        watch = Stopwatch()
        with watch("read"):
            image = read_image(case.path)
            localizer = None if case.localizer is None else read_labels(case.localizer)
        return _Loaded(image, localizer, watch)

    def _compute(self, case: Case, loaded: _Loaded) -> _Found:
        watch = loaded.watch
        options = Options(method=self._options.method, localizer=loaded.localizer, pins=self._options.pins)
        scan = pipeline.prepare(loaded.image, clock=watch)
        located = pipeline.locate(scan, self._networks.get(1), options, clock=watch)
        segmentation, numbering = None, located.numbering
        if not self._options.step1:
            step2 = pipeline.step2_input(scan, located.labels, clock=watch)
            segmentation = pipeline.segment(step2, self._networks.get(2), options, clock=watch)
            numbering = segmentation.numbering
        integers = loaded.image.data.dtype.kind in "iub"
        return _Found(Result(located, segmentation, doubtful_codes(numbering), integers), numbering, watch)

    def _write(self, case: Case, found: _Found) -> dict[str, Any]:
        watch, options, result = found.watch, self._options, found.result
        with watch("write"):
            remove_record(self._output, case.name)
            files = write_result(self._output, case.name, result, iso=options.iso, keep=options.keep)
        with watch("measure"):
            spacing = result.located.scan.iso.spacing
            structures = structures_json(result.labels, spacing)
            rows = measure(result.labels, spacing, doubtful=result.doubtful) if result.segmentation else []
        record = {
            "scan": case.name,
            **report(found.numbering, lint(result.labels, spacing)),
            "in_view": levels_in_view(structures),
            "structures": structures,
            "warnings": _warnings(case, found.numbering),
            "measurements": rows,
            "files": files,
            "seconds": watch.as_json(),
            "made_with": self._identity(case),
        }
        write_json(record_path(self._output, case.name), record)
        return record


def _warnings(case: Case, numbering: Numbering | None) -> list[str]:
    warnings = []
    if numbering is not None and not numbering.confident:
        warnings.append(f"the numbering is not certain (probability {numbering.probability:.2f})")
    if case.localizer_missing:
        warnings.append("no localizer was found for this scan")
    return warnings


def _remove_stale(output: Path, folders: Collection[str]) -> None:
    """Delete temporary files that a killed run left behind."""
    limit = time.time() - STALE_PARTIAL_S
    for folder in folders:
        for path in (output / folder).glob(".partial-*"):
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
