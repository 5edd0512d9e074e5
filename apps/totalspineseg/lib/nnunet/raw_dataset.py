"""Labeled scans as nnU-Net raw datasets 101 and 102, for training from scratch with nnU-Net's own tools."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lib.anatomy import BACKGROUND, UNREVIEWED
from lib.errors import StorageError, TotalSpineSegError
from lib.geometry import Grid, LabelArray, Volume, image_to_iso, labels_to_iso, require_same_grid
from lib.nnunet.cases import CROP_MARGIN_MM, LabeledScan, ScanSource, Skipped, check_codes
from lib.nnunet.odd_channel import FloatArray, disturbed_channel, marked_discs
from lib.nnunet.targets import IGNORE_CLASS, REGIONS, Step, mark, step_target
from lib.registry.store import DATASET_OF_STEP
from lib.transforms.crop import crop_box
from lib.volume_io import write_atomic, write_volume

SWAPPED_SUFFIX: Final = "_o2e"
"""Second variant of a case of dataset 102: the other discs marked, odd and even exchanged."""
DISTURBED_SHARE: Final = 0.5
"""Share of the cases of dataset 102 whose second channel has errors as step 1 makes them."""
SEED: Final = 20_240_102
SUBJECTS_FILE: Final = "subjects.json"
"""Case -> subject, beside ``dataset.json``: two scans of one person must not train and validate."""


@dataclass(frozen=True)
class RawOptions:
    """What is written.

    Attributes:
        steps: Which datasets.
        swapped: Also the second variant of each case of dataset 102.
        disturbed_share: See ``DISTURBED_SHARE``.
    """

    steps: tuple[Step, ...] = (1, 2)
    swapped: bool = True
    disturbed_share: float = DISTURBED_SHARE


def dataset_name(step: int) -> str:
    """nnU-Net's folder name of a step's dataset."""
    return f"Dataset{DATASET_OF_STEP[step]}_TotalSpineSeg_step{step}"


def write_raw_datasets(
    sources: Iterable[ScanSource],
    raw: Path,
    options: RawOptions | None = None,
    *,
    on_skip: Callable[[Skipped], None],
) -> dict[int, int]:
    """Write cases in nnU-Net's raw format; those already written are left as they are, so it can be called again.

    Args:
        sources: Labeled scans; one is held at a time.
        raw: nnU-Net's raw folder (``nnUNet_raw``).
        options: What is written.
        on_skip: Told about every case that cannot be used.

    Returns:
        Step -> cases of its dataset now.

    Raises:
        StorageError: Disk full or no permission.
    """
    options = options or RawOptions()
    folders = {step: raw / dataset_name(step) for step in options.steps}
    subjects: dict[str, str] = {}
    for folder in folders.values():
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    for source in sources:
        steps = [step for step in options.steps if step in source.steps]
        if not steps:
            continue
        try:
            scan = source.read()
            subjects[case_id(scan.name)] = scan.subject
            require_same_grid(scan.codes.grid, scan.image.grid)
            for step in steps:
                _write_case(scan, step, folders[step], options)
        except StorageError:
            raise
        except (TotalSpineSegError, OSError, ValueError) as error:
            on_skip(Skipped(source.name, str(error)))
    for folder in folders.values():
        _note_subjects(folder, subjects)
    return {step: _write_description(step, folder) for step, folder in folders.items()}


def case_id(name: str) -> str:
    """A case name of letters, digits, "-", "_" and "." for file names."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _write_case(scan: LabeledScan, step: Step, folder: Path, options: RawOptions) -> None:
    image, labels = image_to_iso(scan.image), labels_to_iso(scan.codes)
    check_codes(labels.data, step=step)
    name = case_id(scan.name)
    if step == 1:
        target = step_target(labels.data, 1, unreviewed=scan.unreviewed)
        _write(folder, name, image.grid, [image.data], target)
        return
    reviewed = np.where(labels.data == UNREVIEWED, BACKGROUND, labels.data).astype(np.uint8)
    box = crop_box(reviewed, margin=CROP_MARGIN_MM)
    codes = labels.data[box]
    grid = _crop_grid(image, [axis.start for axis in box], codes.shape)
    for swapped in (False, True) if options.swapped else (False,):
        rng = np.random.default_rng([SEED, swapped, *name.encode()])
        marked = marked_discs(codes, swapped=swapped)
        exact = rng.random() >= options.disturbed_share
        second: FloatArray = mark(codes, marked) if exact else disturbed_channel(codes, marked, rng)
        variant = f"{name}{SWAPPED_SUFFIX}" if swapped else name
        target = step_target(codes, 2, swapped=swapped, unreviewed=scan.unreviewed)
        _write(folder, variant, grid, [image.data[box], second], target)


def _crop_grid(image: Volume, start: Sequence[int], shape: tuple[int, ...]) -> Grid:
    shift = np.eye(4)
    shift[:3, 3] = start
    return Grid((shape[0], shape[1], shape[2]), image.affine @ shift)


def _write(folder: Path, name: str, grid: Grid, channels: Sequence[Any], target: LabelArray) -> None:
    """The channels first, the label last: a case whose label is there is complete."""
    label = folder / "labelsTr" / f"{name}.nii.gz"
    if label.exists():
        return
    for number, channel in enumerate(channels):
        write_volume(folder / "imagesTr" / f"{name}_{number:04d}.nii.gz", channel, grid)
    write_volume(label, target, grid)


def _write_description(step: Step, folder: Path) -> int:
    """``dataset.json``: channels, regions in order, the ignore label; returns the number of cases."""
    count = len(list((folder / "labelsTr").glob("*.nii.gz")))
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: classes[0] if len(classes) == 1 else list(classes) for name, classes in REGIONS[step].items()}
    content = {
        "channel_names": {"0": "MRI"} if step == 1 else {"0": "MRI", "1": "noNorm"},
        "labels": labels | {"ignore": IGNORE_CLASS[step]},
        "regions_class_order": list(range(1, len(REGIONS[step]) + 1)),
        "numTraining": count,
        "file_ending": ".nii.gz",
        "name": dataset_name(step),
    }

    _write_json(folder / "dataset.json", content)
    return count


def _note_subjects(folder: Path, subjects: dict[str, str]) -> None:
    file = folder / SUBJECTS_FILE
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    _write_json(file, known | subjects)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, lambda temporary: _write_text(temporary, json.dumps(content, indent=1)))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
