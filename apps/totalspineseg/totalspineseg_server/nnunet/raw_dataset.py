"""Write labeled scans as nnU-Net raw datasets 101 and 102, for training from scratch with nnU-Net's own tools.

The cases are split for training and validation by subject; nnU-Net itself would split by case.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.errors import LabelError, MemoryShortageError, StorageError, TotalSpineSegError, TrainingError
from totalspineseg_server.files import write_json
from totalspineseg_server.geometry import FloatArray, Grid, LabelArray, Volume, image_to_iso, labels_to_iso
from totalspineseg_server.locks import locked
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.cases import LabeledScan, ScanSource, Skipped, check_codes
from totalspineseg_server.nnunet.odd_channel import (
    EXACT_CHANNEL_SHARE,
    FOUND_CHANNEL_SHARE,
    disturbed_channel,
    found_discs,
    marked_discs,
    training_variant,
)
from totalspineseg_server.nnunet.raw_folder import ENDING, LABELS, RawFolder, Written, read_cases
from totalspineseg_server.nnunet.targets import IGNORE_CLASS, REGIONS, Step, mark, step_target
from totalspineseg_server.prediction import Predictor
from totalspineseg_server.registry.model_store import dataset_name
from totalspineseg_server.segments import without_regions
from totalspineseg_server.transforms.discs import CROP_MARGIN_MM, crop_box

logger = logging.getLogger(__name__)

SWAPPED_SUFFIX: Final = "_o2e"
"""Suffix of the second variant of a case in dataset 102: the other discs are marked, and odd and even exchanged."""
DISTURBED_SHARE: Final = 1 - EXACT_CHANNEL_SHARE
"""Share of the cases in dataset 102 whose second channel has errors, real or simulated ones of step 1."""
TRUE, SIMULATED, FOUND_BY = "true", "simulated", "found by "
"""Origin of the discs in a second channel, for the record of cases; the network's version follows ``FOUND_BY``."""
SEED: Final = 20_240_102
FORMAT: Final = 3
"""Version of the case format. It is raised when the same scan gives different files, so that old cases are written
again.
"""
CHANNELS: Final[dict[Step, dict[str, str]]] = {1: {"0": "MRI"}, 2: {"0": "MRI", "1": "noNorm"}}
MAX_NAME: Final = 150
"""Largest number of characters in a case's name; file systems allow 255 with endings."""
FOLDS: Final = 5
"""Number of folds, as in nnU-Net."""
SPLIT_SEED: Final = 12345
SPLITS_FILE: Final = "splits_final.json"
"""nnU-Net's file of folds, which it uses if the file exists."""
BIDS_SUBJECT: Final = re.compile(r"sub-[A-Za-z0-9]+")


@dataclass(frozen=True)
class RawOptions:
    """Options for the datasets.

    Attributes:
        steps: Steps to write datasets for.
        swapped: Whether to write also the second variant of each case of dataset 102.
        disturbed_share: See ``DISTURBED_SHARE``.
        finder: The loaded step-1 network that finds the discs for ``FOUND_CHANNEL_SHARE`` of the disturbed channels;
            None to simulate all errors.
    """

    steps: tuple[Step, ...] = (1, 2)
    swapped: bool = True
    disturbed_share: float = DISTURBED_SHARE
    finder: Predictor | None = None


def write_raw_datasets(
    sources: Iterable[ScanSource],
    raw: Path,
    options: RawOptions | None = None,
    *,
    on_skip: Callable[[Skipped], None],
) -> dict[int, Written]:
    """Write nnU-Net's raw datasets so that they contain exactly these cases.

    Complete cases of an earlier call, made from the same scan with the same options, are kept, so that an interrupted
    call can be repeated to continue it. Other cases are removed at the end.

    Args:
        sources: Labeled scans; only one is in memory at a time.
        raw: nnU-Net's raw folder (``nnUNet_raw``).
        options: Options for the datasets.
        on_skip: Called with every case that cannot be used.

    Returns:
        Step -> the present content of its dataset.

    Raises:
        StorageError: The disk is full, permission is missing, or a dataset's folder has files that this function did
            not write; these are kept.
        MemoryShortageError: There is too little memory for the network that finds discs; no case is skipped for this
            reason.
    """
    options = options or RawOptions()
    folders = {step: RawFolder(raw / dataset_name(step), len(CHANNELS[step])) for step in options.steps}
    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(locked(folder.path))
        for folder in folders.values():
            folder.check()
        for folder in folders.values():
            folder.begin()
        taken: set[str] = set()
        for source in sources:
            steps = [step for step in options.steps if step in source.steps]
            if not steps:
                continue
            try:
                scan = source.read()
                name = _free_name(scan, taken)
                for step in steps:
                    _write_case(scan, name, step, folders[step], options)
            except (StorageError, MemoryShortageError):
                raise
            except (TotalSpineSegError, OSError, ValueError) as error:
                on_skip(Skipped(source.name, str(error)))
        return {step: folder.finish(_description(step)) for step, folder in folders.items()}


def case_id(name: str) -> str:
    """Return a case's name for files: letters, digits, "-", "_" and "."; a name with other characters gets a "+" and a
    hash.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)
    if plain == name and len(name) <= MAX_NAME and not name.endswith(SWAPPED_SUFFIX):
        return name
    return f"{plain[:MAX_NAME]}+{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _free_name(scan: LabeledScan, taken: set[str]) -> str:
    name = case_id(scan.name)
    if name in taken:
        raise LabelError(nnunet_messages.TWO_SCANS.format(scan=scan.name))
    taken.add(name)
    return name


def _write_case(scan: LabeledScan, name: str, step: Step, folder: RawFolder, options: RawOptions) -> None:
    made_from = _made_from(scan, step, options)
    variants = (False, True) if step == 2 and options.swapped else (False,)
    missing = [v for v in variants if not folder.keep(_variant(name, v), scan.subject, made_from)]
    if not missing:
        return
    image, labels = image_to_iso(scan.image), labels_to_iso(scan.codes)
    check_codes(labels.data, step=step)
    if step == 1:
        target = step_target(labels.data, 1, unreviewed=scan.unreviewed)
        folder.write(name, scan.subject, made_from, image.grid, [image.data], target)
        return
    reviewed = without_regions(labels.data)
    box = crop_box(reviewed, margin=CROP_MARGIN_MM)
    codes = labels.data[box]
    grid = _crop_grid(image, [axis.start for axis in box], codes.shape)

    def find(finder: Predictor) -> LabelArray:
        """Find discs in the whole scan, as at inference; this runs only if a variant needs it."""
        return found_discs(image.data, labels.data, finder)[box]

    for second_variant in missing:
        swapped = training_variant(codes, swapped=second_variant)
        file = _variant(name, second_variant)
        second, discs = _second_channel(codes, find, file, options, swapped=swapped)
        target = step_target(codes, 2, swapped=swapped, unreviewed=scan.unreviewed)
        folder.write(file, scan.subject, made_from, grid, [image.data[box], second], target, discs=discs)


def _second_channel(
    codes: LabelArray,
    find: Callable[[Predictor], LabelArray],
    name: str,
    options: RawOptions,
    *,
    swapped: bool,
) -> tuple[FloatArray, str]:
    """Return the second channel of a file, and the origin of its discs."""
    rng = np.random.default_rng([SEED, *name.encode()])
    marked = marked_discs(codes, swapped=swapped)
    if rng.random() >= options.disturbed_share:
        return mark(codes, marked), TRUE
    if options.finder is not None and marked and rng.random() < FOUND_CHANNEL_SHARE:
        channel = mark(find(options.finder), marked)
        if channel.any():
            return channel, f"{FOUND_BY}{options.finder.version}"
        logger.warning("%s: step 1 found none of its discs, so errors are simulated", name)
    return disturbed_channel(codes, marked, rng), SIMULATED


def _variant(name: str, swapped: bool) -> str:
    return f"{name}{SWAPPED_SUFFIX}" if swapped else name


def _made_from(scan: LabeledScan, step: Step, options: RawOptions) -> str:
    """Return a digest of everything that determines the files of a case: voxels, grid, label and options."""
    share = options.disturbed_share if step == 2 else 0
    finder = f" {options.finder.version}" if step == 2 and options.finder is not None else ""
    digest = hashlib.sha256(f"{FORMAT} {share} {sorted(scan.unreviewed)}{finder}".encode())
    for volume in (scan.image, scan.codes):
        digest.update(f"{volume.data.dtype} {volume.data.shape} {volume.affine.tolist()}".encode())
        digest.update(np.ascontiguousarray(volume.data).data)
    return digest.hexdigest()


def _crop_grid(image: Volume, start: Sequence[int], shape: tuple[int, ...]) -> Grid:
    shift = np.eye(4)
    shift[:3, 3] = start
    return Grid((shape[0], shape[1], shape[2]), image.affine @ shift)


def _description(step: Step) -> dict[str, Any]:
    """Return the content of ``dataset.json``: channels, regions in order, the ignore label."""
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: classes[0] if len(classes) == 1 else list(classes) for name, classes in REGIONS[step].items()}
    return {
        "channel_names": CHANNELS[step],
        "labels": labels | {"ignore": IGNORE_CLASS[step]},
        "regions_class_order": list(range(1, len(REGIONS[step]) + 1)),
        "file_ending": ENDING,
        "name": dataset_name(step),
    }


def subjects_of(dataset: Path) -> dict[str, str]:
    """Return case -> subject of a raw dataset. If no subject is recorded, it is the case's BIDS subject, or else the
    case.

    Raises:
        StorageError: The record of its cases is damaged.
    """
    noted = read_cases(dataset)
    cases = sorted(path.name.removesuffix(ENDING) for path in (dataset / LABELS).glob(f"*{ENDING}"))
    return {case: noted.get(case, {}).get("subject") or _subject(case.removesuffix(SWAPPED_SUFFIX)) for case in cases}


def split_by_subject(subjects: Mapping[str, str]) -> list[dict[str, list[str]]]:
    """Return the folds, each ``{"train": cases, "val": cases}``.

    Args:
        subjects: Case -> subject.

    Returns:
        ``FOLDS`` folds, with no subject on both sides; none if there are fewer subjects than folds.
    """
    people = sorted(set(subjects.values()))
    if len(people) < FOLDS:
        return []
    order = np.random.default_rng(SPLIT_SEED).permutation(len(people))
    fold_of = {people[index]: position % FOLDS for position, index in enumerate(order)}
    return [
        {
            "train": [case for case, subject in subjects.items() if fold_of[subject] != fold],
            "val": [case for case, subject in subjects.items() if fold_of[subject] == fold],
        }
        for fold in range(FOLDS)
    ]


def write_splits(dataset: Path, preprocessed: Path) -> None:
    """Write the folds of a raw dataset to the file that nnU-Net reads.

    Raises:
        StorageError: It cannot be written.
    """
    write_json(preprocessed / SPLITS_FILE, split_by_subject(subjects_of(dataset)))


def require_fold(fold: str, subjects: Collection[str]) -> None:
    """Check that a fold can be trained.

    Raises:
        TrainingError: There are fewer subjects than folds.
    """
    people = len(set(subjects))
    if fold != "all" and people < FOLDS:
        raise TrainingError(nnunet_messages.TOO_FEW_SUBJECTS.format(needed=FOLDS, people=people))


def _subject(case: str) -> str:
    match = BIDS_SUBJECT.search(case)
    return match[0] if match else case
