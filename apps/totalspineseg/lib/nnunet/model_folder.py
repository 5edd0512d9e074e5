"""Model folders as nnU-Net writes them: found, checked, and turned into a network.

The trainer class a checkpoint names is never looked up: the network is the one of the plans.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from lib.anatomy import STEP1_REGIONS, STEP2_REGIONS
from lib.errors import WeightsError
from lib.nnunet.checkpoint import float32_weights, load_checkpoint
from lib.nnunet.hashing import sha256_of

STEP_REGIONS: Final[Mapping[int, Mapping[str, tuple[int, ...]]]] = {1: STEP1_REGIONS, 2: STEP2_REGIONS}
STEP_CHANNELS: Final[Mapping[int, int]] = {1: 1, 2: 2}
"""Input channels: the image, and in step 2 the odd discs."""
CHECKPOINTS: Final = ("checkpoint_final.pth", "checkpoint_best.pth")
"""In the order of preference."""
CONFIGURATION: Final = "3d_fullres"
"""nnU-Net's configuration when the folder's name does not say."""
SEARCH_DEPTH: Final = 4
"""Folders below the given one that are searched: Dataset, trainer, and one each a zip and an install add."""
NETWORKS: Final = re.compile(r"dynamic_network_architectures\.architectures\.\w+\.\w+")
MODULES: Final = re.compile(r"torch\.nn\.[\w.]+")
"""What a plans file may name: the plans come from outside, and naming a class is calling it."""
NORMALIZATIONS: Final = ("ZScoreNormalization", "NoNormalization")


@dataclass(frozen=True)
class ModelFolder:
    """One trained step on disk.

    Attributes:
        path: Folder that holds plans.json and dataset.json.
        step: 1 or 2.
        name: Which weights these are, such as "starter" or "official-r20251124".
        checkpoint: The file the weights come from.
        configuration: nnU-Net's configuration, resolved: patch, spacing (mm) and normalization, axes as in the plans.
        regions: Region names in the order of the network's channels.
        region_classes: The class each region writes, in the same order; later regions overwrite earlier ones.
        transpose: Axis order of the network relative to (Z, Y, X).
    """

    path: Path
    step: int
    name: str
    checkpoint: Path
    configuration: Mapping[str, Any]
    regions: tuple[str, ...]
    region_classes: tuple[int, ...]
    transpose: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path | str, *, step: int | None = None, name: str | None = None) -> "ModelFolder":
        """Find and check a model folder, without reading its weights.

        Args:
            path: The folder with plans.json, or one that holds it at most four levels down.
            step: Which step's model is wanted; None takes the only one there is.
            name: What to call the weights in ``version``; None takes the folder's name.

        Raises:
            WeightsError: There is no such folder, or it is not a model of that step.
        """
        root = Path(path)
        folder, found_step = _find(root, step)
        dataset = _read_json(folder / "dataset.json")
        plans = _read_json(folder / "plans.json")
        try:
            configuration = PlansManager(plans).get_configuration(_configuration_name(folder, plans)).configuration
            axes = tuple(int(axis) for axis in plans.get("transpose_forward", (0, 1, 2)))
            classes = tuple(int(value) for value in dataset["regions_class_order"])
        except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise WeightsError(
                f"a plans.json and dataset.json of nnU-Net 2 are required, got {folder.name!r} with {error!r}; "
                "install the weights again"
            ) from error
        _check_configuration(configuration, axes, found_step, folder)
        if len(classes) != len(STEP_REGIONS[found_step]) or not all(0 < value < 256 for value in classes):
            raise WeightsError(
                f"regions_class_order must name one class per region, got {classes!r} in {folder.name!r}"
            )
        return cls(
            path=folder,
            step=found_step,
            name=name or root.name,
            checkpoint=_checkpoint(folder),
            configuration=configuration,
            regions=tuple(STEP_REGIONS[found_step]),
            region_classes=classes,
            transpose=(axes[0], axes[1], axes[2]),
        )

    @property
    def patch(self) -> tuple[int, int, int]:
        """Tile size in the network's axes, voxels."""
        z, y, x = (int(n) for n in self.configuration["patch_size"])
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size the network works at, in the network's axes, mm."""
        z, y, x = (float(mm) for mm in self.configuration["spacing"])
        return z, y, x

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over plans, dataset and checkpoint; reads the checkpoint once."""
        digest = hashlib.sha256()
        for file in (self.path / "plans.json", self.path / "dataset.json", self.checkpoint):
            digest.update(bytes.fromhex(sha256_of(file)))
        return digest.hexdigest()

    @property
    def version(self) -> str:
        """Name and the first eight digits of the digest, such as "starter-1a2b3c4d"."""
        return f"{self.name}-{self.digest[:8]}"

    def load_network(self) -> torch.nn.Module:
        """Build the network of the plans with the checkpoint's weights: float32, on the CPU, in evaluation mode.

        Raises:
            WeightsError: The checkpoint is damaged, unsafe, or does not fit the plans.
        """
        architecture = self.configuration["architecture"]
        weights = float32_weights(load_checkpoint(self.checkpoint))
        try:
            network = get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                STEP_CHANNELS[self.step],
                len(self.regions),
                allow_init=False,
                deep_supervision=False,
            )
            network.load_state_dict(weights)
        except (RuntimeError, TypeError, KeyError, AssertionError, ImportError, AttributeError, ValueError) as error:
            raise WeightsError(
                f"the checkpoint {self.checkpoint.name!r} must fit the plans beside it, got a mismatch in "
                f"{self.path.name!r} ({str(error).splitlines()[0][:120]}); install the weights again"
            ) from error
        return network.eval().requires_grad_(False)


def _find(root: Path, step: int | None) -> tuple[Path, int]:
    """The model folder of ``step`` at or below ``root``, and its step."""
    if not root.is_dir():
        raise WeightsError(
            f"a model folder is required, got {str(root)!r} which does not exist; run 'totalspineseg weights install'"
        )
    found = [(folder, _step_of(folder)) for folder in _candidates(root, SEARCH_DEPTH)]
    matches = [(folder, of) for folder, of in found if of is not None and step in (None, of)]
    if not matches:
        wanted = f"step {step}" if step else "step 1 or 2"
        raise WeightsError(
            f"a model folder of {wanted} (plans.json, and dataset.json with the regions of TotalSpineSeg in order) is "
            f"required, got none in {str(root)!r}; run 'totalspineseg weights install'"
        )
    if len(matches) > 1:
        names = sorted(folder.name for folder, _ in matches)
        raise WeightsError(f"one model folder is required, got {names!r} in {str(root)!r}; name the one to use")
    folder, of = matches[0]
    return folder, of or 0


def _candidates(root: Path, depth: int) -> list[Path]:
    if (root / "plans.json").is_file() and (root / "dataset.json").is_file():
        return [root]
    if depth == 0:
        return []
    children = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [folder for child in children for folder in _candidates(child, depth - 1)]


def _step_of(folder: Path) -> int | None:
    """Which step's regions and channels a dataset.json declares, in the right order; None: neither's."""
    dataset = _read_json(folder / "dataset.json")
    labels = dataset.get("labels")
    if not isinstance(labels, dict):
        return None
    regions = [(name, _as_tuple(value)) for name, value in labels.items() if name not in ("background", "ignore")]
    channels = len(dataset.get("channel_names", dataset.get("modality", ())))
    for step, expected in STEP_REGIONS.items():
        if regions == list(expected.items()) and channels == STEP_CHANNELS[step]:
            return step
    return None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _configuration_name(folder: Path, plans: Mapping[str, Any]) -> str:
    """The configuration the folder's name ends with (Trainer__Plans__Configuration), else the only one."""
    names = list(plans["configurations"])
    last = folder.name.rpartition("__")[2]
    if last in names:
        return last
    return str(names[0]) if len(names) == 1 else CONFIGURATION


def _check_configuration(configuration: Mapping[str, Any], axes: tuple[int, ...], step: int, folder: Path) -> None:
    architecture = configuration.get("architecture", {})
    network = architecture.get("network_class_name", "")
    imports = [architecture.get("arch_kwargs", {}).get(key) for key in architecture.get("_kw_requires_import", ())]
    schemes = configuration.get("normalization_schemes", [])
    problem = None
    if not NETWORKS.fullmatch(str(network)):
        problem = f"network class {network!r}"
    elif strangers := [name for name in imports if name is not None and not MODULES.fullmatch(str(name))]:
        problem = f"building blocks {strangers!r}"
    elif len(schemes) != STEP_CHANNELS[step] or not set(schemes) <= set(NORMALIZATIONS):
        problem = f"normalization {schemes!r}"
    elif len(configuration.get("patch_size", ())) != 3 or len(configuration.get("spacing", ())) != 3:
        problem = f"patch {configuration.get('patch_size')!r} and spacing {configuration.get('spacing')!r}"
    elif sorted(axes) != [0, 1, 2]:
        problem = f"axis order {axes!r}"
    elif configuration.get("previous_stage"):
        problem = "a cascade"
    if problem:
        raise WeightsError(
            f"a 3D nnU-Net model of step {step} with a stock network is required, got {problem} in {folder.name!r}"
        )


def _checkpoint(folder: Path) -> Path:
    """The checkpoint to use: fold 0 first, then "all", then the others; final before best."""
    folds = sorted(folder.glob("fold_*"), key=lambda fold: (fold.name != "fold_0", fold.name != "fold_all", fold.name))
    for fold in folds:
        for name in CHECKPOINTS:
            if (fold / name).is_file():
                return fold / name
    raise WeightsError(f"fold_0/{CHECKPOINTS[0]} is required, got none in {folder.name!r}; install the weights again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"a readable {path.name} is required, got a damaged one in {path.parent.name!r}; install the weights again"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path.name} must hold a JSON object, got {type(content).__name__} in {path.parent.name!r}; "
            "install the weights again"
        )
    return content
