"""Record which versions were in use, so that a rollback knows where to return to."""

import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import append_line, read_json_lines, storage_errors
from totalspineseg_server.registry import registry_messages

logger = logging.getLogger(__name__)

FILE: Final = "activations.jsonl"
"""File beside the pointer file with one line for each change, which is written before the change."""


@dataclass(frozen=True)
class Activation:
    """One change of the versions in use.

    Attributes:
        time: UTC, ISO 8601.
        before: Step -> version's name before; empty for the starter weights.
        after: Step -> name of the version to be used.
        back: Whether it was a rollback; choosing an earlier version by name is not one.
    """

    time: str
    before: Mapping[int, str]
    after: Mapping[int, str]
    back: bool = False


def note(model_dir: Path, before: Mapping[int, str], after: Mapping[int, str], *, back: bool) -> None:
    """Record a change that is about to be made; if a crash prevents the change, the line does no harm.

    Args:
        model_dir: Folder of the pointer file.
        before: See ``Activation``.
        after: See ``Activation``.
        back: See ``Activation``.

    Raises:
        StorageError: The file cannot be written.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = {"time": now, "before": _keys(before), "after": _keys(after), "back": back}
    with storage_errors(model_dir / FILE):
        append_line(model_dir / FILE, json.dumps(line))


def changes(model_dir: Path) -> tuple[Activation, ...]:
    """Return all changes, oldest first, without lines that a crash left incomplete."""
    found = []
    for content in read_json_lines(model_dir / FILE):
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            before, after = _steps(content["before"]), _steps(content["after"])
            found.append(Activation(str(content["time"]), before, after, content.get("back") is True))
    return tuple(found)


def made(model_dir: Path, current: Mapping[int, str], default: str) -> tuple[Activation, ...]:
    """Return the changes that were made, oldest first, without those that were recorded but that a crash prevented.

    Args:
        model_dir: Folder of the pointer file.
        current: Step -> name in the pointer file.
        default: Name of the weights if the pointer names none.

    Returns:
        Changes that name the version of both steps.
    """

    def whole(names: Mapping[int, str]) -> dict[int, str]:
        return {step: names.get(step, default) for step in (1, 2)}

    noted = [replace(change, before=whole(change.before), after=whole(change.after)) for change in changes(model_dir)]
    followed_by = [*(change.before for change in noted), whole(current)][1:]
    return tuple(change for change, then in zip(noted, followed_by, strict=True) if change.after == then)


def before_last(model_dir: Path, current: Mapping[int, str], default: str, there: Collection[str]) -> Mapping[int, str]:
    """Return the versions in use before the last change; a second rollback goes one change further back, not forward.

    Args:
        model_dir: Folder of the pointer file.
        current: Step -> name in the pointer file.
        default: Name of the weights if the pointer names none.
        there: Versions that still exist; others are skipped.

    Raises:
        WeightsError: Nothing was changed yet, or no earlier version exists anymore.
    """
    here = {step: current.get(step, default) for step in (1, 2)}
    stack: list[Mapping[int, str]] = [dict.fromkeys(here, default)]
    for change in made(model_dir, current, default):
        # A rollback undoes more than one change if it had to skip versions that no longer exist.
        while change.back and len(stack) > 1 and stack[-1] != change.after:
            stack.pop()
        if stack[-1] != change.after:
            stack.append(change.after)
    if stack[-1] != here:
        stack.append(here)
    for names in stack[-2::-1]:
        if gone := sorted(set(names.values()) - set(there)):
            logger.warning("Skipped by the rollback, because they no longer exist: %s", ", ".join(gone))
        elif names != here:
            return names
    raise WeightsError(registry_messages.NOTHING_TO_ROLL_BACK)


def _keys(names: Mapping[int, str]) -> dict[str, str]:
    return {str(step): name for step, name in names.items()}


def _steps(names: Mapping[str, str]) -> dict[int, str]:
    return {int(step): str(name) for step, name in names.items()}
