"""Read nnU-Net checkpoints without running any code in them: only plain numbers of numpy, and tensors, are built."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.discovery import region_classes

KINDS: Final = "biuf"
"""Booleans, integers and floating-point numbers."""
STATE_LENGTH: Final = 8
"""Number of entries in the state of a data type without units."""
INPUT_PLANS: Final = ("spacing", "normalization_schemes", "use_mask_for_norm", "transpose_forward")
"""Entries of the plans that determine the images a network gets."""


class PlainDtype:
    """A data type of plain numbers, used in place of ``numpy.dtype``.

    Args:
        name: Its name in numpy, such as "f8".
        align: Ignored: plain numbers have no fields.
        copy: Ignored.
    """

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        try:
            self.dtype: np.dtype[Any] = np.dtype(name)
        except (TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"expected a data type, got {name!r}") from error
        if self.dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"expected a data type of numbers, got {name!r}")

    def __setstate__(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) == STATE_LENGTH
        if not plain or state[1] not in ("<", ">", "|", "=") or state[2:] != (None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f"expected a plain data type, got the state {state!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(npt.NDArray[Any]):
    """An array of plain numbers, used in place of ``numpy.ndarray``; it is written as an array of numpy again."""

    def __setstate__(self, state: Any) -> None:
        """Set shape, data type and bytes, and check that they fit together."""
        try:
            _, shape, kind, is_fortran, data = state
            # This makes a new array, and fails if there are too few or too many bytes.
            array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if is_fortran else "C")
        except (AttributeError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"expected the bytes of an array of numbers ({error})") from error
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def empty_array(kind: Any, shape: Any, code: Any) -> PlainArray:
    """Begin an array, in place of numpy's ``_reconstruct``; its state follows.

    Raises:
        UnpicklingError: It would not become an array of numbers.
    """
    if kind is not PlainArray or shape != (0,):
        raise pickle.UnpicklingError(f"expected an array, got {kind!r} of shape {shape!r}")
    return PlainArray((0,), dtype=np.uint8)


def scalar(kind: Any, data: Any) -> np.generic:
    """Make one number, in place of numpy's ``scalar``.

    Raises:
        UnpicklingError: The bytes are not those of one number.
    """
    try:
        (number,) = np.frombuffer(data, kind.dtype)
    except (AttributeError, TypeError, ValueError) as error:
        raise pickle.UnpicklingError(f"expected the bytes of a number ({error})") from error
    value: np.generic = number
    return value


def no_bytes() -> bytes:
    """Make the bytes of an empty array, in place of ``bytes``."""
    return b""


def allowed_globals() -> list[tuple[Any, str]]:
    """Return the functions that ``torch.load`` may call, each under its names in numpy 1 and 2."""
    found: list[tuple[Any, str]] = [(PlainDtype, "numpy.dtype"), (PlainArray, "numpy.ndarray")]
    found += [(no_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")]
    for package in ("numpy.core", "numpy._core"):
        found += [(scalar, f"{package}.multiarray.scalar"), (empty_array, f"{package}.multiarray._reconstruct")]
    return found


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
        raise WeightsError(nnunet_messages.UNSAFE_CHECKPOINT.format(name=path.name)) from error
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            nnunet_messages.UNREADABLE_CHECKPOINT.format(name=path.name, reason=_short(error))
        ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("network_weights"), Mapping):
        raise WeightsError(nnunet_messages.NOT_A_CHECKPOINT.format(name=path.name))
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
            raise WeightsError(nnunet_messages.NO_TENSOR.format(name=name, kind=type(value).__name__))
        weights[name] = value.float() if value.is_floating_point() else value
        if not bool(torch.isfinite(weights[name]).all()):
            raise WeightsError(nnunet_messages.WEIGHTS_NOT_FINITE.format(name=name))
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
