"""Choose the software that runs the networks: PyTorch, or OpenVINO on machines without a GPU."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from totalspineseg_server.errors import TotalSpineSegError, WeightsError
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.discovery import ModelFiles
from totalspineseg_server.nnunet.fast_ways import (
    HALF,
    INT8,
    is_allowed,
    openvino_release,
    release_of,
    seconds_of_a_tile,
)
from totalspineseg_server.nnunet.openvino_cache import cached, entry_key
from totalspineseg_server.places import COMMAND

if TYPE_CHECKING:
    import torch

Runtime = Literal["torch", "torch-half", "openvino", "openvino-int8"]
AskedRuntime = Literal["auto", "torch", "openvino", "openvino-int8"]
AUTO: Final = "auto"
RUNTIMES: Final[tuple[AskedRuntime, ...]] = (AUTO, "torch", "openvino", "openvino-int8")
"""Runtimes to choose from; the first one is the default."""


def runtime_of(name: str) -> AskedRuntime:
    """Return the runtime of that name; "" is the default.

    Raises:
        ValueError: There is no such runtime.
    """
    for runtime in RUNTIMES:
        if name in (runtime, ""):
            return runtime
    raise ValueError(f"expected runtime {' or '.join(RUNTIMES)}, got {name!r}")


def chosen(asked: AskedRuntime | Runtime, device: str, model: ModelFiles) -> Runtime:
    """Return the runtime for a network.

    "auto" is half precision on a GPU if its results were compared with the exact ones, OpenVINO where that was measured
    to be faster on this machine and the network is converted already, and PyTorch everywhere else. "openvino-int8"
    means OpenVINO in single precision for weights whose INT8 results were not compared with the exact ones, such as
    those that a training has just published.

    Args:
        asked: The user's choice.
        device: "auto", "cpu", "cuda", "cuda:1".
        model: The network's weights; they are read only if a conversion or a comparison may belong to them.
    """
    if asked == AUTO:
        if is_allowed(model, HALF) and resolve_device(device).type == "cuda":
            return HALF
        is_ready = openvino_is_faster(device, model.path) and cached(
            model.path, entry_key(model.digest, openvino_release())
        )
        return "openvino" if is_ready else "torch"
    if asked == INT8:
        return INT8 if is_allowed(model, INT8) else "openvino"
    return asked


def chosen_for_all(asked: AskedRuntime, device: str, models: Iterable[ModelFiles]) -> Runtime:
    """Return one runtime for all networks of a run, so that every machine computes with the same.

    Args:
        asked: The user's choice.
        device: "auto", "cpu", "cuda", "cuda:1".
        models: Weights of the steps of the run.

    Raises:
        TotalSpineSegError: The device does not exist or does not fit the runtime.
        WeightsError: INT8 may not be used.
    """
    found = set[Runtime]()
    for model in models:
        require_compared(asked, model)
        try:
            found.add(chosen(asked, device, model))
        except ValueError as error:
            raise TotalSpineSegError(str(error)) from error
    return found.pop() if len(found) == 1 else "torch"


def openvino_is_faster(device: str, folder: Path) -> bool:
    """Return whether OpenVINO was measured to be faster than PyTorch here.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1".
        folder: Folder of the network's plans.json.
    """
    seconds = seconds_of_a_tile(folder) if openvino_release() else {}
    is_faster = seconds.get("openvino", 0) < seconds.get("torch", 0)
    return is_faster and resolve_device(device, AUTO).type == "cpu"


def require_compared(asked: AskedRuntime, model: ModelFiles) -> None:
    """Check that INT8 may be used if somebody asks for it; see ``chosen`` for the arguments.

    Raises:
        WeightsError: INT8 results were not compared with the exact ones for these weights, or differ too much.
    """
    if asked == INT8 and not is_allowed(model, INT8):
        raise WeightsError(nnunet_messages.INT8_NOT_COMPARED.format(name=model.name, command=COMMAND))


def require(device: str, runtime: AskedRuntime) -> None:
    """Check a runtime and device before they are used.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1".
        runtime: The user's choice.

    Raises:
        TotalSpineSegError: The device does not exist or does not fit the runtime.
        WeightsError: The runtime is not installed.
    """
    try:
        resolve_device(device, runtime)
    except ValueError as error:
        raise TotalSpineSegError(str(error)) from error
    if runtime.startswith("openvino"):
        from totalspineseg_server.nnunet.openvino_network import require_openvino

        require_openvino()


def with_runtime(version: str, runtime: Runtime) -> str:
    """Return the version of the weights; a runtime other than PyTorch in single precision is added
    ("starter-1a2b3c4d@openvino-2026.4.1").

    Other releases may round differently, so runs over many machines must have the same runtime.
    """
    if runtime == "torch":
        return version
    release = release_of(runtime)
    return f"{version}@{runtime}-{release}" if release else f"{version}@{runtime}"


def resolve_device(device: str, runtime: AskedRuntime | Runtime = "torch") -> "torch.device":
    """Return the device with this name; "auto" is the GPU if there is one and the runtime can use it.

    Raises:
        ValueError: The name is unknown, there is no such device, or the runtime cannot use it.
    """
    # Import PyTorch here, so that the command line's help need not wait for it.
    import torch

    if device == "auto":
        device = "cuda" if not runtime.startswith("openvino") and torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device 'auto', 'cpu' or 'cuda', got {device!r}")
    if resolved.type == "cpu" and runtime == HALF:
        raise ValueError(nnunet_messages.GPU_ONLY)
    if resolved.type == "cuda" and runtime.startswith("openvino"):
        raise ValueError(nnunet_messages.CPU_ONLY.format(runtime=runtime, device=device))
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(nnunet_messages.NO_GPU.format(device=device))
    return resolved
