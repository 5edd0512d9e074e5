"""Write results of models as DICOM SEG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.anatomy import CODE_OF, NAME_OF, SACRUM
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.dicom.seg_writer import seg_bytes, write_result
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.pacs import pacs_messages
from totalspineseg_server.segments import VERTEBRAE_NAME, from_wire
from totalspineseg_server.trust import is_doubtful

STEP1_NAMES: Final = {**NAME_OF, SACRUM: VERTEBRAE_NAME}
"""Names of the segments of step 1."""


def result_segmentation(file: Path, series: Path, report: Mapping[str, Any]) -> bytes:
    """Return a model's result as the content of a DICOM file.

    Args:
        file: Label map in wire ids, on the grid of the series.
        series: Folder with the DICOM files of the series.
        report: The report in the reply: labels, weights, and whether the levels are certain.

    Raises:
        LabelError: The model marks places to check, which are not structures.
        EmptySegmentationError: The label map is empty.
        GridError: The result has another grid, such as the 1 mm grid.
    """
    published = report["label_names"]
    step1 = VERTEBRAE_NAME in published
    if not step1 and NAME_OF[SACRUM] not in published:
        raise LabelError(pacs_messages.NO_SEG_OF_MARKS)
    wire = read_labels(file)
    return seg_bytes(
        write_result(
            Volume(from_wire(wire.data), wire.affine),
            series,
            report["models"],
            doubtful=is_doubtful(report.get("numbering")),
            names=STEP1_NAMES if step1 else NAME_OF,
            marked=[CODE_OF[name] for name in report.get("marked", ())],
        )
    )
