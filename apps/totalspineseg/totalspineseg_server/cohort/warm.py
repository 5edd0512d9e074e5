"""Load the networks of a run before its first scan."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.errors import ClusterError, TotalSpineSegError

if TYPE_CHECKING:
    from totalspineseg_server.nnunet.networks import Networks
    from totalspineseg_server.nnunet.runtimes import Runtime
    from totalspineseg_server.registry.model_store import ModelStore


def warm_networks(
    store: "ModelStore",
    versions: Mapping[str, str],
    *,
    device: str,
    runtime: "Runtime",
    whole_image: bool = False,
) -> "Networks":
    """Load the networks; nothing before this imports torch in a run.

    Args:
        store: The weights in use.
        versions: "step1", "step2" -> version that must be in use; a step that is not listed is not loaded.
        device: "auto", "cpu", "cuda", "cuda:1".
        runtime: Software that runs the networks.
        whole_image: See ``Networks``.

    Raises:
        ClusterError: Other weights are in use here.
        TotalSpineSegError: There is no such device.
        WeightsError: There are no usable weights.
    """
    from totalspineseg_server.nnunet.networks import Networks
    from totalspineseg_server.nnunet.runtimes import resolve_device

    try:
        resolve_device(device, runtime)
    except ValueError as error:
        raise TotalSpineSegError(str(error)) from error
    networks = Networks(store, device=device, runtime=runtime, whole_image=whole_image)
    for name, version in versions.items():
        found = networks.get(1 if name == "step1" else 2).version
        if found != version:
            raise ClusterError(cohort_messages.OTHER_WEIGHTS.format(found=found, version=version))
    return networks
