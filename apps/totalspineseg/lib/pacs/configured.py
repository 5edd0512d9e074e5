"""The PACS in the host's settings."""

from typing import Any, Final

import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings

from lib.pacs.address import Address, make_client, make_session

DEFAULT_FILTER: Final = {"Modality": "MR"}
"""Filter for the series that are images; the host's own default is CT."""
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
    """Return the filter for series that are images: the owner's, else MR."""
    return dict(getattr(settings, FILTER_SETTING))


def set_default_filter() -> None:
    """List MR unless the owner configured a filter; set it before other processes get the settings."""
    if FILTER_SETTING not in settings.model_fields_set:
        setattr(settings, FILTER_SETTING, dict(DEFAULT_FILTER))
