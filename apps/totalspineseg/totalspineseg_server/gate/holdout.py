"""The split of a site's subjects into those that train and those that only judge, decided once and stored.

All of a site's first subjects train: one or two hold-out subjects judge nothing, while one or two training subjects
matter. After them a hash of the subject decides, whatever the order.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import load_json, write_json
from totalspineseg_server.locks import locked

FIRST_TO_TRAINING: Final = 5
"""Number of subjects of a site that train before any may be held out."""
HOLDOUT_PERCENT: Final = 25
"""Percentage of the later subjects that are held out."""
SALT: Final = "totalspineseg hold-out 1"
"""Part of the rule. It never changes for a site, because another salt would choose other subjects."""
SUBJECT_PATTERN: Final = re.compile(r"(sub-[A-Za-z0-9]+)")
"""A subject's name in a BIDS file name."""
TRAIN, HOLD = "train", "hold-out"


@dataclass(frozen=True)
class Split:
    """The role of each subject: training or judging.

    Attributes:
        role: Subject -> ``TRAIN`` or ``HOLD``, in the order in which the subjects were first seen.
    """

    role: MappingProxyType[str, str]

    def holds_out(self, subject: str) -> bool:
        """Return whether the subject must never be trained on.

        Raises:
            KeyError: The subject was never assigned.
        """
        return self.role[subject] == HOLD


def subject_of(image: str) -> str:
    """Return the subject that an image id belongs to: its BIDS subject, or else the id itself."""
    match = SUBJECT_PATTERN.search(image)
    return match[1] if match else image


def drawn_out(subject: str) -> bool:
    """Return whether the hash holds this subject out, unless it is among the site's first."""
    digest = hashlib.sha256(f"{SALT}:{subject}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HOLDOUT_PERCENT


def assign(split: Split, subjects: Iterable[str]) -> Split:
    """Give every new subject a role; known ones keep theirs.

    Args:
        split: Roles so far. Not modified.
        subjects: Subjects in the order of their first correction; repeats are allowed.

    Returns:
        A split that contains all of them.
    """
    role = dict(split.role)
    for subject in subjects:
        if subject not in role:
            role[subject] = HOLD if len(role) >= FIRST_TO_TRAINING and drawn_out(subject) else TRAIN
    return Split(MappingProxyType(role))


def read_split(path: Path) -> Split:
    """Return the stored split; an empty one where none is stored yet.

    Raises:
        StorageError: The file is damaged or follows another rule. A new choice could train on a subject that judges.
    """
    if not path.exists():
        return Split(MappingProxyType({}))
    try:
        content = load_json(path)
        role = {str(subject): str(value) for subject, value in content["role"].items()}
        whole = content["salt"] == SALT and set(role.values()) <= {TRAIN, HOLD}
    except (StorageError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"The hold-out list {str(path)!r} is damaged or cannot be read. Restore it from a backup before training, "
            "or subjects that are kept for comparing models would be trained on."
        ) from error
    if not whole:
        raise StorageError(f"The hold-out list {path.name!r} was made by another rule. Restore the original file.")
    return Split(MappingProxyType(role))


def foreseen_split(path: Path, subjects: Iterable[str]) -> Split:
    """Return the split that ``update_split`` would store now, without storing it.

    Raises:
        StorageError: The stored split is damaged.
    """
    return assign(read_split(path), subjects)


def update_split(path: Path, subjects: Iterable[str]) -> Split:
    """Read the split, give new subjects a role, and store it atomically before it is used.

    A training and ``prepare`` may run this at the same time: each sees what the other stored.

    Raises:
        StorageError: The split is damaged, or cannot be written.
    """
    with locked(path.parent):
        before = read_split(path)
        after = assign(before, subjects)
        if after.role != before.role or not path.exists():
            content = {"salt": SALT, "first_to_training": FIRST_TO_TRAINING, "percent": HOLDOUT_PERCENT}
            write_json(path, content | {"role": dict(after.role)})
    return after
