"""Put a version into use after checking that this is allowed."""

from totalspineseg_server.nnunet.model_folder import models_of
from totalspineseg_server.registry.manage import require_served
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.releases import require_one_release


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
