"""Choose what runs the networks: PyTorch, or OpenVINO on machines without a GPU."""

from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal

from totalspineseg_server.errors import TotalSpineSegError

if TYPE_CHECKING:
    import torch

Runtime = Literal["torch", "openvino"]
RUNTIMES: Final[tuple[Runtime, ...]] = ("torch", "openvino")


def runtime_of(name: str) -> Runtime:
    """Return the runtime of that name; "" is PyTorch.

    Raises:
        ValueError: There is no such runtime.
    """
    for runtime in RUNTIMES:
        if name in (runtime, ""):
            return runtime
    raise ValueError(f"expected runtime {' or '.join(RUNTIMES)}, got {name!r}")


def require(device: str, runtime: Runtime) -> None:
    """Check a runtime and device before they are used.

    Raises:
        TotalSpineSegError: The device does not exist or does not fit the runtime.
        WeightsError: The runtime is not installed.
    """
    try:
        resolve_device(device, runtime)
    except ValueError as error:
        raise TotalSpineSegError(str(error)) from error
    if runtime == "openvino":
        from totalspineseg_server.nnunet.openvino_network import require_openvino

        require_openvino()


def with_runtime(version: str, runtime: Runtime) -> str:
    """Return the version of the weights; a runtime other than PyTorch is added ("starter-1a2b3c4d@openvino-2026.4.1").

    Other releases may round differently, so runs over many machines must have the same runtime.
    """
    if runtime == "torch":
        return version
    try:
        return f"{version}@{runtime}-{metadata.version(runtime)}"
    except metadata.PackageNotFoundError:
        return f"{version}@{runtime}"


def resolve_device(device: str, runtime: Runtime = "torch") -> "torch.device":
    """Return the device with this name; "auto" is the GPU if there is one and the runtime can use it.

    Raises:
        ValueError: The name is unknown, there is no such device, or the runtime cannot use it.
    """
    # Import PyTorch here, so that the command line's help need not wait for it.
    import torch

    if device == "auto":
        return torch.device("cuda" if runtime == "torch" and torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device 'auto', 'cpu' or 'cuda', got {device!r}")
    if resolved.type == "cuda" and runtime == "openvino":
        raise ValueError(
            f"Runtime 'openvino' runs on the CPU only, not on {device!r}. Use device 'cpu' or runtime 'torch'."
        )
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device {device!r} needs a CUDA GPU, and there is none. Use 'auto' or 'cpu'.")
    return resolved
