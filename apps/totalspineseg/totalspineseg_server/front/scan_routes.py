"""Serve ``/worklist`` and ``/scans``: all scans at a glance, and what readers do with one. No network runs for these
routes.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from pydantic import BaseModel, Field

from totalspineseg_server.corrections.correction_store import MAX_REASON
from totalspineseg_server.corrections.ids import text_of_time
from totalspineseg_server.corrections.receipts import Sender
from totalspineseg_server.errors import ConflictError, ImageError
from totalspineseg_server.front import front_messages
from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.front.host import running_task
from totalspineseg_server.front.revalidated import revalidated
from totalspineseg_server.infers.http import NO_CONTENT
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.worklist.acts import reader, submitted_text
from totalspineseg_server.worklist.choice import Choice
from totalspineseg_server.worklist.lab import Lab
from totalspineseg_server.worklist.query import MAX_PAGE_SIZE, PAGE_SIZE, Sort, select
from totalspineseg_server.worklist.query import Query as Asked
from totalspineseg_server.worklist.rows import Row, Status
from totalspineseg_server.worklist.scans import View, levels_of, pin_names

NIFTI: Final = "application/gzip"
PNG: Final = "image/png"
MAX_NAME: Final = 100
"""Longest name of a reader, in characters."""
MAX_PINNED: Final = 60
"""Largest number of pinned levels, more than there are structures."""


class Act(BaseModel):
    """The fields of every act of a reader."""

    client_id: str = Field("", max_length=MAX_NAME, description="The reader's name; with sign-in it is known already.")


class Pin(Act):
    """Levels that a reader names."""

    prediction: str = Field(max_length=MAX_NAME, description="Id of the result that the reader sees.")
    names: dict[str, str] = Field(
        max_length=MAX_PINNED, description="Name of a level in this result -> its right name, such as L4 -> L5."
    )
    submit: bool = Field(False, description="Whether the names are submitted as a finished label.")


class Accept(Act):
    """A result that a reader accepts as it is."""

    prediction: str = Field(max_length=MAX_NAME, description="Id of the result that the reader saw.")
    views: list[Literal["sagittal", "axial", "coronal"]] = Field(
        max_length=3, description="Planes that were on the screen; sagittal and axial must be."
    )


class Choose(Act):
    """The finished label that counts from now on."""

    correction: str = Field(max_length=MAX_NAME, description="Id of the finished label to use.")
    take: dict[str, str] = Field(
        {}, max_length=MAX_PINNED, description="Name of a structure -> id of the label from which it is taken instead."
    )
    leave_out: list[str] = Field(
        [],
        max_length=MAX_PINNED,
        description="Ids of labels; places where they differ from the chosen label are left out of training.",
    )


class Reject(Act):
    """A result that cannot be used."""

    reason: str = Field(min_length=1, max_length=MAX_REASON, description="Why, in the reader's words.")


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    user_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))

    @routes.get("/worklist")
    def get_worklist(
        user: Annotated[User, user_role],
        search: str = "",
        status: Annotated[list[Status] | None, Query()] = None,
        certainty: Literal["", "certain", "counted", "doubtful"] = "",
        by: str = "",
        sort: Sort = "id",
        descending: bool = False,
        page: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        size: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = PAGE_SIZE,
    ) -> dict[str, Any]:
        """Return one page of the scans that fit the search, in the order that was asked for."""
        worklist = _lab().worklist
        asked = Asked(search, tuple(status or ()), certainty, by, sort, descending, page, size)
        found = select(worklist.rows(), asked)
        return {
            "rows": [_sent(row) for row in found.rows],
            "total": found.total,
            "counts": dict(found.counts),
            "complete": worklist.is_complete,
            "failure": worklist.failure,
            "batch": _batch(),
        }

    # The longer paths come first: an id may have a slash.
    @routes.get("/scans/{image:path}/thumbnail", response_class=Response)
    def get_thumbnail(image: str, user: Annotated[User, user_role], call: Request) -> Response:
        """Return a small picture with the names of the levels, PNG; nothing (204) if the image cannot be read."""
        row = _lab().row(image)

        def picture() -> Response:
            try:
                return Response(_lab().thumbnails.png(row), media_type=PNG)
            except ImageError:
                # The row of the scan says why; only its picture is missing.
                return Response(status_code=NO_CONTENT)

        return revalidated(call, _tag(row), picture)

    @routes.get("/scans/{image:path}/volume", response_class=Response)
    def get_volume(image: str, user: Annotated[User, user_role]) -> Response:
        """Return the image for display: NIfTI, axes to the right, anterior and superior, 16 bits."""
        _, view = _lab().view(image)
        return _nifti(view.image.data, view)

    @routes.get("/scans/{image:path}/label", response_class=Response)
    def get_label(image: str, user: Annotated[User, user_role]) -> Response:
        """Return the displayed label as codes on the voxels of the image: NIfTI."""
        _, view = _lab().view(image)
        return _nifti(view.label.codes, view)

    @routes.post("/scans/{image:path}/pin")
    def pin(image: str, body: Pin, user: Annotated[User, annotator]) -> dict[str, Any]:
        """Rename all levels to match those that a reader names, and submit the result if asked to. No network runs."""
        row, view = _lab().view(image)
        acts = _lab().acts
        pinned = acts.pin(view, body.prediction, body.names)
        answer = {
            "names": dict(pinned.names),
            "certainty": pinned.numbering["certainty"],
            "probability": pinned.numbering["probability"],
            "levels": pinned.numbering["levels"],
            "message": pinned.message,
            "correction": "",
        }
        if not body.submit:
            return answer
        if row.status == "finished":
            raise ConflictError(front_messages.FINISHED_BEFORE_PIN)
        correction = acts.submit_pinned(row, view, body.names, pinned, _reader(user, body))
        _lab().worklist.update(image)
        return {**answer, "correction": correction.id, "message": submitted_text(correction)}

    @routes.post("/scans/{image:path}/accept")
    def accept(image: str, body: Accept, user: Annotated[User, annotator]) -> dict[str, Any]:
        """Finish a scan with its result as it is; refused if names are doubtful."""
        row, view = _lab().view(image)
        correction = _lab().acts.accept(row, view, body.prediction, body.views, _reader(user, body))
        _lab().worklist.update(image)
        return {"correction": correction.id, "message": submitted_text(correction)}

    @routes.post("/scans/{image:path}/reject")
    def reject(image: str, body: Reject, user: Annotated[User, annotator]) -> dict[str, Any]:
        """Say why a result cannot be used; the scan then has to be drawn."""
        _lab().acts.reject(_lab().row(image), body.reason, _reader(user, body))
        _lab().worklist.update(image)
        return {"message": front_messages.REJECTED}

    @routes.post("/scans/{image:path}/undo")
    def undo(image: str, body: Act, user: Annotated[User, annotator]) -> dict[str, Any]:
        """Take back the last accept, pin or rejection."""
        is_admin = settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles
        message = _lab().acts.undo(_lab().row(image), _reader(user, body), is_admin=is_admin)
        _lab().worklist.update(image)
        return {"message": message}

    @routes.post("/scans/{image:path}/choose")
    def choose(image: str, body: Choose, user: Annotated[User, admin]) -> dict[str, Any]:
        """Let one of a scan's finished labels count from now on, or a label merged from them: clients see it, and
        trainings use it."""
        choice = Choice(body.correction, body.take, tuple(body.leave_out))
        correction = _lab().choose(image, choice, _reader(user, body))
        _lab().worklist.update(image)
        return {"correction": correction.id, "message": front_messages.CHOSEN}

    @routes.get("/scans/{image:path}")
    def get_scan(image: str, user: Annotated[User, user_role]) -> dict[str, Any]:
        """Return the levels of a scan from top to bottom, its findings and its history."""
        row, view = _lab().view(image)
        record = view.label.record
        numbering = (record.numbering if record else None) or {}
        return {
            **_sent(row),
            "label": view.label.of,
            "can_pin": view.label.maps is not None and row.status != "finished",
            "levels": levels_of(view),
            "names": pin_names(),
            "probability": numbering.get("probability"),
            "findings": [str(one.get("message", "")) for one in numbering.get("findings", ())],
            "would_settle": list(numbering.get("would_settle", ())),
            "agreements": _lab().agreements(image),
            "history": [{**one, "reason": without_folders(one["reason"])} for one in _lab().history(image)],
        }

    return routes


def _lab() -> Lab:
    lab: Lab = app_instance().lab
    return lab


def _batch() -> dict[str, Any] | None:
    """Return the progress of the current batch and the seconds left; None if none is running."""
    task = running_task("batch_infer")
    if task is None:
        return None
    images = task["request"].get("images")
    # MONAI Label writes the time of this machine's clock, in seconds.
    begun = time.mktime(time.strptime(task["start_ts"], "%Y-%m-%d %H:%M:%S"))
    known: dict[str, Any] = app_instance().batch_progress(
        images if isinstance(images, list) else (), text_of_time(begun)
    )
    left, new = known["total"] - known["scored"], known.pop("new")
    known["seconds_left"] = round(left * (time.time() - begun) / new) if new else None
    return known


def _reader(user: User, body: Act) -> Sender:
    return reader(user.username, user.username if settings.MONAI_LABEL_AUTH_ENABLE else body.client_id.strip())


def _sent(row: Row) -> dict[str, Any]:
    return {**row.as_json(), "reason": without_folders(row.reason)}


def _tag(row: Row) -> str:
    """Return a tag that changes whenever the picture of a scan may have changed."""
    return f'"{row.prediction or "none"}-{row.date if row.status == "finished" else ""}"'


def _nifti(data: Any, view: View) -> Response:
    with tempfile.TemporaryDirectory(prefix="totalspineseg-view-") as folder:
        file = Path(folder) / "view.nii.gz"
        write_volume(file, data, view.image.grid)
        return Response(file.read_bytes(), media_type=NIFTI, headers={"cache-control": "private, no-store"})
