"""Folders of this machine, which are left out of what clients are told: where something lies tells who is treated."""

import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from monailabel.config import settings

OWN: Final = Path(__file__).resolve().parents[2]


def without_folders(text: str) -> str:
    """A text with paths from the studies, the app or the programs on, not from the root of the disk.

    Args:
        text: Such as a sentence on /srv/mri/.totalspineseg/maps, of which /srv/mri/, the studies, is left out.
    """
    conf = settings.MONAI_LABEL_APP_CONF or {}
    named = (settings.MONAI_LABEL_STUDIES, str(conf.get("work") or ""), settings.MONAI_LABEL_APP_DIR)
    others = (str(OWN), sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(Path.home()))
    # The longest first: one may lie in another.
    roots = sorted({root.rstrip("/") for root in (*named, *others)} - {""}, key=len, reverse=True)
    pattern = "|".join(rf"{re.escape(root)}(?:/|(?![\w.-]))" for root in roots)
    return re.sub(pattern, lambda found: "" if found[0].endswith("/") else Path(found[0]).name, text)
