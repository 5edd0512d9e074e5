"""Under which tag of the datastore a result is kept: a whole one as it was asked for, any other beside it."""

from collections.abc import Mapping
from typing import Any, Final

from lib.anatomy import STRUCTURES
from lib.corrections.datastore import is_safe_tag
from lib.corrections.inbox import READER_TAGS
from lib.infers.settings import SettingError, read_settings

SOME_STRUCTURES: Final = "part"
ISO_GRID: Final = "iso"


def saves_label(request: Mapping[str, Any]) -> bool:
    """Return whether a request asks to keep its result among the labels of the image."""
    return request.get("save_label") in (True, "true", "True")


def result_tag(request: Mapping[str, Any], part: str) -> str:
    """The tag to save a result under.

    Whoever asks for ``original`` (the next sample, a localizer, step 2) takes it for all structures under their names
    on the grid of the image. What is something else never takes its place: it goes to ``original-step1``,
    ``original-review``, ``original-part`` or ``original-iso``.

    Args:
        request: ``save_label``, ``label_tag`` and the settings.
        part: What the model gives in place of the whole result; empty where it gives that.

    Returns:
        The tag; empty where nothing is to be saved.

    Raises:
        SettingError: A tag that is no word, too long with what is added to it, or a reader's.
    """
    if not saves_label(request):
        return ""
    tag = str(getattr(request.get("label_tag"), "value", request.get("label_tag")) or "original")
    settings = read_settings(request)
    some = SOME_STRUCTURES if len(settings.codes) < len(STRUCTURES) else ""
    grid = ISO_GRID if settings.output_grid == "iso" else ""
    whole = "-".join(filter(None, (tag, part, some, grid)))
    # What is joined can be too long where the tag is not.
    if tag in READER_TAGS or not is_safe_tag(whole):
        raise SettingError(
            f"a short tag for predictions such as 'original' is required, got {tag!r}, kept as {whole!r}; change it"
        )
    return whole
