"""``POST /train``: the server's networks give their memory to the training that starts."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from monailabel.config import settings
from monailabel.endpoints.train import run, run_model
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance


def router() -> APIRouter:
    """The routes; what they start, and what they answer, is the host's."""
    routes = APIRouter()
    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))

    # Not async: waiting for an inference to end holds nobody else up.
    @routes.post("/train/{model}")
    def train(
        model: str,
        user: Annotated[User, admin],
        params: Annotated[dict[str, Any] | None, Body()] = None,
        run_sync: bool = False,
        enqueue: bool = False,
    ) -> Any:
        """Free the networks, which the next request loads again, and start a training."""
        app_instance().free_networks()
        return run_model(model, params, run_sync, enqueue)

    @routes.post("/train/")
    def train_all(
        user: Annotated[User, admin], params: Annotated[dict[str, Any] | None, Body()] = None, run_sync: bool = False
    ) -> Any:
        """The same for all trainers, one after the other."""
        app_instance().free_networks()
        return run(params, run_sync)

    return routes
