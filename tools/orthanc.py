"""Run a local Orthanc with DICOMweb, so that OHIF can be tried without a hospital's PACS."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import write_json
from totalspineseg_server.processes import stop, tied

PROGRAM_FOLDERS: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
"""Folders of programs; Debian installs Orthanc outside an ordinary user's PATH."""
PLUGINS: Final = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so"),
)
DICOMWEB_ROOT: Final = "/dicom-web/"
START_SECONDS: Final = 180
"""Longest time that a start may take; it takes a second on a quiet machine, and up to a minute on a busy one."""
PROBE_SECONDS: Final = 10
STORE_SECONDS: Final = 120


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Attributes:
        dicomweb: Address of its DICOMweb service, without a slash at the end.
        rest: Address of its own interface.
        log: File with its output.
    """

    dicomweb: str
    rest: str
    log: Path


@contextmanager
def running_orthanc(folder: Path, port: int) -> Iterator[Orthanc]:
    """Start Orthanc for this machine only, and stop it at the end.

    Args:
        folder: Folder for its configuration, storage and log; it is made if it is missing, and not removed.
        port: HTTP port to listen on.

    Raises:
        StorageError: Orthanc or its DICOMweb plugin is not installed, or it did not start.
    """
    command = tied([_program(), str(_configuration(folder, port))])
    log = folder / "orthanc.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            orthanc = Orthanc(f"http://127.0.0.1:{port}{DICOMWEB_ROOT.rstrip('/')}", f"http://127.0.0.1:{port}", log)
            _wait(orthanc, process)
            yield orthanc
        finally:
            stop(process)


def fill(orthanc: Orthanc, folder: Path) -> int:
    """Store all DICOM files below a folder.

    Returns:
        The number of files.

    Raises:
        StorageError: Orthanc refused a file.
    """
    files = sorted(folder.rglob("*.dcm"))
    for file in files:
        answer = requests.post(f"{orthanc.rest}/instances", data=file.read_bytes(), timeout=STORE_SECONDS)
        if not answer.ok:
            raise StorageError(f"Orthanc refused the file {file.name!r}. See {orthanc.log}.")
    return len(files)


def _program() -> str:
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path=PROGRAM_FOLDERS)
    if program is None:
        raise StorageError("Orthanc is not installed. Install Debian's packages orthanc and orthanc-dicomweb.")
    return program


def _configuration(folder: Path, port: int) -> Path:
    plugin = next((path for path in PLUGINS if path.is_file()), None)
    if plugin is None:
        raise StorageError("Orthanc's DICOMweb plugin is not installed. Install Debian's package orthanc-dicomweb.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "orthanc.json"
    settings = {
        "Name": "TotalSpineSeg demo",
        "StorageDirectory": str((folder / "storage").resolve()),
        "IndexDirectory": str((folder / "storage").resolve()),
        "Plugins": [str(plugin)],
        "HttpPort": port,
        # There is no option for the address on which it listens, so requests of other machines are refused instead.
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        # If an annotator exports twice under one UID, keep the second export.
        "OverwriteInstances": True,
        "DicomWeb": {"Enable": True, "Root": DICOMWEB_ROOT, "EnableWado": False},
    }
    write_json(path, settings)
    return path


def _wait(orthanc: Orthanc, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StorageError(f"Orthanc stopped while it was starting. See {orthanc.log}.")
        try:
            requests.get(f"{orthanc.dicomweb}/studies", params={"limit": 1}, timeout=PROBE_SECONDS).raise_for_status()
        except requests.RequestException:
            time.sleep(0.1)
        else:
            return
    raise StorageError(f"Orthanc did not answer within {START_SECONDS} s. See {orthanc.log}.")
