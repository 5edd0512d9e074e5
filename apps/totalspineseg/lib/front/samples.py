"""``POST /activelearning/{strategy}``: the next image, off the event loop; the log says nothing of patients."""

import logging
import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.errors import StorageError

logger = logging.getLogger(__name__)

NOT_RECORDED: Final = (
    "The server could not record that it offered this image (its log says why): others may get it, too."
)


def router() -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/activelearning/{strategy}")
    def next_sample(
        strategy: str,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        params: Annotated[dict[str, Any] | None, Body()] = None,
    ) -> dict[str, Any]:
        """The image to annotate next; empty when all are done."""
        app, fields = app_instance(), params or {}
        sample: dict[str, Any] = app.next_sample({**fields, "strategy": strategy})
        if not sample:
            return {}
        store, image = app.datastore(), sample["id"]
        offered = dict(store.get_image_info(image).get("strategy") or {})
        offered[strategy] = {"ts": int(time.time()), "client_id": fields.get("client_id", user.username)}
        try:
            store.update_image_info(image, {"strategy": offered})
        except StorageError as error:
            logger.warning("who was offered an image is not recorded: %s", error)
            sample["warning"] = NOT_RECORDED
        return {**sample, **store.get_image_info(image)}

    return routes
