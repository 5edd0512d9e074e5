"""Download a series of the PACS as files."""

import shutil
import tempfile
from pathlib import Path

from dicomweb_client import DICOMwebClient

from lib.errors import StorageError
from lib.leftovers import PARTIAL_PREFIX, remove_leftovers
from lib.pacs.series import Series


def download(client: DICOMwebClient, series: Series, below: Path) -> Path:
    """Write all instances of a series to a new folder.

    Args:
        client: The PACS.
        series: Series to download.
        below: Parent of the new folder; made when missing.

    Returns:
        The complete new folder with a temporary name; the caller renames or removes it.

    Raises:
        requests.RequestException: The PACS did not return the series.
        StorageError: The files could not be written; nothing is left.
    """
    instances = sorted(
        client.retrieve_series(series.study, series.uid), key=lambda instance: str(instance.SOPInstanceUID)
    )
    partial: Path | None = None
    try:
        below.mkdir(parents=True, exist_ok=True)
        remove_leftovers(below)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=below))
        for number, instance in enumerate(instances):
            instance.save_as(partial / f"{number:05d}.dcm", write_like_original=False)
        partial.chmod(0o755)
    except OSError as error:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"Cannot write to {below} ({error.strerror or error}). Free disk space, or correct the permissions."
        ) from error
    return partial
