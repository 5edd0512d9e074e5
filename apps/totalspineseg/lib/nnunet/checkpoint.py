"""Reading nnU-Net checkpoints without running anything they contain."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from lib.errors import WeightsError
from lib.nnunet.discovery import region_classes
from lib.nnunet.numpy_pickles import allowed_globals

SHOWN: Final = ("spacing", "normalization_schemes", "use_mask_for_norm", "transpose_forward")
"""What of the plans decides about the images a network is shown."""


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint as plain data.

    Args:
        path: ``checkpoint_final.pth`` or ``checkpoint_best.pth``.

    Returns:
        The checkpoint's dictionary, tensors on the CPU and, where the format allows, mapped from the file.

    Raises:
        WeightsError: The file is missing, damaged, holds anything but plain data, or is no nnU-Net checkpoint.
    """
    try:
        # nnU-Net's log holds scores as numbers and arrays of numpy.
        with torch.serialization.safe_globals(allowed_globals()):
            # Mapping keeps the optimizer's state (twice the size of the weights) on disk.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"a checkpoint must hold tensors and plain values only, got {path.name!r} which asks to run other code "
            "or is damaged; do not use it, and fetch the file again from its source"
        ) from error
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"a readable checkpoint is required, got {path.name!r} ({_short(error)}); install the weights again"
        ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("network_weights"), Mapping):
        raise WeightsError(
            f"an nnU-Net checkpoint with 'network_weights' is required, got {path.name!r} without; "
            "install the weights again"
        )
    return content


def float32_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The network's tensors; half-precision ones become float32, which is what the CPU computes in.

    Args:
        checkpoint: From ``load_checkpoint``. Not modified.

    Raises:
        WeightsError: An entry is not a tensor, or holds values that are not finite.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, value in checkpoint["network_weights"].items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"network weights must be tensors, got {type(value).__name__} for {name!r}; install the weights again"
            )
        weights[name] = value.float() if value.is_floating_point() else value
        if not bool(torch.isfinite(weights[name]).all()):
            raise WeightsError(
                f"network weights must be finite, got NaN or infinity in {name!r}; install the weights again"
            )
    return weights


def trained_with(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a network was shown and asked for while it was trained, as far as its checkpoint tells.

    Args:
        checkpoint: From ``load_checkpoint``. Not modified.

    Returns:
        Some of ``SHOWN``, as in plans.json, and "labels", the classes of the regions in order; empty where it tells
        nothing.
    """
    try:
        told = checkpoint["init_args"]
        plans, labels = told["plans"], told["dataset_json"]["labels"]
        own = {**plans["configurations"][told["configuration"]], "transpose_forward": plans.get("transpose_forward")}
        return {key: list(own[key]) for key in SHOWN if own.get(key) is not None} | {"labels": region_classes(labels)}
    except (KeyError, TypeError, AttributeError):
        return {}


def _short(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0][:120] if text else type(error).__name__
