"""Read nnU-Net checkpoints without running any code in them."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet.discovery import region_classes
from totalspineseg_server.nnunet.numpy_pickles import allowed_globals

INPUT_PLANS: Final = ("spacing", "normalization_schemes", "use_mask_for_norm", "transpose_forward")
"""Entries of the plans that determine the images a network gets."""


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint as plain data.

    Args:
        path: ``checkpoint_final.pth`` or ``checkpoint_best.pth``.

    Returns:
        The checkpoint's dictionary, with tensors on the CPU and, if the format allows it, mapped from the file.

    Raises:
        WeightsError: The file is missing, damaged, has anything but plain data, or is not an nnU-Net checkpoint.
    """
    try:
        # nnU-Net's log, in the checkpoint, has scores as numbers and arrays of numpy.
        with torch.serialization.safe_globals(allowed_globals()):
            # Mapping keeps the optimizer's state (twice the size of the weights) on disk.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"The checkpoint {path.name!r} would run other code or is damaged: it has more than tensors and plain "
            "values. Do not use it. Fetch the file again from its source."
        ) from error
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"The checkpoint {path.name!r} cannot be read ({_short(error)}). Install the weights again."
        ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("network_weights"), Mapping):
        raise WeightsError(
            f"{path.name!r} is not an nnU-Net checkpoint: it has no 'network_weights'. Install the weights again."
        )
    return content


def float32_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the network's tensors, half-precision ones as float32, because CPUs compute in float32.

    Args:
        checkpoint: From ``load_checkpoint``. Not modified.

    Raises:
        WeightsError: An entry is not a tensor, or has values that are not finite.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, value in checkpoint["network_weights"].items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"The network weights {name!r} are not a tensor but {type(value).__name__}. Install the weights again."
            )
        weights[name] = value.float() if value.is_floating_point() else value
        if not bool(torch.isfinite(weights[name]).all()):
            raise WeightsError(f"The network weights {name!r} have NaN or infinity. Install the weights again.")
    return weights


def trained_with(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input and regions with which a network was trained, if its checkpoint records them.

    Args:
        checkpoint: From ``load_checkpoint``. Not modified.

    Returns:
        Some of ``INPUT_PLANS``, as in plans.json, and "labels", the classes of the regions in order; empty if the
        checkpoint records nothing.
    """
    try:
        arguments = checkpoint["init_args"]
        plans, labels = arguments["plans"], arguments["dataset_json"]["labels"]
        own = {
            **plans["configurations"][arguments["configuration"]],
            "transpose_forward": plans.get("transpose_forward"),
        }
        return {key: list(own[key]) for key in INPUT_PLANS if own.get(key) is not None} | {
            "labels": region_classes(labels)
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def _short(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0][:120] if text else type(error).__name__
