"""Find, check and write nnU-Net model folders, build their networks, and put checked versions into use.

The trainer class in a checkpoint is never looked up: the network is built from the plans.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import copy_file, write_file
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.checkpoint import float32_weights, load_checkpoint, trained_with
from totalspineseg_server.nnunet.discovery import (
    STEP_CHANNELS,
    STEP_CLASSES,
    STEP_REGIONS,
    ModelFiles,
    find_checkpoint,
    find_model,
    read_model_json,
    read_trust,
    step_folders,
    write_trust,
)
from totalspineseg_server.registry.manage import require_known, require_served
from totalspineseg_server.registry.model_store import ModelStore, dataset_name
from totalspineseg_server.registry.releases import require_one_release
from totalspineseg_server.trust import Trust

CONFIGURATION: Final = "3d_fullres"
"""nnU-Net's configuration if the folder's name does not state one."""
NETWORKS: Final = re.compile(r"dynamic_network_architectures\.architectures\.\w+\.[A-Z]\w+")
MODULES: Final = re.compile(r"torch\.nn\.(?:modules\.\w+\.)?[A-Z]\w+")
"""Classes that a plans file may name. The file comes from outside, and the classes it names are called."""
NORMALIZATIONS: Final = ("ZScoreNormalization", "NoNormalization")
CHECKPOINT_ENTRIES: Final = ("init_args", "inference_allowed_mirroring_axes", "current_epoch", "logging", "_best_ema")
"""Entries of a checkpoint that are kept: those for inference and the history, without the optimizer's state."""
STOCK_TRAINER: Final = "nnUNetTrainer"
"""Name of the trainer in written checkpoints: nnU-Net looks for this class before it predicts, and has only its own."""


@dataclass(frozen=True)
class ModelFolder(ModelFiles):
    """One trained step on disk.

    Attributes:
        step: 1 or 2.
        configuration: nnU-Net's configuration, resolved: patch, spacing (mm) and normalization, axes as in the plans.
        regions: Region names in the order of the network's channels.
        region_classes: The class of each region, in the same order; later regions overwrite earlier ones.
        transpose: Axis order of the network relative to (Z, Y, X).
    """

    step: int
    configuration: Mapping[str, Any]
    regions: tuple[str, ...]
    region_classes: tuple[int, ...]
    transpose: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path | str, *, step: int | None = None, name: str | None = None) -> "ModelFolder":
        """Find and check a model folder, without reading its weights.

        Args:
            path: The folder with plans.json, or a folder that contains it at most four levels down.
            step: Step of the model; None for the only model there is.
            name: Name of the weights in ``version``; None for the folder's name.

        Raises:
            WeightsError: There is no such folder, or it is not a model of that step.
        """
        root = Path(path)
        folder, found_step = find_model(root, step)
        dataset = read_model_json(folder / "dataset.json")
        plans = read_model_json(folder / "plans.json")
        try:
            configuration = _configuration(plans, _configuration_name(folder, plans))
            axes = tuple(int(axis) for axis in plans.get("transpose_forward", (0, 1, 2)))
            classes = tuple(int(value) for value in dataset["regions_class_order"])
        except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise WeightsError(nnunet_messages.UNUSABLE_PLANS.format(folder=folder.name, error=error)) from error
        _check_configuration(configuration, axes, found_step, folder)
        if classes != STEP_CLASSES[found_step]:
            raise WeightsError(
                nnunet_messages.OTHER_REGIONS.format(
                    folder=folder.name, found=classes, expected=STEP_CLASSES[found_step]
                )
            )
        return cls(
            path=folder,
            step=found_step,
            name=name or root.name,
            checkpoint=find_checkpoint(folder),
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
        """Voxel size of the network's input, in the network's axes, mm."""
        z, y, x = (float(mm) for mm in self.configuration["spacing"])
        return z, y, x

    @property
    def trust(self) -> Trust:
        """The measured trust in its predictions.

        Raises:
            WeightsError: The file with the trust is damaged.
        """
        return read_trust(self.path)

    def load_network(self) -> torch.nn.Module:
        """Build the network of the plans with the checkpoint's weights: float32, on the CPU, in evaluation mode.

        Raises:
            WeightsError: The checkpoint is damaged, unsafe, does not fit the plans, or was trained with other plans.
        """
        architecture = self.configuration["architecture"]
        checkpoint = load_checkpoint(self.checkpoint)
        self._require_own_plans(checkpoint)
        weights = float32_weights(checkpoint)
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
                nnunet_messages.OTHER_PLANS.format(
                    checkpoint=self.checkpoint.name, folder=self.path.name, reason=str(error).splitlines()[0][:120]
                )
            ) from error
        return network.eval().requires_grad_(False)

    def _require_own_plans(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that the files beside a checkpoint are those with which it was trained.

        The same weights fit the networks of many plans. With the wrong plans they would silently get images of another
        spacing.
        """
        here = {**self.configuration, "transpose_forward": list(self.transpose)}
        here["labels"] = list(STEP_REGIONS[self.step].values())
        for key, value in trained_with(checkpoint).items():
            if value != here.get(key):
                raise WeightsError(
                    nnunet_messages.CHANGED_PLANS.format(
                        folder=self.path.name, checkpoint=self.checkpoint.name, key=key, value=value
                    )
                )


def models_in(root: Path) -> dict[int, ModelFolder]:
    """Return the models of a version, by step.

    Args:
        root: Folder with the models, at most four levels down.

    Returns:
        One or two models; empty if there is none.

    Raises:
        WeightsError: There are two of one step, or one that cannot be used: then the other is not returned either,
            because both were trained and judged as a pair.
    """
    steps = [step for _, step in step_folders(root)]
    return {step: ModelFolder.open(root, step=step) for step in sorted(set(steps))}


def models_in_use(store: ModelStore) -> dict[int, ModelFolder]:
    """Return the model in use for each step.

    Raises:
        WeightsError: A step has no usable model.
    """
    choices = {step: store.resolve(step) for step in STEP_CHANNELS}
    return {step: ModelFolder.open(choice.root, step=step, name=choice.name) for step, choice in choices.items()}


def models_of(store: ModelStore, name: str) -> dict[int, ModelFolder]:
    """Return the models of an existing version, by step; at least one.

    Raises:
        WeightsError: There is no such version, or it has no model, or a model that cannot be used.
    """
    require_known(store, name)
    models = models_in(store.named(name).root)
    if not models:
        raise WeightsError(nnunet_messages.UNUSABLE_VERSION.format(name=name))
    return models


def _configuration_name(folder: Path, plans: Mapping[str, Any]) -> str:
    """Return the configuration at the end of the folder's name (Trainer__Plans__Configuration), else the only one."""
    names = list(plans["configurations"])
    last = folder.name.rpartition("__")[2]
    if last in names:
        return last
    return str(names[0]) if len(names) == 1 else CONFIGURATION


def _configuration(plans: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return nnU-Net's configuration, resolved."""
    found = plans["configurations"][name]
    if isinstance(found, dict) and "architecture" in found and "inherits_from" not in found:
        return found
    # nnU-Net's own reader knows inheritance and older releases, but takes half a second to import.
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved: Mapping[str, Any] = PlansManager(plans).get_configuration(name).configuration
    return resolved


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
        problem = nnunet_messages.PATCH_AND_SPACING.format(
            patch=configuration.get("patch_size"), spacing=configuration.get("spacing")
        )
    elif sorted(axes) != [0, 1, 2]:
        problem = f"axis order {axes!r}"
    elif configuration.get("previous_stage"):
        problem = "a cascade"
    if problem:
        raise WeightsError(nnunet_messages.NO_STOCK_NETWORK.format(folder=folder.name, step=step, problem=problem))


def activate(store: ModelStore, name: str, *, force: bool = False) -> tuple[int, ...]:
    """Put a version into use for the steps it has.

    Args:
        store: The versions.
        name: "starter" or a version's name.
        force: Whether to put it into use even if the gate refused it.

    Returns:
        The steps.

    Raises:
        WeightsError: There is no such version, it cannot be used, the gate refused it, or the steps would come from
            different releases.
        StorageError: It could not be written; the versions in use are those from before.
    """
    if not force:
        require_served(store, name)
    steps = tuple(models_of(store, name))
    require_one_release(store, {**store.active(), **dict.fromkeys(steps, name)})
    store.activate(name, steps=steps)
    return steps


def write_candidate(parent: ModelFolder, weights: Mapping[str, torch.Tensor], target: Path, trust: Trust) -> Path:
    """Write a model folder with new weights.

    Args:
        parent: The model from which the training started. Not modified.
        weights: New weights, under the parent's names.
        target: Folder to write below; it is made if it is missing.
        trust: How far the new weights are trusted.

    Returns:
        The model folder in a folder of its dataset, named as nnU-Net's own tools expect it.

    Raises:
        StorageError: It cannot be written.
        WeightsError: The parent's checkpoint cannot be read.
    """
    # Use a folder for each step, because two models in plain folders may have the same name.
    folder = target / dataset_name(parent.step) / stock_name(parent)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        copy_file(parent.path / name, folder / name)
    write_trust(folder, trust)
    content = stock_checkpoint(load_checkpoint(parent.checkpoint), weights)
    write_file(folder / "fold_0" / "checkpoint_final.pth", lambda temporary: torch.save(content, temporary))
    return folder


def stock_checkpoint(checkpoint: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return a checkpoint that nnU-Net loads without the class that trained it.

    Args:
        checkpoint: From ``load_checkpoint``. Not modified.
        weights: The network's tensors, under the names of the checkpoint's.
    """
    entries = {key: checkpoint[key] for key in CHECKPOINT_ENTRIES if key in checkpoint}
    return {**entries, "trainer_name": STOCK_TRAINER, "network_weights": _stored_once(weights, checkpoint)}


def _stored_once(weights: Mapping[str, torch.Tensor], checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Let all names of a tensor share it again; otherwise the file is almost four times as large."""
    known = checkpoint["network_weights"]
    first: dict[tuple[int, int, torch.Size], torch.Tensor] = {}
    shared = {}
    for name, value in weights.items():
        stored = known[name]
        place = stored.untyped_storage().data_ptr(), stored.storage_offset(), stored.shape
        same = first.setdefault(place, value)
        shared[name] = same if torch.equal(same, value) else value
    return shared


def stock_name(model: ModelFolder) -> str:
    """Return a model's folder name (trainer, plans, configuration) with nnU-Net's own trainer in it."""
    parts = model.path.name.split("__")
    plans, configuration = parts[1:] if len(parts) == 3 else ("nnUNetPlans", CONFIGURATION)
    return f"{STOCK_TRAINER}__{plans}__{configuration}"


def mixed_weights(parent: ModelFolder, trained: ModelFolder, share: float) -> dict[str, torch.Tensor]:
    """Return a mean of the weights of two models with the same architecture.

    Args:
        parent: The model from which the training started. Not modified.
        trained: The trained model. Not modified.
        share: Share of the trained weights, 0 to 1.

    Returns:
        float32 tensors under the parent's names.

    Raises:
        WeightsError: A checkpoint cannot be read.
    """
    old, new = (float32_weights(load_checkpoint(model.checkpoint)) for model in (parent, trained))
    return {name: torch.lerp(value, new[name], share) for name, value in old.items()}
