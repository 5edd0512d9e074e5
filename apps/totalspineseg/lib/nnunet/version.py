"""Which weights a model is, told from its files alone: nothing here imports torch."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lib.nnunet.discovery import find_checkpoint, find_model
from lib.nnunet.hashing import sha256_of
from lib.registry.store import STARTER, ModelStore

DIGITS: Final = 8
"""Of the digest in a version's name: enough to tell any two models of a site apart."""
STARTER_VERSION: Final = re.compile(rf"{STARTER}(-[0-9a-f]{{{DIGITS}}})?(@.*)?")
STARTER_WARNING: Final = (
    "The starter weights were trained on synthetic spines only: good for trying the software, not for patients."
)
"""What people read wherever the starter weights made a result."""


def model_digest(folder: Path, checkpoint: Path) -> str:
    """SHA-256 (hex) over plans, dataset and checkpoint; reads the checkpoint once.

    Args:
        folder: Holds plans.json and dataset.json.
        checkpoint: The file of the weights.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in (folder / "plans.json", folder / "dataset.json", checkpoint):
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def version_name(name: str, digest: str) -> str:
    """Name and the first digits of the digest, such as "starter-1a2b3c4d"."""
    return f"{name}-{digest[:DIGITS]}"


def warning_of(versions: Iterable[str]) -> str:
    """Return the sentence that warns of the results of the starter weights; "" where none of the versions is one.

    Args:
        versions: Names, or versions with their digest and runtime.
    """
    return STARTER_WARNING if any(STARTER_VERSION.fullmatch(version) for version in versions) else ""


def version_in_use(store: ModelStore, step: int) -> str:
    """The version a step would run with: ``Networks.folder(step).version`` without opening the model.

    Args:
        store: Says which weights are in use.
        step: 1 or 2.

    Raises:
        WeightsError: There is no model folder of that step.
    """
    choice = store.resolve(step)
    folder, _ = find_model(choice.root, step)
    return version_name(choice.name, model_digest(folder, find_checkpoint(folder)))
