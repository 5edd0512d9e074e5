"""Write measurements as a DICOM structured report (TID 1500) that refers to the segments of a DICOM SEG."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import highdicom as hd
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from totalspineseg_server.io.dicom.headers import Sources, read_headers, uid_from
from totalspineseg_server.io.dicom.seg_writer import ALGORITHM, MANUFACTURER, MAX_LO, SERIES_NUMBER
from totalspineseg_server.io.dicom.terms import SCHEME, term_of
from totalspineseg_server.version import VERSION

OWN_SCHEME: Final = "99TOTALSPINESEG"
"""Designator of our own codes, for measurements that have none in SNOMED CT and DICOM; each code's meaning says what it
is.
"""
MM: Final = Code("mm", "UCUM", "millimeter")
MM2: Final = Code("mm2", "UCUM", "square millimeter")
DEGREES: Final = Code("deg", "UCUM", "degree")
NO_UNIT: Final = Code("1", "UCUM", "no units")
QUANTITIES: Final[Mapping[str, tuple[Code, Code]]] = {
    "volume_ml": (Code("118565006", SCHEME, "Volume"), Code("ml", "UCUM", "milliliter")),
    "intensity_mean": (Code("intensity", OWN_SCHEME, "Mean intensity of the image"), NO_UNIT),
    "disc_height_mm": (Code("disc_height", OWN_SCHEME, "Mean height of the disc"), MM),
    "body_anterior_mm": (Code("body_anterior", OWN_SCHEME, "Anterior height of the vertebral body"), MM),
    "body_middle_mm": (Code("body_middle", OWN_SCHEME, "Middle height of the vertebral body"), MM),
    "body_posterior_mm": (Code("body_posterior", OWN_SCHEME, "Posterior height of the vertebral body"), MM),
    "wedge_deg": (Code("wedge", OWN_SCHEME, "Wedge angle of the vertebral body"), DEGREES),
    "canal_ap_mm": (Code("canal_ap", OWN_SCHEME, "Sagittal diameter of the spinal canal"), MM),
    "canal_area_mm2": (Code("canal_area", OWN_SCHEME, "Area of the spinal canal"), MM2),
}
"""Column of a measurement -> its name and unit."""
MAY_LACK: Final = (
    *("PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    "ReferringPhysicianName",
)
"""Attributes of patient and study that stay empty if the series lacks them."""
REPORTED: Final = Code("363679005", SCHEME, "Imaging procedure")
CERTAINTY: Final = Code("names", OWN_SCHEME, "Certainty of the name of the level")


def write_sr(seg: Dataset, sources: Sources, rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Return measurements as a structured report of the study.

    Args:
        seg: The DICOM SEG of the structures, made from the same series. Not modified.
        sources: The series, as for ``write_seg``.
        rows: Measurements of structures (see ``measurements.COLUMNS``); those without a segment are left out. Angles of
            the whole column belong to no segment and are left out as well.

    Returns:
        The object (Comprehensive 3D SR), in a new series, complete and not verified.

    Raises:
        ImageError: The series cannot be read.
    """
    headers = read_headers(sources)
    numbers = {str(segment.TrackingID): int(segment.SegmentNumber) for segment in seg.SegmentSequence}
    groups = [_group(seg, numbers, row) for row in rows if row["level"] in numbers]
    observer = hd.sr.ObserverContext(
        observer_type=Code("121007", "DCM", "Device"),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid_from("observer", MANUFACTURER, VERSION),
            name=ALGORITHM,
            manufacturer_name=MANUFACTURER,
            model_name=str(seg.ManufacturerModelName)[:MAX_LO],
        ),
    )
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=REPORTED,
        imaging_measurements=groups,
    )
    result = hd.sr.Comprehensive3DSR(
        evidence=[seg, *map(_with_names, headers)],
        content=report[0],
        series_instance_uid=generate_uid(prefix=None),
        series_number=SERIES_NUMBER + 1,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        manufacturer_model_name=str(seg.ManufacturerModelName)[:MAX_LO],
        software_versions=VERSION,
        device_serial_number="1",
    )
    result.SeriesDescription = f"Measurements of: {seg.SeriesDescription}"[:MAX_LO]
    result.SpecificCharacterSet = "ISO_IR 192"
    result.PatientName = str(headers[0].get("PatientName") or "")
    now = datetime.now()  # DICOM dates are local to where the object is made
    result.SeriesDate, result.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return result


def _group(
    seg: Dataset, numbers: Mapping[str, int], row: Mapping[str, Any]
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the measurements of one structure."""
    name = str(row["level"])
    term = term_of(name, tuple(numbers))
    site = Code(term.code, SCHEME, term.meaning)
    known = row.get("names")
    evaluations = [hd.sr.QualitativeEvaluation(CERTAINTY, Code(known, OWN_SCHEME, known.capitalize()))] if known else []
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid_from("segment", str(seg.StudyInstanceUID), name), identifier=name
        ),
        referenced_segment=hd.sr.ReferencedSegment.from_segmentation(seg, segment_number=numbers[name]),
        finding_type=site,
        finding_sites=[hd.sr.FindingSite(site)],
        measurements=list(_measurements(row)),
        qualitative_evaluations=evaluations,
    )


def _measurements(row: Mapping[str, Any]) -> Iterator[hd.sr.Measurement]:
    for column, (quantity, unit) in QUANTITIES.items():
        value = row.get(column)
        if value is not None:
            yield hd.sr.Measurement(name=quantity, value=value, unit=unit)


def _with_names(header: Dataset) -> Dataset:
    """Return a header as evidence, without the name of the patient, which highdicom would log."""
    evidence = Dataset()
    evidence.update(header)
    evidence.PatientName = None
    for keyword in MAY_LACK:
        if keyword not in evidence:
            setattr(evidence, keyword, None)
    return evidence
