"""Hold the address of the DICOMweb server, and check which of its paths may be requested."""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from requests.adapters import HTTPAdapter

from totalspineseg_server.errors import TotalSpineSegError
from totalspineseg_server.pacs import pacs_messages

Service = Literal["qido", "wado", "stow"]

PARALLEL_CALLS: Final = 32
"""Largest number of simultaneous calls; a viewer asks for some twenty frames at once."""
TIMEOUT_SECONDS: Final = (30.0, 300.0)
"""Time limits for connecting, and for the next piece of an answer: a PACS may fetch from tape, and machines may be
busy."""
ROOMS: Final = ("studies", "series", "instances")
"""Beginnings of the paths of DICOMweb resources."""
SEGMENT: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.,_-]{0,511}")
"""Pattern of one part of a path: a UID, a list of frames, a tag or a word. It allows no "..", no hidden names and no
host."""
UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID_CHARACTERS: Final = 64


class PathError(TotalSpineSegError):
    """A path that is not a DICOMweb resource."""


@dataclass(frozen=True)
class Address:
    """A DICOMweb server.

    Attributes:
        base: Its address without a slash at the end.
        qido: Prefix of the paths for searches, without slashes around it; empty for none.
        wado: Prefix of the paths for retrieval.
        stow: Prefix of the paths for storage.
    """

    base: str
    qido: str = ""
    wado: str = ""
    stow: str = ""

    def url(self, service: Service, path: str) -> str:
        """Return the address of a resource.

        Args:
            service: DICOMweb service that is used.
            path: Path without the query, such as ``studies/1.2.3/series``.

        Raises:
            PathError: The path is not a DICOMweb resource.
        """
        prefix = {"qido": self.qido, "wado": self.wado, "stow": self.stow}[service]
        return "/".join(filter(None, (self.base, prefix, resource(path))))


def resource(path: str) -> str:
    """Return a path if it can name nothing but a resource of the server.

    Raises:
        PathError: The path could name something else.
    """
    parts = path.strip("/").split("/")
    if parts[0] not in ROOMS or not all(SEGMENT.fullmatch(part) and ".." not in part for part in parts):
        raise PathError(pacs_messages.NO_RESOURCE)
    return "/".join(parts)


def is_uid(text: str) -> bool:
    """Return whether a text is a DICOM unique identifier."""
    return len(text) <= MAX_UID_CHARACTERS and UID.fullmatch(text) is not None


class _Patience(HTTPAdapter):  # type: ignore[misc]
    """Adapter that waits for an answer only for a limited time; a plain session waits forever."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        return super().send(request, **{**options, "timeout": options.get("timeout") or TIMEOUT_SECONDS})


def make_session(base: str, user: str = "", password: str = "") -> requests.Session:
    """Return an HTTP session with the server's credentials, for many calls at a time, each with a time limit.

    Args:
        base: The server's address.
        user: User name there; empty for none.
        password: The user's password.
    """
    session: requests.Session
    if "googleapis.com" in base:
        from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials

        session = create_session_from_gcp_credentials()
    elif user and password:
        session = create_session_from_user_pass(user, password)
    else:
        session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patience(pool_maxsize=PARALLEL_CALLS))
    return session


def make_client(address: Address, session: requests.Session) -> DICOMwebClient:
    """Return the library client of a server, for searches, retrieval and storage by the server itself."""
    client = DICOMwebClient(
        url=address.base,
        session=session,
        qido_url_prefix=address.qido or None,
        wado_url_prefix=address.wado or None,
        stow_url_prefix=address.stow or None,
    )
    # With retries, the client would try five times, and then raise an error that does not show that the server is the
    # cause.
    client.set_http_retry_params(retry=False)
    return client


DEFAULT_FILTER: Final = {"Modality": "MR"}
"""Filter for the series that are images; MONAI Label's own default is CT."""
FILTER_SETTING: Final = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


def configured_address() -> Address:
    """Return the address of the PACS."""
    prefixes = (settings.MONAI_LABEL_QIDO_PREFIX, settings.MONAI_LABEL_WADO_PREFIX, settings.MONAI_LABEL_STOW_PREFIX)
    base = str(settings.MONAI_LABEL_STUDIES).strip().rstrip("/")
    return Address(base, *((prefix or "").strip("/") for prefix in prefixes))


def configured_session() -> requests.Session:
    """Return a session with the configured credentials."""
    user = settings.MONAI_LABEL_DICOMWEB_USERNAME or settings.MONAI_LABEL_DATASTORE_USERNAME
    password = settings.MONAI_LABEL_DICOMWEB_PASSWORD or settings.MONAI_LABEL_DATASTORE_PASSWORD
    return make_session(configured_address().base, user, password)


def configured_client() -> DICOMwebClient:
    """Return the library client of the PACS."""
    return make_client(configured_address(), configured_session())


def configured_filter() -> dict[str, Any]:
    """Return the filter for series that are images: the configured one, else MR."""
    return dict(getattr(settings, FILTER_SETTING))


def set_default_filter() -> None:
    """Set the filter to MR unless one is configured; this comes before other processes get the settings."""
    if FILTER_SETTING not in settings.model_fields_set:
        setattr(settings, FILTER_SETTING, dict(DEFAULT_FILTER))
