"""Serve ``/versions``, ``/training`` and ``/corrections``: the verdicts of the gate, the versions in use, the
trainings, and how much readers corrected."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from totalspineseg_server.errors import ConflictError, WeightsError
from totalspineseg_server.front import front_messages
from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.front.host import running_task
from totalspineseg_server.front.judge import Judge
from totalspineseg_server.infers.http import BUSY
from totalspineseg_server.registry.manage import overview
from totalspineseg_server.registry.model_store import DATASET_OF_STEP, STARTER, ModelStore


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    user_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
    judge = Judge()

    @routes.get("/versions")
    def get_versions(user: Annotated[User, user_role]) -> dict[str, Any]:
        """Return all versions with the gate's verdicts, those in use, and those that a rollback would put into use."""
        store: ModelStore = app_instance().models
        return {
            "versions": [{**one, "verdict": without_folders(one["verdict"])} for one in overview(store)],
            "in_use": _in_use(store),
            "back": _back(store),
            "fixed": store.weights,
            "warning": app_instance().weights_warning(),
            "judge": _judging(judge),
        }

    # This route comes before the one with a version's name, so that no version can hide it.
    @routes.post("/versions/rollback")
    def roll_back(user: Annotated[User, admin]) -> dict[str, Any]:
        """Go back to the versions that were in use before the last change."""
        store = _changeable()
        store.go_back()
        return {"in_use": _in_use(store)}

    @routes.delete("/versions/judge")
    def stop_judging(user: Annotated[User, admin]) -> dict[str, Any]:
        """End the current judgment."""
        judge.stop()
        return {"judge": _judging(judge)}

    @routes.post("/versions/{name}/judge")
    def judge_version(name: str, user: Annotated[User, admin]) -> dict[str, Any]:
        """Let the gate compare a version in the background: with those in use or, if it is in use, with those before
        it."""
        from totalspineseg_server.nnunet.model_folder import models_of

        app = app_instance()
        models_of(app.models, name)
        if app.is_training():
            raise HTTPException(BUSY, front_messages.TRAINING_BEFORE_JUDGING)
        app.free_networks()
        judge.start(name, app.judge_words(name))
        return {"judge": _judging(judge)}

    @routes.post("/versions/{name}/activate")
    def activate(name: str, user: Annotated[User, admin]) -> dict[str, Any]:
        """Put a version into use; refused if the gate has refused it."""
        from totalspineseg_server.nnunet.model_folder import activate as put_into_use

        store = _changeable()
        put_into_use(store, name)
        return {"in_use": _in_use(store)}

    @routes.get("/training")
    def get_training(user: Annotated[User, user_role]) -> dict[str, Any]:
        """Return the newest training: its state, the time left, and its curves."""
        from dataclasses import asdict

        from totalspineseg_server.training.runs import curves_of, seconds_left, state_of

        folder = app_instance().training_dir
        running = running_task("train") is not None
        state = state_of(folder)
        if state is None:
            return {"running": running, "state": None, "seconds_left": None, "curves": {}}
        known = {"state": asdict(state), "seconds_left": seconds_left(state), "curves": curves_of(folder)}
        return {"running": running, **known}

    @routes.get("/corrections")
    def get_corrections(user: Annotated[User, user_role]) -> dict[str, Any]:
        """Return how much readers corrected, by structure and month, and by reader, as recorded at the time."""
        known: dict[str, Any] = app_instance().lab.corrected()
        return known

    return routes


def _judging(judge: Judge) -> dict[str, Any]:
    state = judge.state()
    return {**state, "message": without_folders(state["message"]), "failure": without_folders(state["failure"])}


def _in_use(store: ModelStore) -> dict[str, str]:
    active = store.active()
    return {str(step): active.get(step, STARTER) for step in DATASET_OF_STEP}


def _back(store: ModelStore) -> dict[str, str] | None:
    try:
        return {str(step): name for step, name in store.before_last().items()}
    except WeightsError:
        return None


def _changeable() -> ModelStore:
    store: ModelStore = app_instance().models
    if store.weights:
        raise ConflictError(front_messages.FIXED_WEIGHTS.format(weights=store.weights))
    return store
