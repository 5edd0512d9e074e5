"""The networks of a run, loaded before its first scan."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lib.errors import ClusterError, TotalSpineSegError

if TYPE_CHECKING:
    from lib.nnunet.networks import Networks
    from lib.nnunet.runtimes import Runtime
    from lib.registry.store import ModelStore


def warm_networks(store: "ModelStore", versions: Mapping[str, str], *, device: str, runtime: "Runtime") -> "Networks":
    """Load the networks; this is the first thing of a run that imports torch.

    Args:
        store: Says which weights are in use.
        versions: "step1", "step2" -> what must be in use; a step that is left out is not loaded.
        device: "auto", "cpu", "cuda", "cuda:1".
        runtime: What computes the networks.

    Raises:
        ClusterError: Other weights are in use here.
        TotalSpineSegError: There is no such device.
        WeightsError: There are no usable weights.
    """
    from lib.nnunet.networks import Networks
    from lib.nnunet.runtimes import resolve_device

    try:
        resolve_device(device, runtime)
    except ValueError as error:
        raise TotalSpineSegError(str(error)) from error
    networks = Networks(store, device=device, runtime=runtime)
    for name, version in versions.items():
        found = networks.get(1 if name == "step1" else 2).version
        if found != version:
            raise ClusterError(f"the weights {version!r} are required wherever the run works, got {found!r}; copy them")
    return networks
