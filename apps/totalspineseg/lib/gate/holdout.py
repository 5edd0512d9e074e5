"""Which subjects of a site judge models and never train them: decided once per subject, and stored.

A site's first subjects all go to training, since one or two hold-out subjects judge nothing while one
or two training subjects are much; from then on a hash of the subject decides, whatever the order.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lib.errors import StorageError
from lib.files import load_json, write_json
from lib.locks import locked

FIRST_TO_TRAINING: Final = 5
"""So many subjects of a site train before the first may be held out."""
HOLDOUT_PERCENT: Final = 25
"""Share of the later subjects that is held out."""
SALT: Final = "totalspineseg hold-out 1"
"""Part of the rule: another salt is another choice, so it never changes for a site."""
SUBJECT_PATTERN: Final = re.compile(r"(sub-[A-Za-z0-9]+)")
"""How BIDS names a subject in a file name."""
TRAIN, HOLD = "train", "hold-out"


@dataclass(frozen=True)
class Split:
    """Who trains and who judges.

    Attributes:
        role: Subject -> ``TRAIN`` or ``HOLD``, in the order in which subjects came.
    """

    role: MappingProxyType[str, str]

    def holds_out(self, subject: str) -> bool:
        """Whether the subject must never be trained on.

        Raises:
            KeyError: The subject was never assigned.
        """
        return self.role[subject] == HOLD


def subject_of(image: str) -> str:
    """The subject an image id belongs to: its BIDS subject, else the image itself."""
    match = SUBJECT_PATTERN.search(image)
    return match[1] if match else image


def drawn_out(subject: str) -> bool:
    """Whether the hash holds this subject out, if it is not among the site's first."""
    digest = hashlib.sha256(f"{SALT}:{subject}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HOLDOUT_PERCENT


def assign(split: Split, subjects: Iterable[str]) -> Split:
    """Give every new subject its role; known ones keep theirs.

    Args:
        split: Roles so far. Not modified.
        subjects: Subjects in the order of their first correction; repeats do not matter.

    Returns:
        A split that knows all of them.
    """
    role = dict(split.role)
    for subject in subjects:
        if subject not in role:
            role[subject] = HOLD if len(role) >= FIRST_TO_TRAINING and drawn_out(subject) else TRAIN
    return Split(MappingProxyType(role))


def read_split(path: Path) -> Split:
    """The stored split; empty when there is none yet.

    Raises:
        StorageError: The file is damaged. Guessing anew could train on a subject that judges.
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
            "so that no subject that judges is trained on."
        ) from error
    if not whole:
        raise StorageError(f"the hold-out list of this rule is required, got another in {path.name!r}; restore it")
    return Split(MappingProxyType(role))


def foreseen_split(path: Path, subjects: Iterable[str]) -> Split:
    """The split that ``update_split`` would store now, without storing it: for whoever only looks.

    Raises:
        StorageError: The stored one is damaged.
    """
    return assign(read_split(path), subjects)


def update_split(path: Path, subjects: Iterable[str]) -> Split:
    """Read the split, give new subjects their role, and store it atomically before it is used.

    A training and ``prepare`` may do so at once: each sees what the other stored.

    Raises:
        StorageError: It is damaged, or cannot be written.
    """
    with locked(path.parent):
        before = read_split(path)
        after = assign(before, subjects)
        if after.role != before.role or not path.exists():
            content = {"salt": SALT, "first_to_training": FIRST_TO_TRAINING, "percent": HOLDOUT_PERCENT}
            write_json(path, content | {"role": dict(after.role)})
    return after
