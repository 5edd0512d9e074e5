"""The configured PACS as the app's datastore, with finished labels put back as DICOM SEG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from monailabel.config import settings

from lib.corrections.history import PACS_DIR
from lib.corrections.wire import from_wire
from lib.dicom.seg_writer import write_seg
from lib.geometry import Volume
from lib.pacs.configured import configured_client, configured_filter
from lib.pacs.datastore import PacsDatastore
from lib.volume_io import read_labels

NO_MODEL: Final = "none"
"""Stands where a label was drawn without a model."""


def pacs_datastore(root: Path) -> PacsDatastore:
    """The datastore of the configured PACS.

    Args:
        root: Folder of the history of these studies.
    """
    client = configured_client()

    def publish(series: str, file: Path, info: Mapping[str, Any]) -> None:
        """A finished label of a client that does not speak DICOM."""
        wire = read_labels(file)
        labels = Volume(from_wire(wire.data), wire.affine)
        folder = store.series_folder(series)
        prediction = info.get("prediction") or {}
        seg = write_seg(
            labels,
            folder,
            model=str(prediction.get("model", NO_MODEL)),
            version=", ".join(sorted(set(dict(prediction.get("versions", {})).values()))) or NO_MODEL,
            corrected_by=str(info.get("user", "")),
        )
        client.store_instances([seg])

    store = PacsDatastore(
        client,
        root / PACS_DIR,
        configured_filter(),
        publisher=publish,
        read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
    )
    return store
