"""Start a real Orthanc with phantoms as MR studies, and a server in front of it, for tests."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import requests
from mr_object import mr_slices
from orthanc import Orthanc, fill, running_orthanc
from pydicom import dcmread

from dicom_series import enhanced
from phantom import PIR, image_of, lumbar_codes
from serving import phantom_server
from totalspineseg_server.geometry import Grid
from totalspineseg_server.processes import free_port

MAX_UPLOAD_MB = 64
WAIT_SECONDS = 600
"""A training on a busy machine takes minutes to begin."""
LOCALIZER = "Localizer 3 planes"


@dataclass(frozen=True)
class Study:
    """A phantom in the PACS.

    Attributes:
        uid: Study instance UID.
        series: UID of its sagittal series.
        localizer: UID of its localizer.
        patient: Patient's name as the viewer shows it.
        folder: The files of the sagittal series.
    """

    uid: str
    series: str
    localizer: str
    patient: str
    folder: Path


@dataclass(frozen=True)
class PacsServer:
    """A running server with a running Orthanc.

    Attributes:
        url: Address of the server.
        orthanc: The PACS.
        work: Where the server keeps corrections and fetched series.
        app: App folder.
        signals: See ``serving.Server``.
        log: What the server printed.
        studies: What the PACS holds.
    """

    url: str
    orthanc: Orthanc
    work: Path
    app: Path
    signals: Path
    log: Path
    studies: tuple[Study, ...]

    @property
    def proxy(self) -> str:
        return f"{self.url}/proxy/dicom"


def phantom_slices(without: Sequence[int] = ()) -> tuple[npt.NDArray[np.uint16], Grid]:
    """Return pixels (column, row, slice) of the phantom, perhaps without some structures, as a sagittal series."""
    codes = lumbar_codes()
    codes[np.isin(codes, without)] = 0
    data = np.ascontiguousarray(image_of(codes).transpose(1, 2, 0)[::-1, ::-1])
    return data.astype(np.uint16), Grid((80, 252, 48), PIR)


def patient_slices(number: int, without: Sequence[int] = ()) -> tuple[npt.NDArray[np.uint16], Grid]:
    """Return the pixels of a patient; no two are alike, because an image must not be used both for training and for
    comparing models."""
    pixels, grid = phantom_slices(without)
    pixels[0, 0, 0] += number
    return pixels, grid


def write_study(folder: Path, number: int, name: str, *, without: Sequence[int] = ()) -> Study:
    """Write a sagittal series and a three-plane localizer of one patient, perhaps without some structures."""
    pixels, grid = patient_slices(number, without)
    uid = f"2.25.7000{number}"
    tags = {
        "PatientName": f"{name}^Phantom",
        "PatientID": f"P{number}",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": uid,
        "StudyDate": f"202601{number:02d}",
        "StudyTime": "120000",
        "StudyID": str(number),
        "AccessionNumber": f"A{number}",
        "ReferringPhysicianName": "",
        "StudyDescription": "Spine phantom",
        "FrameOfReferenceUID": f"{uid}.9",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "WindowCenter": "300",
        "WindowWidth": "600",
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "MRAcquisitionType": "2D",
    }
    _write(folder / f"{number}-sagittal", pixels, grid, tags, f"{uid}.1", "T2 sagittal", 1)
    middle = pixels[:, :, 23:25]
    for plane, axes in enumerate(([0, 1, 2, 3], [2, 1, 0, 3], [0, 2, 1, 3])):
        turned = Grid(middle.shape, PIR[:, axes])
        _write(folder / f"{number}-localizer-{plane}", middle, turned, tags, f"{uid}.2", LOCALIZER, 2, plane)
    return Study(uid, f"{uid}.1", f"{uid}.2", f"{name}, Phantom", folder / f"{number}-sagittal")


def _write(
    folder: Path,
    pixels: npt.NDArray[np.uint16],
    grid: Grid,
    tags: dict[str, object],
    uid: str,
    description: str,
    number: int,
    part: int = 0,
) -> None:
    folder.mkdir(parents=True)
    own = tags | {"SeriesInstanceUID": uid, "SeriesDescription": description, "SeriesNumber": number}
    instances = [f"{uid}.{part + 1}.{k + 1}" for k in range(pixels.shape[2])]
    for k, image in enumerate(mr_slices(pixels, grid.affine, instances, own)):
        image.save_as(folder / f"{k:03d}.dcm", write_like_original=False)


def make_enhanced(study: Study) -> None:
    """Replace a sagittal series' slices by one enhanced multi-frame object."""
    files = sorted(study.folder.glob("*.dcm"))
    whole = enhanced([dcmread(file) for file in files], f"{study.series}.99")
    for file in files:
        file.unlink()
    whole.save_as(study.folder / "000.dcm", write_like_original=False)


@contextmanager
def pacs_server(folder: Path, names: Sequence[str]) -> Iterator[PacsServer]:
    """Run Orthanc with a study for each name, and a server with predictors that read the phantoms' codes."""
    studies = tuple(write_study(folder / "files", number, name) for number, name in enumerate(names, start=1))
    with running_orthanc(folder / "orthanc", free_port()) as orthanc:
        fill(orthanc, folder / "files")
        work = folder / "work"
        work.mkdir()
        # Keep it below the folder, so that nothing is written to the home of the person who runs the tests.
        own = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
        with phantom_server(folder, orthanc.dicomweb, MAX_UPLOAD_MB, work=str(work), environment=own) as running:
            yield PacsServer(running.url, orthanc, work, running.app, running.signals, running.log, studies)


def stored(server: PacsServer, series: str) -> list[str]:
    """Return the instances of a series in the PACS."""
    query = {"SeriesInstanceUID": series}
    found = requests.get(f"{server.orthanc.dicomweb}/instances", params=query, timeout=60).json()
    return [entry["00080018"]["Value"][0] for entry in found]


def wait_for(happened: Callable[[], object]) -> None:
    """Ask again until the answer is yes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
