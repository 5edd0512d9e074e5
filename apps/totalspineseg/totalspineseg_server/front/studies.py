"""Add images, labels and sessions. The routes run off the event loop and overwrite nothing.

Files that clients send are written under names of our own; archives of them may be hostile.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Annotated, Any, Final
from uuid import uuid4

from fastapi import APIRouter, Depends, File, Form, HTTPException, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions
from pydantic import BaseModel
from starlette.responses import FileResponse

from totalspineseg_server.corrections.correction_store import FINAL_TAG, Correction
from totalspineseg_server.corrections.ids import is_usable_id
from totalspineseg_server.corrections.image_records import NOTED, PATIENT, anonymous
from totalspineseg_server.corrections.label_files import IMAGE_HASH, RENUMBERED, UNCONFIRMED
from totalspineseg_server.corrections.receipts import Receipt, Sender, label_suffix, receipt_of
from totalspineseg_server.errors import SettingError, StorageError
from totalspineseg_server.files import CHUNK_BYTES
from totalspineseg_server.front import front_messages
from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.infers.http import CONFLICT, NOT_FOUND, SESSIONS_OFF, UNUSABLE
from totalspineseg_server.infers.sessions import META_FILE
from totalspineseg_server.io.volumes import IMAGE_SUFFIXES, read_image, stem
from totalspineseg_server.io.zips import open_archive
from totalspineseg_server.pacs.pacs_datastore import COUNTED, UNSENT

logger = logging.getLogger(__name__)

ARCHIVES = (".zip",)
"""Endings of archives; these are unpacked with limits, see ``unpack_series``."""
MAX_FILE_NAME: Final = 200
"""Longest name, in bytes. File systems allow 255, and a number may be put before the name."""
OWN_OF_SAMPLES: Final = ("id", "path", "warning", "score")
OWN_OF_IMAGES: Final = (NOTED, "ts", "name", COUNTED, "PatientID", "StudyInstanceUID", *OWN_OF_SAMPLES)
OWN_OF_LABELS: Final = ("correction", "prediction", "model", "params", "label_info", "user", "client_id", "ts", "name")
OWN: Final = frozenset((*OWN_OF_IMAGES, *OWN_OF_LABELS, IMAGE_HASH, "instance", UNSENT, RENUMBERED, UNCONFIRMED))
"""Fields of images and labels that only this server sets and relies on."""


class SessionAnswer(BaseModel):
    """Answer to a client that made a session."""

    session_id: str
    session_info: dict[str, Any]


def router(max_unpacked_bytes: int) -> APIRouter:
    """Return the routes.

    Args:
        max_unpacked_bytes: Largest size of an unpacked archive.
    """
    routes = APIRouter()
    annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))

    @routes.put("/datastore/label")
    def put_label(
        image: str,
        label: Annotated[UploadFile, File()],
        user: Annotated[User, annotator],
        params: Annotated[str, Form()] = "{}",
        tag: str = FINAL_TAG,
    ) -> dict[str, Any]:
        """Submit a corrected label."""
        fields, fault = {}, ""
        try:
            fields = read_params(params)
        except SettingError as error:
            # Store the label first, even if its parameters are wrong.
            fault = str(error)
        sender = _sender(user, fields, label)
        with tempfile.TemporaryDirectory(prefix="totalspineseg-label-") as folder:
            file = save_label(label, Path(folder))
            sent = receipt_of(image, file, tag=tag or FINAL_TAG, sender=sender, params=fields, fault=fault)
            correction = app_instance().inbox.submit(sent, file)
        is_unsent = app_instance().datastore().is_unsent(correction.image, correction.tag)
        return {
            "message": correction.message,
            "image": correction.image,
            "label": correction.image,
            "correction": correction.id,
            "step": correction.step,
            "findings": list(correction.findings),
            "renumbered": correction.renumbered,
            "overlap_voxels": correction.overlap_voxels,
            "prediction": correction.prediction,
            "warning": front_messages.PACS_REFUSED_LABEL if is_unsent else "",
        }

    @routes.delete("/datastore/label")
    def delete_label(
        id: str,
        tag: str,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
    ) -> dict[str, Any]:
        """Withdraw a label: from now on it is neither shown nor used, but it stays in the history."""
        withdrawn = app_instance().withdraw_label(id, tag, user.username)
        return {"image": id, "tag": tag, "withdrawn": list(withdrawn)}

    @routes.get("/submissions/")
    def get_submissions(user: Annotated[User, annotator]) -> list[dict[str, Any]]:
        """Return the submissions that are not used, with the reason, oldest first."""
        return [_unused(*unused) for unused in app_instance().unused_submissions()]

    @routes.post("/submissions/interpret")
    def interpret_submissions(
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
    ) -> list[dict[str, Any]]:
        """Read submissions again that the server could not read, and return those that still wait."""
        waiting = app_instance().inbox.interpret_waiting(again=True)
        return [_unused(one.receipt, "waiting", one.reason) for one in waiting]

    @routes.put("/datastore/", include_in_schema=False)
    @routes.put("/datastore", include_in_schema=False)
    @routes.put("/datastore/image")
    def put_image(
        file: Annotated[UploadFile, File()],
        user: Annotated[User, annotator],
        image: str = "",
        params: Annotated[str, Form()] = "{}",
    ) -> dict[str, Any]:
        """Add an image to the studies."""
        sender = _sender(user, read_params(params), file)
        image_id = image or stem(Path(client_name(file)))
        if not is_usable_id(image_id):
            raise SettingError(front_messages.BAD_IMAGE_ID.format(image=image_id[:80]))
        with tempfile.TemporaryDirectory(prefix="totalspineseg-image-") as folder:
            path = save_image(file, Path(folder))
            read_image(path)
            try:
                info = {**_fields_of_image(params), "user": user.username}
                return {"image": app_instance().add_image(image_id, path, info, sender)}
            except FileExistsError as error:
                raise HTTPException(CONFLICT, str(error)) from error
            except StorageError:
                raise
            except ValueError as error:
                raise HTTPException(UNUSABLE, str(error)) from error

    @routes.put("/datastore/image/info")
    def put_image_info(image: str, user: Annotated[User, annotator], info: Annotated[str, Form()] = "{}") -> None:
        """Add to the information about an image."""
        app_instance().datastore().update_image_info(image, {**_fields_of_image(info), "user": user.username})

    @routes.put("/datastore/label/info")
    @routes.put("/datastore/updatelabelinfo", include_in_schema=False)
    def put_label_info(
        label: str,
        tag: str,
        user: Annotated[User, annotator],
        info: Annotated[str, Form()] = "{}",
        params: Annotated[str, Form()] = "{}",
    ) -> None:
        """Add to the information about a label."""
        app_instance().datastore().update_label_info(label, tag, {**_client_fields(params), **_client_fields(info)})

    @routes.put("/session/")
    def put_session(
        files: Annotated[list[UploadFile], File(min_length=1)],
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        uncompress: bool = False,
        expiry: int = 0,
    ) -> SessionAnswer:
        """Keep an image for a while, outside the studies."""
        sessions = _sessions()
        if uncompress and (len(files) != 1 or not client_name(files[0]).lower().endswith(ARCHIVES)):
            raise HTTPException(UNUSABLE, front_messages.ONE_ZIP)
        # MONAI Label moves the files it gets, so the folder need not outlive this call.
        with tempfile.TemporaryDirectory(prefix="totalspineseg-session-") as folder:
            series = Path(folder) / "series"
            series.mkdir()
            if uncompress:
                image = unpack_series(files[0].file, series, max_bytes=max_unpacked_bytes)
            else:
                image = save_all(files, series)
            session_id, info = _add_session(sessions, image, expiry)
        return SessionAnswer(session_id=session_id, session_info=info.to_json())

    @routes.get("/session/{session_id}", response_model=None)
    def get_session(
        session_id: str,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        update_ts: bool = False,
        image: bool = False,
    ) -> dict[str, Any] | FileResponse:
        """Return the information about a session, or its image if that is one file."""
        session = _sessions().get_session(session_id, update_ts=update_ts)
        if session is None:
            raise HTTPException(NOT_FOUND, front_messages.NO_SESSION.format(session=session_id))
        file = Path(session.image)
        if not image:
            known: dict[str, Any] = session.to_json()
            return known
        if not file.is_file():
            raise HTTPException(
                UNUSABLE,
                front_messages.SESSION_OF_FILES,
            )
        return FileResponse(file, filename=file.name)

    @routes.get("/datastore/dataset", include_in_schema=False)
    def get_dataset() -> None:
        """Refuse the request, because at every call MONAI Label would leave an archive of all studies in the temporary
        folder.
        """
        raise HTTPException(NOT_FOUND, front_messages.NO_ARCHIVES)

    return routes


def _unused(known: Receipt | Correction, status: str, reason: str) -> dict[str, Any]:
    return {
        "submission": known.id,
        "image": known.image,
        "tag": known.tag,
        "user": known.user,
        "client_id": known.client,
        "received": known.received,
        "status": status,
        "reason": without_folders(reason),
    }


def _sender(user: User, fields: Mapping[str, Any], file: UploadFile) -> Sender:
    return Sender(user=user.username, client=str(fields.get("client_id") or ""), file_name=client_name(file))


def _client_fields(text: str) -> dict[str, Any]:
    """Return a client's fields about an image or a label, without those that only this server sets."""
    return {name: value for name, value in read_params(text).items() if name not in OWN}


def _fields_of_image(text: str) -> dict[str, Any]:
    """Return a client's fields about an image, without those that identify its patient."""
    fields = _client_fields(text)
    return {**fields, PATIENT: anonymous(str(fields[PATIENT]))} if fields.get(PATIENT) else fields


def _sessions() -> Sessions:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(SESSIONS_OFF, front_messages.NO_SESSIONS)
    return sessions


def _add_session(sessions: Sessions, image: Path, expiry: int) -> tuple[str, SessionInfo]:
    """Add a file or folder as a session, completely or not at all."""
    session_id = str(uuid4())
    try:
        _, info = sessions.add_session(str(image), expiry, session_id=session_id)
    except BaseException:
        sessions.remove_session(session_id)
        raise
    return session_id, info


def client_name(upload: UploadFile) -> str:
    """Return the file's name from the client, without folders of any operating system."""
    return plain_name(upload.filename or "")


def plain_name(path: str) -> str:
    """Return the last part of a path of any operating system, shortened to a valid file name; "" if there is none."""
    name = PurePosixPath(PureWindowsPath(path).as_posix()).name
    letters = "".join(c for c in name if ord(c) >= 32)
    # Leave out broken characters: those of another code page, and one that was split when the name was shortened.
    plain = letters.encode(errors="ignore")[-MAX_FILE_NAME:].decode(errors="ignore")
    return "" if plain in (".", "..") else plain


def image_suffix(name: str) -> str:
    """Return the image ending of a name; ".dcm" if there is none, because DICOM files often have none."""
    return next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), ".dcm")


def save_image(upload: UploadFile, folder: Path) -> Path:
    """Write an uploaded image into a folder."""
    return _save(upload, folder / f"image{image_suffix(client_name(upload))}")


def save_label(upload: UploadFile, folder: Path) -> Path:
    """Write an uploaded label into a folder."""
    return _save(upload, folder / f"label{label_suffix(client_name(upload))}")


def save_all(uploads: Sequence[UploadFile], folder: Path) -> Path:
    """Write the files of one series.

    Returns:
        The file, or the folder if there are several.
    """
    if len(uploads) == 1:
        name = client_name(uploads[0])
        # MONAI Label writes its own notes about a session beside the session's image.
        return _save(uploads[0], folder / (f"image-{name}" if name in ("", META_FILE) else name))
    for number, upload in enumerate(uploads):
        _save(upload, folder / f"{number:05d}-{client_name(upload)}")
    return folder


def _save(upload: UploadFile, path: Path) -> Path:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, CHUNK_BYTES)
    return path


def read_params(text: str) -> dict[str, Any]:
    """Return the JSON object in ``params``.

    Raises:
        SettingError: The text is not a JSON object.
    """
    try:
        params = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise SettingError(f"'params' must be a JSON object, got {text[:80]!r}") from error
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise SettingError(f"'params' must be a JSON object, got {text[:80]!r}")
    return params


def unpack_series(archive: IO[bytes], folder: Path, *, max_bytes: int) -> Path:
    """Write the files of an archive into a folder, without the archive's own folders and hidden files.

    Args:
        archive: The .zip; it must be seekable.
        folder: Empty folder. If an archive is refused, the caller removes its content.
        max_bytes: Largest size of all files together.

    Returns:
        The file, or the folder if there are several.

    Raises:
        ArchiveError: See ``open_archive``, also for the others.
    """
    with open_archive(archive, folder, is_wanted=_is_wanted, max_bytes=max_bytes) as content:
        for number, entry in enumerate(content.entries):
            name = plain_name(entry.filename) or "image"
            path = folder / (name if len(content.entries) == 1 else f"{number:05d}-{name}")
            content.extract(entry, path)
        return path if len(content.entries) == 1 else folder


def _is_wanted(name: str) -> bool:
    """Return whether an entry is a file of the series, not a hidden file of an operating system."""
    return not PureWindowsPath(name).name.startswith(".")
