"""Read and write the file beside a network's plans that says how far its classes are trusted."""

from pathlib import Path
from typing import Final

from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import load_json, write_json
from totalspineseg_server.places import COMMAND
from totalspineseg_server.trust import UNMEASURED, Trust, trust_from_json

TRUST_FILE: Final = "trust.json"


def read_trust(folder: Path) -> Trust:
    """Return how far a model's classes are trusted.

    Args:
        folder: Folder with plans.json.

    Returns:
        ``UNMEASURED`` if there is no such file.

    Raises:
        WeightsError: The file is damaged.
    """
    path = folder / TRUST_FILE
    if not path.exists():
        return UNMEASURED
    try:
        content = load_json(path, f"Run '{COMMAND} calibrate' again, or delete it.")
    except StorageError as error:
        raise WeightsError(str(error)) from error
    return trust_from_json(content, source=TRUST_FILE)


def write_trust(folder: Path, trust: Trust) -> None:
    """Write the file in one step; running servers use it from their next request on.

    Raises:
        StorageError: It cannot be written.
    """
    write_json(folder / TRUST_FILE, trust.as_json())
