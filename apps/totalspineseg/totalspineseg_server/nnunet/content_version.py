"""Identify the weights of a model from its files alone, without importing torch."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from totalspineseg_server.files import sha256_of
from totalspineseg_server.nnunet.discovery import TRUST_FILE, find_checkpoint, find_model
from totalspineseg_server.registry.model_store import ModelStore

DIGITS: Final = 8
"""Number of digits of the digest in a version's name: enough to tell any two models of a site apart."""


def model_digest(folder: Path, checkpoint: Path) -> str:
    """Return the SHA-256 (hex) of plans, dataset and checkpoint, reading the checkpoint once.

    Args:
        folder: Folder with plans.json and dataset.json.
        checkpoint: File of the weights.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in (folder / "plans.json", folder / "dataset.json", checkpoint):
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def answer_digest(folder: Path, digest: str) -> str:
    """Return the SHA-256 (hex) of everything that determines a model's output: its files, and how far it is trusted.

    Args:
        folder: Folder with plans.json.
        digest: From ``model_digest``.

    Raises:
        OSError: A file cannot be read.
    """
    trust = folder / TRUST_FILE
    return hashlib.sha256(bytes.fromhex(digest + sha256_of(trust))).hexdigest() if trust.is_file() else digest


def parts_of(version: str) -> tuple[str, str]:
    """Return the name of weights, and the digits that identify their network's output.

    Args:
        version: The version in a prediction, with or without its runtime ("starter-1a2b3c4d@openvino-2026.4.1").
    """
    name, _, digits = version.partition("@")[0].rpartition("-")
    return name, digits


def version_name(name: str, digest: str) -> str:
    """Return the name followed by the first digits of the digest, such as "starter-1a2b3c4d"."""
    return f"{name}-{digest[:DIGITS]}"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one step's model; none is read before its digest is needed.

    Attributes:
        path: Folder with plans.json and dataset.json.
        name: Name of the weights, such as "starter" or "official-r20251124".
        checkpoint: The file with the weights.
    """

    path: Path
    name: str
    checkpoint: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over plans, dataset and checkpoint; the checkpoint is read once."""
        return model_digest(self.path, self.checkpoint)

    @property
    def version(self) -> str:
        """Name and first eight digits of the digest of files and trust, such as "starter-1a2b3c4d"."""
        return version_name(self.name, answer_digest(self.path, self.digest))


def files_in_use(store: ModelStore, step: int) -> ModelFiles:
    """Return the files of the model that a step would run with.

    Args:
        store: The model versions and those in use.
        step: 1 or 2.

    Raises:
        WeightsError: There is no model folder of that step.
    """
    choice = store.resolve(step)
    folder, _ = find_model(choice.root, step)
    return ModelFiles(folder, choice.name, find_checkpoint(folder))
