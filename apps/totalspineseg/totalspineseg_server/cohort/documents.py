"""Write the documents of a whole run: ``run.json``, ``measurements.csv``, ``report.html``, and the color tables."""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.outputs import PREVIEW, REPORTS, SHEET
from totalspineseg_server.cohort.record import software_versions
from totalspineseg_server.cohort.run_page import ScanRow, report_html
from totalspineseg_server.cohort.running import Summary
from totalspineseg_server.color_tables import color_tables
from totalspineseg_server.files import storage_errors, write_json, write_text
from totalspineseg_server.measurements import COLUMNS, CORD_NOTE
from totalspineseg_server.numbering.report import sentence
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.releases import warning_of
from totalspineseg_server.trust import certainty_of, is_doubtful

RUN_FILE: Final = "run.json"
MEASUREMENTS_FILE: Final = "measurements.csv"
REPORT_FILE: Final = "report.html"
TABLES: Final = "label_tables"
"""Folder with the names and colors of the labels, for viewers."""


def write_documents(
    output: Path,
    cases: Sequence[Case],
    summary: Summary,
    *,
    versions: Mapping[str, str],
    weights: str,
    warning: str,
    asked: Mapping[str, Any],
) -> None:
    """Write the documents of a run, each atomically.

    Args:
        output: OUTPUT.
        cases: All scans of the run.
        summary: Results of the run.
        versions: Step -> version of the weights.
        weights: Sentences about the weights: which are in use, and from which release.
        warning: The result of ``weights_warning``.
        asked: The options as typed.

    Raises:
        StorageError: A file could not be written.
    """
    run = {**_run_json(cases, summary, versions, asked), "weights": weights}
    write_json(output / RUN_FILE, run, allow_nan=False)
    rows = [{"scan": name, **row} for name, record in sorted(summary.records.items()) for row in record["measurements"]]
    write_text(output / MEASUREMENTS_FILE, csv_of(rows))
    with storage_errors(output / TABLES):
        (output / TABLES).mkdir(exist_ok=True)
    for name, table in color_tables().items():
        write_text(output / TABLES / name, table)
    rows_html = [_row(output, case.name, summary) for case in cases]
    title = f"TotalSpineSeg: {output.resolve().name}"
    # The warning stands above the note.
    note = f"{weights.replace(warning, '').strip()} {CORD_NOTE[0].upper()}{CORD_NOTE[1:]}."
    html = report_html(rows_html, title=title, note=note, warning=warning)
    write_text(output / REPORT_FILE, html)


def weights_warning(store: ModelStore, summary: Summary, versions: Mapping[str, str]) -> str:
    """Return a warning if results of a run were made with weights that are not for patients; otherwise "".

    Args:
        store: Holds the weights.
        summary: Results of the run, including earlier ones.
        versions: Step -> version of the weights with which the run began.
    """
    records = summary.records.values()
    made_with = {version for record in records for version in record["made_with"]["models"].values()}
    return warning_of(store, made_with.union(versions.values()))


def _run_json(
    cases: Sequence[Case], summary: Summary, versions: Mapping[str, str], asked: Mapping[str, Any]
) -> dict[str, Any]:
    done = [name for name in summary.records if name not in summary.skipped]
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "interrupted": summary.interrupted,
        "seconds": round(summary.seconds, 1),
        "versions": software_versions(),
        "models": dict(versions),
        "options": dict(asked),
        "scans": len(cases),
        "done": sorted(done),
        "finished_before": sorted(summary.skipped),
        "failed": dict(sorted(summary.failures.items())),
        "not_started": sorted(
            c.name for c in cases if c.name not in summary.records and c.name not in summary.failures
        ),
    }


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return measurements as comma-separated text.

    Args:
        rows: The name of a scan as "scan", and ``COLUMNS``; None becomes an empty cell.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ("scan", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(output: Path, name: str, summary: Summary) -> ScanRow:
    record = summary.records.get(name)
    file = output / REPORTS / f"{name}{SHEET}"
    sheet = file.read_text(encoding="utf-8") if file.is_file() else ""
    if record is None:
        # A scan that failed in step 2 shows the picture of step 1.
        return ScanRow(
            name,
            failure=summary.failures.get(name, "not started"),
            sheet=sheet,
            picture=_full_picture(output, name),
        )
    models = record["made_with"]["models"]
    answer = sentence(record)
    return ScanRow(
        name,
        in_view=record["in_view"],
        certainty=certainty_of(record),
        probability=record["probability"],
        warnings=tuple(_warnings(record)),
        model="\n".join(f"{step}: {version}" for step, version in models.items()),
        seconds=sum(record["seconds"].values()),
        sheet=sheet,
        picture=_full_picture(output, name, record),
        answer=f"{answer[:1].upper()}{answer[1:]}",
    )


def _full_picture(output: Path, name: str, record: Mapping[str, Any] | None = None) -> str:
    """Return the address of the last step's picture with tags, relative to the page; "" if there is none.

    For a finished scan only pictures in its record count, because another run may have left more.
    """
    for kind in ("step2_output", "step1_output"):
        file = f"{PREVIEW}/{name}_{kind}_tags.jpg"
        if (output / file).is_file() and (record is None or file in record["files"]):
            return quote(file, errors="surrogateescape")
    return ""


def _warnings(record: Mapping[str, Any]) -> Iterator[str]:
    yield from record["warnings"]
    if is_doubtful(record):
        yield f"to make the names certain: {', or '.join(record['would_settle'])}"
    yield from (_finding(finding) for finding in record.get("findings", []))


def _finding(finding: Any) -> str:
    return str(finding.get("message", finding)) if isinstance(finding, dict) else str(finding)
