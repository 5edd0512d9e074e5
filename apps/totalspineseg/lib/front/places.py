"""Leave folders of this machine out of what clients read: a path may name a patient."""

import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from monailabel.config import settings

OWN: Final = Path(__file__).resolve().parents[2]


def without_folders(text: str) -> str:
    """Return a text whose paths begin at the studies, the app or the programs, not at the root of the disk.

    Args:
        text: For example a sentence about /srv/mri/.totalspineseg/maps, of which /srv/mri/, the studies, is left out.
    """
    conf = settings.MONAI_LABEL_APP_CONF or {}
    named = (settings.MONAI_LABEL_STUDIES, str(conf.get("work") or ""), settings.MONAI_LABEL_APP_DIR)
    others = (str(OWN), sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(Path.home()))
    # Replace the longest first: one folder may lie in another.
    roots = sorted({root.rstrip("/") for root in (*named, *others)} - {""}, key=len, reverse=True)
    pattern = "|".join(rf"{re.escape(root)}(?:/|(?![\w.-]))" for root in roots)
    return re.sub(pattern, lambda found: "" if found[0].endswith("/") else Path(found[0]).name, text)
