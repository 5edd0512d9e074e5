"""Download a series of the PACS as files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomweb_client import DICOMwebClient
from pydicom import Dataset

from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import partial_folder, storage_errors
from totalspineseg_server.pacs.found_series import Series


@contextmanager
def downloaded(client: DICOMwebClient, series: Series, below: Path) -> Iterator[Path]:
    """Write all instances of a series to a new folder with a temporary name.

    The caller may rename the folder to keep it; otherwise it is removed in the end, whatever happens.

    Args:
        client: The PACS.
        series: The series.
        below: Folder in which the new one is made; it is also made if it is missing.

    Yields:
        The new folder with all instances.

    Raises:
        requests.RequestException: The PACS did not send the series.
        ImageError: An instance of the series is not a DICOM file.
        StorageError: The series could not be written.
    """
    instances = sorted(
        client.retrieve_series(series.study, series.uid), key=lambda instance: str(instance.get("SOPInstanceUID"))
    )
    with partial_folder(below) as partial:
        with storage_errors(below):
            for number, instance in enumerate(instances):
                _write(instance, partial / f"{number:05d}.dcm")
        yield partial


def _write(instance: Dataset, path: Path) -> None:
    """Write one instance; pydicom raises errors of many types if it lacks what every file needs."""
    try:
        instance.save_as(path, write_like_original=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(
            f"The PACS sent an image of the series that is not a complete DICOM file ({type(error).__name__}). "
            "Send the series to the PACS again."
        ) from error
