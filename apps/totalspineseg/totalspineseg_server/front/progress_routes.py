"""Serve ``GET /scoring/`` and ``GET /batch/infer``: MONAI Label's task, and how many studies are done."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from monailabel.config import settings
from monailabel.endpoints import batch_infer, scoring
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

PROGRESS: Final = "progress"
"""Field for the progress as stored. It is needed because the end of a task's output may be lost, and a stopped task
prints nothing.
"""


def router() -> APIRouter:
    """Return the routes; everything but ``progress`` is MONAI Label's answer, which is 404 until a task was started."""
    routes = APIRouter()
    reader = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

    @routes.get("/scoring/")
    def scoring_status(user: Annotated[User, reader], all: bool = False, check_if_running: bool = False) -> Any:
        """Return the last scoring, and how many images have a score by the weights in use."""
        return _with_progress(scoring.status(all, check_if_running))

    @routes.get("/batch/infer")
    def batch_status(user: Annotated[User, reader], all: bool = False, check_if_running: bool = False) -> Any:
        """Return the last batch inference, and how many images have a score by the weights in use."""
        return _with_progress(batch_infer.status(all, check_if_running))

    return routes


def _with_progress(task: Any) -> Any:
    return {**task, PROGRESS: app_instance().scoring_progress()} if isinstance(task, dict) else task
