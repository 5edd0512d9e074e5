"""Results of models as DICOM SEG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lib.anatomy import NAME_OF, SACRUM
from lib.certainty import is_doubtful
from lib.corrections.wire import VERTEBRAE_NAME, from_wire
from lib.dicom.seg_writer import DESCRIPTION, seg_bytes, write_seg
from lib.errors import LabelError
from lib.geometry import Volume
from lib.volume_io import read_labels

STEP1_NAMES: Final = {**NAME_OF, SACRUM: VERTEBRAE_NAME}
"""What step 1 calls its segments."""
DOUBTFUL: Final = f"{DESCRIPTION}, levels DOUBTFUL"
"""How a PACS lists a result that guesses its levels: of the report nothing else stays with the object."""


def result_segmentation(file: Path, series: Path, report: Mapping[str, Any]) -> bytes:
    """A model's result as the content of a DICOM file.

    Args:
        file: Label map in wire ids, on the grid of the series.
        series: The DICOM files of the series.
        report: The reply's report: which labels, which weights, whether the levels are certain.

    Raises:
        LabelError: The model marks places to look at, which are no structures.
        EmptySegmentationError: Nothing is marked.
        GridError: The result lies on another grid, such as the 1 mm grid.
    """
    published = report["label_names"]
    step1 = VERTEBRAE_NAME in published
    if not step1 and NAME_OF[SACRUM] not in published:
        raise LabelError("a model of structures is required for DICOM SEG, got one of marks; ask for the image")
    wire = read_labels(file)
    versions = report["models"]
    return seg_bytes(
        write_seg(
            Volume(from_wire(wire.data), wire.affine),
            series,
            model=", ".join(f"{step} {version}" for step, version in sorted(versions.items())),
            version=", ".join(sorted(set(versions.values()))),
            names=STEP1_NAMES if step1 else NAME_OF,
            description=DOUBTFUL if is_doubtful(report.get("numbering")) else DESCRIPTION,
        )
    )
