"""Serve results that were saved as labels: the values in the map fit the names sent with it.

3D Slicer loads a saved result with the next sample, gives the k-th name to voxel value k and makes a row for every
name.
"""

import mimetypes
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from monailabel.config import settings
from monailabel.endpoints.datastore import ResultType
from monailabel.endpoints.datastore import datastore as host_content
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from totalspineseg_server.front import front_messages
from totalspineseg_server.infers.http import NOT_FOUND, NOT_READY, UNUSABLE
from totalspineseg_server.infers.listed import LISTED, as_listed, without_listed
from totalspineseg_server.io.volumes import read_labels, write_volume

PARAMS: Final = "params"
"""Field of a label's info: the report of the result that was saved."""
BYTES: Final = "application/octet-stream"
LISTED_SECONDS: Final = 60.0
"""Longest time between a request for the list of labels and one for a label; 3D Slicer asks at once."""
MAX_CLIENTS: Final = 64


class Listings:
    """Remembers which names of saved results clients have just received.

    3D Slicer gives the k-th name to voxel value k of the map that it asks for next.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: OrderedDict[str, tuple[float, dict[tuple[str, str], tuple[str, ...]]]] = OrderedDict()

    def note(self, client: str, content: Mapping[str, Any]) -> None:
        """Remember a list of labels.

        Args:
            client: The client's address.
            content: Image id -> entry of the datastore.
        """
        names = {
            (image, tag): _listed(label["info"])
            for image, entry in content.items()
            for tag, label in entry["labels"].items()
        }
        with self._lock:
            self._sent[client] = (time.monotonic(), names)
            self._sent.move_to_end(client)
            if len(self._sent) > MAX_CLIENTS:
                self._sent.popitem(last=False)

    def differs(self, client: str, image: str, tag: str, info: Mapping[str, Any]) -> bool:
        """Return whether a client has just received names for a label that differ from those it has now."""
        with self._lock:
            sent_at, names = self._sent.get(client, (0.0, {}))
        if time.monotonic() - sent_at > LISTED_SECONDS:
            return False
        return names.get((image, tag), _listed(info)) != _listed(info)


def _listed(info: Mapping[str, Any]) -> tuple[str, ...]:
    report = _listing(info)
    return () if report is None else tuple(report[LISTED])


def router() -> APIRouter:
    """Return the routes."""
    routes, listings = APIRouter(), Listings()
    user_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

    @routes.get("/datastore/")
    def get_datastore(request: Request, user: Annotated[User, user_role], output: ResultType | None = None) -> Any:
        """Return the images and labels, or how many there are."""
        content = host_content(output)
        if output is not ResultType.all:
            return content
        listings.note(_address(request), content["objects"])
        return {**content, "objects": {key: _entry_as_sent(entry) for key, entry in content["objects"].items()}}

    @routes.get("/datastore/label/info")
    def get_label_info(label: str, tag: str, user: Annotated[User, user_role]) -> dict[str, Any]:
        """Return the information about a label."""
        return info_as_sent(app_instance().datastore().get_label_info(label, tag))

    @routes.get("/datastore/label", response_model=None)
    def get_label(request: Request, label: str, tag: str, user: Annotated[User, user_role]) -> Response:
        """Download a label."""
        store = app_instance().datastore()
        while True:
            file, info = Path(store.get_label_uri(label, tag)), store.get_label_info(label, tag)
            if not file.is_file():
                raise HTTPException(NOT_FOUND, front_messages.NO_LABEL.format(image=label, tag=tag))
            try:
                content = _content(file, info)
            except (ValueError, OSError):
                content = None
            if store.get_label_info(label, tag) == info:
                break
            # It was replaced in the meantime: the names of one result do not fit the map of another.
        if listings.differs(_address(request), label, tag, info):
            raise HTTPException(
                NOT_READY,
                front_messages.RESULT_REPLACED.format(label=label),
            )
        if content is None:
            raise HTTPException(UNUSABLE, front_messages.UNREADABLE_LABEL)
        media_type = mimetypes.guess_type(file.name, strict=False)[0] or BYTES
        # Headers allow no other characters.
        disposition = {"content-disposition": f"attachment; filename*=utf-8''{quote(file.name)}"}
        return Response(content, media_type=media_type, headers=disposition)

    return routes


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host


def _content(file: Path, info: Mapping[str, Any]) -> bytes:
    """Return a label's file; if it has a report, with the values of the names that it lists."""
    report = _listing(info)
    if report is None:
        return file.read_bytes()
    with tempfile.TemporaryDirectory(prefix="totalspineseg-saved-") as folder:
        sent = Path(folder) / file.name
        write_as_listed(file, sent, report)
        return sent.read_bytes()


def write_as_listed(file: Path, target: Path, report: Mapping[str, Any]) -> None:
    """Write a result with the values of the names that its report lists.

    Args:
        file: Label map in published ids.
        target: File to write; may be ``file``.
        report: ``label_names`` has the published names, ``LISTED`` the listed ones.
    """
    wire = read_labels(file)
    write_volume(target, as_listed(wire.data, report["label_names"], report[LISTED]), wire.grid)


def report_as_sent(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report whose ``label_names`` are the listed names, with the values of ``write_as_listed``."""
    names = {name: value for value, name in enumerate(report[LISTED], start=1)}
    return {**without_listed(report), "label_names": names}


def info_as_sent(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the information about a label, with the names and values of the map that clients get."""
    report = _listing(info)
    return dict(info) if report is None else {**info, PARAMS: report_as_sent(report)}


def _listing(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the report of a label that is a saved result; None for others, and for those of earlier versions."""
    report = info.get(PARAMS)
    return report if isinstance(report, Mapping) and report.get(LISTED) else None


def _entry_as_sent(entry: Mapping[str, Any]) -> dict[str, Any]:
    labels = {tag: {**label, "info": info_as_sent(label["info"])} for tag, label in entry["labels"].items()}
    return {**entry, "labels": labels}
