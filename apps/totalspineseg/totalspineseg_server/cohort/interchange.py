"""Write the results of a run for other programs: BIDS derivatives, and DICOM SEG objects for DICOM series."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.bids import DESCRIPTION_FILE, IMAGE_NAME, PIPELINE, PREDICTED, description, label_path
from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.outputs import ENDING
from totalspineseg_server.cohort.record import record_path
from totalspineseg_server.color_tables import BIDS_TABLE, bids_table
from totalspineseg_server.errors import StorageError, TotalSpineSegError
from totalspineseg_server.files import copy_file, storage_errors, write_file, write_json, write_text
from totalspineseg_server.io.volumes import is_image_name, read_labels
from totalspineseg_server.trust import certainty_of, is_doubtful

if TYPE_CHECKING:
    from pydicom import Dataset

LABELS: Final = "step2_output"
"""The folder of the label maps to write."""
SEG, SR = "seg", "sr"
"""Folders of the DICOM SEG objects, and of the structured reports on them."""
DERIVATIVES: Final = f"derivatives/{PIPELINE}"
"""Folder of the BIDS derivatives."""
Records = Mapping[str, Mapping[str, Any]]
"""Name -> record of the finished scans of a run."""


def write_bids(output: Path, cases: Sequence[Case], records: Records, *, iso: bool) -> int:
    """Write the label maps of a run as BIDS derivatives; those that are up to date stay as they are.

    Args:
        output: OUTPUT.
        cases: The scans of the run.
        records: Name -> record of its finished scans.
        iso: Whether the label maps have voxels of 1 mm instead of those of the image.

    Returns:
        The number of label maps.

    Raises:
        StorageError: A file could not be written.
    """
    root = output / DERIVATIVES
    count = 0
    for case, record in _finished(cases, records):
        stem = root / label_path(case.name, PREDICTED, iso=iso)
        image, sidecar = stem.with_name(f"{stem.name}{ENDING}"), stem.with_name(f"{stem.name}.json")
        count += 1
        if _is_newer(sidecar, record_path(output, case.name)):
            continue
        with storage_errors(stem):
            stem.parent.mkdir(parents=True, exist_ok=True)
        copy_file(output / LABELS / f"{case.name}{ENDING}", image)
        write_json(sidecar, _sidecar(case, record, iso=iso), allow_nan=False)
    if count:
        links = {"DatasetLinks": {"raw": "../.."}}
        write_json(root / DESCRIPTION_FILE, description("TotalSpineSeg label maps", "derivative", **links))
        write_text(root / BIDS_TABLE, bids_table())
        write_text(root / "README.md", README)
    return count


README: Final = f"""# Label maps of TotalSpineSeg

Vertebrae, intervertebral discs, sacrum, spinal canal and spinal cord, as a network segmented and named them. The
numbers are explained in `dseg.tsv`. `NamesCertainty` in the file beside each map says whether the names of the levels
are certain, counted or doubtful. {cohort_messages.CORD_CAVEAT}
"""


def write_segs(
    output: Path, cases: Sequence[Case], records: Records, *, reports: bool = False
) -> tuple[int, dict[str, str]]:
    """Write the label maps of DICOM series as DICOM SEG objects; those that are up to date stay as they are.

    Args:
        output: OUTPUT; its label maps are on the grids of the series.
        cases: The scans of the run.
        records: Name -> record of its finished scans.
        reports: Whether to write the measurements as well, as structured reports on these objects.

    Returns:
        The number of label maps, and name -> sentence of the series for which none could be made.

    Raises:
        StorageError: A file could not be written.
    """
    # Import here, because importing pydicom takes long.
    import pydicom

    from totalspineseg_server.io.dicom.sr_writer import write_sr

    count, failures = 0, {}
    for case, record in _finished(cases, records):
        target = output / seg_file(case)
        if not is_dicom_case(case):
            continue
        count += 1
        try:
            if not _is_newer(target, record_path(output, case.name)):
                _write_object(target, _seg(output, case, record))
            if reports and not _is_newer(output / sr_file(case), target):
                seg = pydicom.dcmread(target)
                _write_object(output / sr_file(case), write_sr(seg, case.path, record["measurements"]))
        except StorageError:
            raise
        except (TotalSpineSegError, ValueError) as error:
            failures[case.name] = cohort_messages.NO_SEG.format(error=error)
            count -= 1
    return count, failures


def _seg(output: Path, case: Case, record: Mapping[str, Any]) -> "Dataset":
    from totalspineseg_server.io.dicom.seg_writer import write_result

    labels = read_labels(output / LABELS / f"{case.name}{ENDING}")
    marked = [CODE_OF[row["level"]] for row in record["measurements"] if _is_doubtful_level(row)]
    return write_result(labels, case.path, record["made_with"]["models"], doubtful=is_doubtful(record), marked=marked)


def _is_doubtful_level(row: Mapping[str, Any]) -> bool:
    """Return whether a row of measurements is about a level with a doubtful name, not about the whole column."""
    return row.get("names") == "doubtful" and row["level"] in CODE_OF


def _write_object(target: Path, dataset: "Dataset") -> None:
    from totalspineseg_server.io.dicom.seg_writer import seg_bytes

    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, lambda file: file.write_bytes(seg_bytes(dataset)))


def is_dicom_case(case: Case) -> bool:
    """Return whether a scan is a DICOM series."""
    return case.path.is_dir() or not is_image_name(case.path)


def seg_file(case: Case) -> str:
    """Return the path of a scan's DICOM SEG object, relative to OUTPUT."""
    return f"{SEG}/{case.name}.dcm"


def sr_file(case: Case) -> str:
    """Return the path of the structured report on a scan's measurements, relative to OUTPUT."""
    return f"{SR}/{case.name}.dcm"


def interchange_files(case: Case) -> tuple[str, ...]:
    """Return the files that ``write_bids`` and ``write_segs`` may have written for a scan, relative to OUTPUT."""
    stems = [f"{DERIVATIVES}/{label_path(case.name, PREDICTED, iso=iso)}" for iso in (False, True)]
    return (seg_file(case), sr_file(case), *(f"{stem}{ending}" for stem in stems for ending in (ENDING, ".json")))


def _finished(cases: Sequence[Case], records: Records) -> Iterator[tuple[Case, Mapping[str, Any]]]:
    """Yield the scans whose result is complete, each with its record."""
    for case in cases:
        record = records.get(case.name)
        if record is not None and f"{LABELS}/{case.name}{ENDING}" in record["files"]:
            yield case, record


def _sidecar(case: Case, record: Mapping[str, Any], *, iso: bool) -> dict[str, Any]:
    """Return the facts about a label map, without names of folders."""
    match = IMAGE_NAME.fullmatch(case.name)
    known: dict[str, Any] = {"Description": cohort_messages.ABOUT_MAP.format(caveat=cohort_messages.CORD_CAVEAT)}
    if match is not None and case.path.is_file():
        known["Sources"] = [f"bids:raw:{(case.folder / case.path.name).as_posix()}"]
    if iso:
        known["Resolution"] = "Voxels of 1 mm, in the orientation nearest to RAS"
    return known | {
        "NamesCertainty": certainty_of(record),
        "LevelsInView": record["in_view"],
        "ModelVersions": dict(record["made_with"]["models"]),
        "Warnings": [*record["warnings"], *(finding["message"] for finding in record["findings"])],
    }


def _is_newer(file: Path, than: Path) -> bool:
    """Return whether a file was written after another one."""
    return file.is_file() and file.stat().st_mtime_ns >= than.stat().st_mtime_ns
