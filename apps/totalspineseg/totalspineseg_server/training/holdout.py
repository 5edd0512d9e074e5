"""Split a site's subjects into those used for training and those held out for testing, once and for all.

A site's first subjects are all used for training, because one or two hold-out subjects would not be enough to test on,
while one or two training subjects help. Later, a hash of the subject decides, whatever the order.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import load_json, write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.training import training_messages

FIRST_TO_TRAINING: Final = 5
"""Number of subjects of a site that are used for training before any may be held out."""
HOLDOUT_PERCENT: Final = 25
"""Percentage of the later subjects that are held out."""
SALT: Final = "totalspineseg hold-out 1"
"""Part of the hash. It never changes, because another salt would hold out other subjects."""
TRAIN, HOLD = "train", "hold-out"


@dataclass(frozen=True)
class Split:
    """The role of each subject: used for training, or held out.

    Attributes:
        role: Subject -> ``TRAIN`` or ``HOLD``, in the order in which the subjects were first seen.
    """

    role: MappingProxyType[str, str]

    def holds_out(self, subject: str) -> bool:
        """Return whether a subject is held out and must never be used for training.

        Raises:
            KeyError: The subject was never assigned.
        """
        return self.role[subject] == HOLD


def hash_holds_out(subject: str) -> bool:
    """Return whether the hash holds out this subject, if it is not among the site's first."""
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
            role[subject] = HOLD if len(role) >= FIRST_TO_TRAINING and hash_holds_out(subject) else TRAIN
    return Split(MappingProxyType(role))


def read_split(path: Path) -> Split:
    """Return the stored split, or an empty one if none is stored yet.

    Raises:
        StorageError: The file is damaged or follows another rule. A new choice could train on a held-out subject.
    """
    if not path.exists():
        return Split(MappingProxyType({}))
    try:
        content = load_json(path)
        role = {str(subject): str(value) for subject, value in content["role"].items()}
        whole = content["salt"] == SALT and set(role.values()) <= {TRAIN, HOLD}
    except (StorageError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(training_messages.DAMAGED_HOLDOUT.format(path=str(path))) from error
    if not whole:
        raise StorageError(training_messages.OTHER_HOLDOUT.format(file=path.name))
    return Split(MappingProxyType(role))


def foreseen_split(path: Path, subjects: Iterable[str]) -> Split:
    """Return the split that ``update_split`` would store now, without storing it.

    Raises:
        StorageError: The stored split is damaged.
    """
    return assign(read_split(path), subjects)


def update_split(path: Path, subjects: Iterable[str]) -> Split:
    """Read the split, give new subjects a role, and store it atomically before it is used.

    A training and ``prepare`` may run this at the same time: each sees the roles that the other stored.

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
