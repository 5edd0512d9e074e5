"""Find the model folder of a step by its dataset.json, not by its name, its trust and the hash of its content.

Nothing here imports PyTorch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.anatomy import STEP1_REGIONS, STEP2_REGIONS, Step1, Step2
from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import load_json, read_json, sha256_of, write_json
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.trust import UNMEASURED, Trust, trust_from_json

STEP_REGIONS: Final[Mapping[int, Mapping[str, tuple[int, ...]]]] = {1: STEP1_REGIONS, 2: STEP2_REGIONS}
STEP_CLASSES: Final[Mapping[int, tuple[int, ...]]] = {
    1: tuple(member.value for member in Step1),
    2: tuple(member.value for member in Step2),
}
"""Step -> class of each region, in the order of the channels; later regions overwrite earlier ones."""
STEP_CHANNELS: Final[Mapping[int, int]] = {1: 1, 2: 2}
"""Step -> number of input channels: the image, and in step 2 the odd discs."""
CHECKPOINTS: Final = ("checkpoint_final.pth", "checkpoint_best.pth")
"""Names of checkpoints, the preferred one first."""
BEST_TRAINERS: Final = "nnUNetTrainerDAExt"
"""Beginning of the names of TotalSpineSeg's trainers, whose best checkpoint is used."""
SEARCH_DEPTH: Final = 4
"""How many levels of folders are searched: dataset, trainer, and one each for a zip and an installation."""
TRUST_FILE: Final = "trust.json"
DIGITS: Final = 8
"""Number of digits of the digest in a version's name: enough to tell any two models of a site apart."""


def find_model(root: Path, step: int | None) -> tuple[Path, int]:
    """Return the model folder of a step at or below a folder, and its step.

    Args:
        root: Folder to search, ``SEARCH_DEPTH`` levels down.
        step: 1 or 2; None for the only model there is.

    Raises:
        WeightsError: There is none, or more than one.
    """
    if not root.is_dir():
        raise WeightsError(nnunet_messages.NO_MODEL_FOLDER.format(folder=str(root), command=COMMAND))
    matches = [(folder, of) for folder, of in step_folders(root) if step in (None, of)]
    if not matches:
        wanted = f"step {step}" if step else "step 1 or 2"
        raise WeightsError(nnunet_messages.NO_MODEL.format(wanted=wanted, folder=str(root), command=COMMAND))
    if len(matches) > 1:
        names = sorted(folder.name for folder, _ in matches)
        raise WeightsError(nnunet_messages.SEVERAL_MODELS.format(folder=str(root), names=names))
    return matches[0]


def step_folders(root: Path) -> list[tuple[Path, int]]:
    """Return all model folders of step 1 or 2 at or below a folder, with their step; other models are skipped."""
    found = [(folder, _step_of(folder)) for folder in _candidates(root, SEARCH_DEPTH)]
    return [(folder, step) for folder, step in found if step is not None]


def _candidates(root: Path, depth: int) -> list[Path]:
    if (root / "plans.json").is_file() and (root / "dataset.json").is_file():
        return [root]
    if depth == 0:
        return []
    children = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [folder for child in children for folder in _candidates(child, depth - 1)]


def _step_of(folder: Path) -> int | None:
    """Return the step with the regions, in order, and the channels of a dataset.json; None if it is neither.

    Names of regions do not matter: the classes of a region define its channel.
    """
    dataset = read_model_json(folder / "dataset.json")
    labels = dataset.get("labels")
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        return None
    regions = region_classes(labels)
    for step, expected in STEP_REGIONS.items():
        if regions == list(expected.values()) and len(channels) == STEP_CHANNELS[step]:
            return step
    return None


def region_classes(labels: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the classes of each region of a dataset.json, in the order of the network's channels."""
    return [_classes(value) for name, value in labels.items() if name not in ("background", "ignore")]


def _classes(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def find_checkpoint(folder: Path) -> Path:
    """Return the checkpoint to use: fold 0 first, then "all", then the others.

    In a fold the final checkpoint comes before the best one, except in a folder of TotalSpineSeg's trainer.

    Raises:
        WeightsError: There is none.
    """
    folds = sorted(folder.glob("fold_*"), key=lambda fold: (fold.name != "fold_0", fold.name != "fold_all", fold.name))
    names = CHECKPOINTS[::-1] if folder.name.startswith(BEST_TRAINERS) else CHECKPOINTS
    for fold in folds:
        for name in names:
            if (fold / name).is_file():
                return fold / name
    raise WeightsError(nnunet_messages.NO_CHECKPOINT.format(folder=folder.name, name=CHECKPOINTS[0]))


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model.

    Raises:
        WeightsError: The file is missing, damaged, cannot be read, or holds something else.
    """
    try:
        return read_json(path, nnunet_messages.INSTALL_AGAIN)
    except StorageError as error:
        raise WeightsError(str(error)) from error


def read_trust(folder: Path) -> Trust:
    """Return how far a model's classes are trusted.

    Args:
        folder: Folder with plans.json.

    Returns:
        ``UNMEASURED`` if there is no such file.

    Raises:
        WeightsError: The file is damaged.
    """
    path = folder / TRUST_FILE
    if not path.exists():
        return UNMEASURED
    try:
        content = load_json(path, nnunet_messages.CALIBRATE_AGAIN.format(command=COMMAND))
    except StorageError as error:
        raise WeightsError(str(error)) from error
    return trust_from_json(content, source=TRUST_FILE)


def write_trust(folder: Path, trust: Trust) -> None:
    """Write the file in one step; running servers use it from their next request on.

    Raises:
        StorageError: It cannot be written.
    """
    write_json(folder / TRUST_FILE, trust.as_json())


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
