"""Choose the tag under which a result is saved: a complete one gets the requested tag, any other a longer one."""

from collections.abc import Mapping
from typing import Any, Final

from totalspineseg_server.anatomy import STRUCTURES
from totalspineseg_server.corrections.datastore import is_safe_tag
from totalspineseg_server.corrections.displayed_corrections import READER_TAGS
from totalspineseg_server.errors import SettingError
from totalspineseg_server.infers.settings import read_settings

SOME_STRUCTURES: Final = "part"
ISO_GRID: Final = "iso"


def saves_label(request: Mapping[str, Any]) -> bool:
    """Return whether a request asks to save its result as a label of the image."""
    return request.get("save_label") in (True, "true", "True")


def result_tag(request: Mapping[str, Any], part: str) -> str:
    """Return the tag to save a result under.

    Readers of ``original`` (the next sample, a localizer, step 2) expect all structures under their names on the grid
    of
    the image. Other results never replace it: they are saved under ``original-step1``, ``original-review``,
    ``original-part`` or ``original-iso``.

    Args:
        request: ``save_label``, ``label_tag`` and the settings.
        part: Word for a model's partial result; empty for a complete one.

    Returns:
        The tag; empty if nothing is to be saved.

    Raises:
        SettingError: The tag is not a word, is too long with its additions, or belongs to readers.
    """
    if not saves_label(request):
        return ""
    tag = str(getattr(request.get("label_tag"), "value", request.get("label_tag")) or "original")
    settings = read_settings(request)
    some = SOME_STRUCTURES if len(settings.codes) < len(STRUCTURES) else ""
    grid = ISO_GRID if settings.output_grid == "iso" else ""
    whole = "-".join(filter(None, (tag, part, some, grid)))
    # The joined tag can be too long although the given one is not.
    if tag in READER_TAGS or not is_safe_tag(whole):
        raise SettingError(
            f"The result cannot be saved under the tag {tag!r} (as {whole!r}). Choose a short tag for "
            "predictions such as 'original'."
        )
    return whole
