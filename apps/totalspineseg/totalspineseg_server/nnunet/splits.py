"""Split the cases of a dataset for training and validation by subject; nnU-Net itself would split by case."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from totalspineseg_server.errors import TrainingError
from totalspineseg_server.files import write_json
from totalspineseg_server.nnunet.raw_dataset import SWAPPED_SUFFIX
from totalspineseg_server.nnunet.raw_folder import ENDING, LABELS, read_cases

FOLDS: Final = 5
"""Number of folds, as in nnU-Net."""
SEED: Final = 12345
SPLITS_FILE: Final = "splits_final.json"
"""nnU-Net's file of folds, which it uses if the file exists."""
BIDS_SUBJECT: Final = re.compile(r"sub-[A-Za-z0-9]+")


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
    order = np.random.default_rng(SEED).permutation(len(people))
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
        raise TrainingError(
            f"A fold for validation needs at least {FOLDS} subjects, and there are only {people}. Train on everything "
            "with the fold 'all'."
        )


def _subject(case: str) -> str:
    match = BIDS_SUBJECT.search(case)
    return match[0] if match else case
