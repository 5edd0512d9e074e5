"""Read the settings of a request: a client may send a value, nothing, or the whole list of choices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from totalspineseg_server.errors import SettingError


def choice(request: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """Return the choice that a request makes for a setting; the first one if the request leaves it open.

    Raises:
        SettingError: The value is not one of them.
    """
    value = request.get(name)
    # A client whose user did not change the setting may send back the whole list of choices.
    value = value[0] if isinstance(value, list) and value else value
    if value in (None, "", []):
        return choices[0]
    if value not in choices:
        raise SettingError(f"The setting {name!r} must be one of {', '.join(choices)}, got {value!r}.")
    return str(value)


def text(request: Mapping[str, Any], name: str) -> str:
    """Return a setting that is a free text; "" if the request leaves it open.

    Raises:
        SettingError: The value is not a text.
    """
    value = request.get(name) or ""
    if not isinstance(value, str):
        raise SettingError(f"The setting {name!r} must be text (empty for none), got {value!r}.")
    return value.strip()


def number(
    request: Mapping[str, Any], name: str, low: float, high: float, *, is_whole: bool, none: Sequence[str] = ()
) -> float | None:
    """Return a setting that is a number, or a number in a text; None if the request leaves it open.

    Args:
        request: The request.
        name: The setting.
        low: Smallest value.
        high: Largest value.
        is_whole: Whether it must be a whole number.
        none: Texts that mean that it is left open.

    Raises:
        SettingError: The value is not such a number.
    """
    value = request.get(name)
    if value in (None, "", *none):
        return None
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not low <= found <= high or (is_whole and found != int(found)):
        kind = "a whole number" if is_whole else "a number"
        raise SettingError(f"The setting {name!r} must be {kind} from {low:g} to {high:g}, got {value!r}.")
    return found
