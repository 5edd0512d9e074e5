"""Make synthetic patients for a PACS: complete MR studies of spines that belong to nobody."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from mr_object import mr_slices
from scipy import ndimage

from totalspineseg_server.geometry import Affine, AnyArray, Volume
from totalspineseg_server.io.dicom.headers import uid_from
from totalspineseg_server.synthesis import RenderOptions, SpineOptions, SyntheticSpine, random_spine, render
from totalspineseg_server.synthesis.demo import DEMO_FIELDS, DEMO_WIDTH_MM

SLICE_MM: Final = 4.0
IN_PLANE_MM: Final = 1.0
LOCALIZER_MM: Final = 2.0
LOCALIZER_SLICES_MM: Final = (-10.0, 0.0, 10.0)
"""Positions of the three slices of each plane, from the middle."""
MAX_TILT_DEGREES: Final = 6.0
"""Largest tilt: patients lie a little askew, and series are planned along the spine."""
_NUMBERS: Final = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN")
_ACQUISITION: Final = {
    "T2": {"ScanningSequence": "SE", "RepetitionTime": "3500", "EchoTime": "100", "EchoTrainLength": "18"},
    "T1": {"ScanningSequence": "SE", "RepetitionTime": "600", "EchoTime": "10", "EchoTrainLength": "3"},
    "localizer": {"ScanningSequence": "GR", "RepetitionTime": "8", "EchoTime": "3.7", "EchoTrainLength": "1"},
}


@dataclass(frozen=True)
class DemoSeries:
    """One written series.

    Attributes:
        uid: Series instance UID.
        description: Series description.
        folder: Folder of its files.
        files: One file for each slice.
        localizer: Whether it has three planes in one series, so that it cannot be segmented.
        truth: True label map on the grid of the series (NIfTI); None for a localizer, or if it was not requested.
    """

    uid: str
    description: str
    folder: Path
    files: tuple[Path, ...]
    localizer: bool
    truth: Path | None


@dataclass(frozen=True)
class DemoStudy:
    """One written study of one patient.

    Attributes:
        uid: Study instance UID.
        patient: Patient ID.
        folder: Folder of its series.
        series: Sagittal T2, sagittal T1, localizer.
    """

    uid: str
    patient: str
    folder: Path
    series: tuple[DemoSeries, ...]


def demo_pacs(folder: Path, count: int = 3, seed: int = 0, *, truth: bool = False) -> tuple[DemoStudy, ...]:
    """Write studies of synthetic patients as DICOM files.

    Args:
        folder: Folder to write ``<patient>/<series>/<slice>.dcm`` in; it is made if it is missing.
        count: Number of patients.
        seed: The same seed gives the same files, UIDs included.
        truth: Whether to write the true label maps to ``folder/truth/<series UID>.nii.gz`` as well.

    Returns:
        The written studies. Each has a sagittal T2 and a sagittal T1 series of 4 mm slices, slightly oblique, and a
        three-plane localizer, all in one frame of reference.
    """
    return tuple(_study(folder, number, seed, truth) for number in range(count))


def _study(folder: Path, number: int, seed: int, truth: bool) -> DemoStudy:
    rng = np.random.default_rng([seed, number])
    spine = random_spine(
        rng,
        SpineOptions(
            field=DEMO_FIELDS[number % len(DEMO_FIELDS)],
            thoracic=12,
            lumbar=5,
            spacing_mm=(SLICE_MM, IN_PLANE_MM, IN_PLANE_MM),
            width_mm=DEMO_WIDTH_MM,
            jitter=0.7,
        ),
    )
    tilt = _tilt(rng)
    key = ("demo", str(seed), str(number))
    patient = f"SYN-{seed:04d}-{number + 1:03d}"
    tags = _study_tags(key, number, patient)
    home = folder / patient
    series = []
    rendered: AnyArray = spine.labels
    for place, contrast in enumerate(("T2", "T1"), start=1):
        # Render thin slices: the spine's voxels already have the slice thickness of the series.
        rendered = render(rng, spine, RenderOptions(contrast=contrast, strength=0.4, slice_mm=IN_PLANE_MM))
        image = _sagittal(rendered, spine.affine, tilt)
        labels = _sagittal(spine.labels, spine.affine, tilt).data if truth else None
        if contrast == "T1":  # Leave out a slice at each side, because series of a study differ.
            image = _inner(image)
            labels = labels[:, :, 1:-1] if labels is not None else None
        series.append(_series(home, (image,), contrast, place, tags, key, labels))
    series.append(_series(home, tuple(_planes(rendered, spine, tilt)), "localizer", 3, tags, key, None))
    return DemoStudy(tags["StudyInstanceUID"], patient, home, tuple(series))


def _study_tags(key: tuple[str, ...], number: int, patient: str) -> dict[str, Any]:
    name = _NUMBERS[number] if number < len(_NUMBERS) else f"N{number + 1}"
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": f"SYNTHETIC^{name}",
        "PatientID": patient,
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": uid_from(*key, "study"),
        "FrameOfReferenceUID": uid_from(*key, "frame of reference"),
        "PositionReferenceIndicator": "",
        "StudyID": str(number + 1),
        "StudyDate": "20260101",
        "StudyTime": "080000",
        "AccessionNumber": f"SYN{number + 1:05d}",
        "ReferringPhysicianName": "",
        "StudyDescription": "MR spine (synthetic)",
        "Manufacturer": "TotalSpineSeg synthetic spines",
        "BodyPartExamined": "SPINE",
        "PatientPosition": "HFS",
        "SequenceVariant": "SK",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "MagneticFieldStrength": "1.5",
    }


def _series(
    home: Path,
    stacks: tuple[Volume, ...],
    contrast: str,
    place: int,
    study: dict[str, Any],
    key: tuple[str, ...],
    labels: AnyArray | None,
) -> DemoSeries:
    localizer = contrast == "localizer"
    description = "Localizer 3 planes" if localizer else f"{contrast} TSE sagittal"
    uid = uid_from(*key, contrast)
    tags = study | _ACQUISITION[contrast]
    tags |= {
        "SeriesInstanceUID": uid,
        "SeriesNumber": place,
        "SeriesDescription": description,
        "SeriesDate": study["StudyDate"],
        "SeriesTime": f"08{place:02d}00",
        "AcquisitionNumber": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "LOCALIZER" if localizer else "SE"],
    }
    folder = home / f"{place:02d}-{contrast}"
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for stack in stacks:
        instances = [uid_from(uid, str(len(files) + k)) for k in range(stack.data.shape[2])]
        for image in mr_slices(stack.data, stack.affine, instances, tags):
            files.append(folder / f"{len(files) + 1:03d}.dcm")
            image.InstanceNumber = len(files)
            image.save_as(files[-1], write_like_original=False)
    true = _write_truth(home.parent / "truth" / f"{uid}.nii.gz", labels, stacks[0]) if labels is not None else None
    return DemoSeries(uid, description, folder, tuple(files), localizer, true)


def _write_truth(path: Path, labels: AnyArray, image: Volume) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    return path


def _tilt(rng: np.random.Generator) -> Affine:
    """Return a small rotation of the patient about all three axes."""
    tilt = np.eye(4)
    for axis, degrees in enumerate(rng.uniform(-MAX_TILT_DEGREES, MAX_TILT_DEGREES, 3)):
        turn = np.eye(4)
        i, j = [k for k in range(3) if k != axis]
        angle = np.deg2rad(degrees)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        tilt = tilt @ turn
    return tilt


def _sagittal(data: AnyArray, affine: Affine, tilt: Affine) -> Volume:
    """Return a RAS volume as sagittal slices: columns run backward, rows downward, slices to the right."""
    _, depth, height = data.shape
    placed = np.array([[0, 0, 1, 0], [-1, 0, 0, depth - 1], [0, -1, 0, height - 1], [0, 0, 0, 1.0]])
    turned = data[:, ::-1, ::-1].transpose(1, 2, 0)
    return Volume(_stored(turned), tilt @ affine @ placed)


def _stored(data: AnyArray) -> AnyArray:
    return np.clip(np.rint(data), 0, np.iinfo(np.uint16).max).astype(np.uint16) if data.dtype.kind == "f" else data


def _inner(image: Volume) -> Volume:
    step = np.eye(4)
    step[2, 3] = 1
    return Volume(image.data[:, :, 1:-1], image.affine @ step)


def _planes(rendered: AnyArray, spine: SyntheticSpine, tilt: Affine) -> Iterator[Volume]:
    """Yield three sagittal, three coronal and three axial slices through the middle."""
    shape = np.array(rendered.shape)
    spacing = np.abs(np.diag(spine.affine)[:3])
    center = spine.affine[:3, 3] + spacing * (shape - 1) / 2
    extent = spacing * (shape - 1)
    for across, down in (((1, -1), (2, -1)), ((0, 1), (2, -1)), ((0, 1), (1, -1))):
        affine = np.eye(4)
        affine[:3, :3] = 0
        size = [round(extent[axis] / LOCALIZER_MM) + 1 for axis, _ in (across, down)]
        for column, (axis, sign) in enumerate((across, down)):
            affine[axis, column] = sign * LOCALIZER_MM
        handed = np.cross(affine[:3, 0], affine[:3, 1])
        gap = LOCALIZER_SLICES_MM[1] - LOCALIZER_SLICES_MM[0]
        affine[:3, 2] = handed / np.linalg.norm(handed) * gap
        grid = (size[0], size[1], len(LOCALIZER_SLICES_MM))
        affine[:3, 3] = center - affine[:3, :3] @ ((np.array(grid) - 1) / 2)
        mapping = np.linalg.inv(spine.affine) @ affine
        cut = ndimage.affine_transform(rendered, mapping[:3, :3], mapping[:3, 3], output_shape=grid, order=1)
        yield Volume(_stored(cut), tilt @ affine)
