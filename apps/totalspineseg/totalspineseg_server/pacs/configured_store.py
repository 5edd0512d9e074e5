"""Use the configured PACS as the app's datastore, and store finished labels in it as DICOM SEG."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.ids import PACS_DIR
from totalspineseg_server.corrections.label_files import UNCONFIRMED
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.dicom.seg_writer import write_seg
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.pacs.address import configured_client, configured_filter
from totalspineseg_server.pacs.cache import MAX_GB
from totalspineseg_server.pacs.pacs_datastore import PacsDatastore
from totalspineseg_server.segments import from_wire

NO_MODEL: Final = "none"
"""Model name of a label that was drawn without a model."""


def pacs_datastore(
    root: Path,
    *,
    is_needed: Callable[[str], bool] = lambda series: False,
    cache_gb: float = MAX_GB,
    corrections: CorrectionStore | None = None,
) -> PacsDatastore:
    """Return the datastore of the configured PACS.

    Args:
        root: Folder of the history of these studies.
        is_needed: Whether a fetched series must stay, however much disk space it takes.
        cache_gb: Disk space for all fetched series, GB.
        corrections: The corrections that clients are shown.
    """
    client = configured_client()

    def publish(series: str, file: Path, info: Mapping[str, Any]) -> None:
        """Store a finished label of a client that does not use DICOM."""
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
            marked=[CODE_OF[name] for name in info.get(UNCONFIRMED) or ()],
        )
        client.store_instances([seg])

    store = PacsDatastore(
        client,
        root / PACS_DIR,
        configured_filter(),
        publisher=publish,
        is_needed=is_needed,
        cache_gb=cache_gb,
        corrections=corrections,
    )
    return store
