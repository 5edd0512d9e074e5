"""Stand in for a GPU: its tensors compute on the CPU, what moves is counted, and mixing devices fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from totalspineseg_server.nnunet import predictor

GPU: Final = torch.device("cuda", 0)
aten: Final = torch.ops.aten


class OnGpu(torch.Tensor):
    """A tensor that says that it is on the GPU."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "OnGpu":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[no-any-return, attr-defined]
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device="meta",
        )

    def __init__(self, real: torch.Tensor) -> None:
        self.on_cpu = real

    @property
    def device(self) -> torch.device:
        """The GPU. PyTorch itself sees the device "meta", for which it calls no driver."""
        return GPU

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called after the GPU was gone")


class Gpu(TorchDispatchMode):  # type: ignore[misc]
    """Computes what a GPU would.

    Attributes:
        up: Number of voxels of each tensor that was moved to the GPU.
        down: Number of voxels of each tensor that was moved to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up: list[int] = []
        self.down: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        was_on_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        device = kwargs.get("device")
        is_on_gpu = was_on_gpu if device is None else torch.device(device).type == "cuda"
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[-1] if func is aten.copy_.default else args[0]
            from_gpu = isinstance(source, OnGpu)
            to_gpu = isinstance(args[0], OnGpu) if func is aten.copy_.default else is_on_gpu
            if from_gpu != to_gpu:
                (self.up if to_gpu else self.down).append(source.numel())
        elif is_on_gpu and func is not aten.index.Tensor:
            mixed = [t for t in tensors if t.dim() and not isinstance(t, (OnGpu, torch.nn.Parameter))]
            assert not mixed, f"{func} got tensors of both devices"
        found = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        if any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments):
            return args[0]
        return tree_map(OnGpu, found) if is_on_gpu and func is not aten._local_scalar_dense.default else found


def _real(value: Any) -> Any:
    return value.on_cpu if isinstance(value, OnGpu) else value


@contextmanager
def gpu(patch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Let predictors compute on the stand-in while this block runs; networks with weights work on it, too."""
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(predictor, "resolve_device", lambda *_: GPU)
    # Views of such tensors cannot be made in inference mode.
    patch.setattr(torch, "inference_mode", torch.no_grad)
    patch.setattr(torch.nn.Module, "to", lambda self, device: self)
    with Gpu() as mode:
        yield mode
