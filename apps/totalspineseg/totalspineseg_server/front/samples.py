"""Serve ``POST /activelearning/{strategy}``: the next image, off the event loop. No names of patients are logged."""

import logging
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from totalspineseg_server.corrections.image_records import NOTED, noted
from totalspineseg_server.errors import StorageError
from totalspineseg_server.front import front_messages

logger = logging.getLogger(__name__)


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/activelearning/{strategy}")
    def next_sample(
        strategy: str,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        params: Annotated[dict[str, Any] | None, Body()] = None,
    ) -> dict[str, Any]:
        """Return the image to annotate next; empty if all are done."""
        app, fields = app_instance(), dict(params or {})
        if settings.MONAI_LABEL_AUTH_ENABLE or not fields.get("client_id"):
            fields["client_id"] = user.username
        sample: dict[str, Any] = app.next_sample({**fields, "strategy": strategy})
        if not sample:
            return {}
        store, image = app.datastore(), sample["id"]
        offer = {"ts": time.time(), "client_id": fields["client_id"], "score": sample.get("score")}
        try:
            store.update_image_info(image, {NOTED: {**noted(store.get_image_info(image)), strategy: offer}})
        except StorageError as error:
            logger.warning("The offer of an image could not be recorded: %s", error)
            sample["warning"] = front_messages.OFFER_NOT_RECORDED
        # The fields of the sample come last: the client sends its label under this id, which nothing else may replace.
        return {**store.get_image_info(image), **sample}

    return routes
