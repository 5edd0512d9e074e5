"""List the official releases that this software supports, and find the one from which the weights in use come."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry import registry_messages
from totalspineseg_server.registry.model_store import OFFICIAL_PREFIX, STARTER, ModelStore
from totalspineseg_server.registry.records import lineage, read_record

RELEASES: Final = ("r20251124", "r20260730")
"""The supported releases, oldest first."""
NEWEST: Final = RELEASES[-1]
RELEASE_NAME: Final = re.compile(r"r\d{8}")
"""Pattern of a release: the letter and the date; names sort by age."""
OFFICIAL_NAME: Final = re.compile(r"Dataset10([12])_TotalSpineSeg_step\1_(r\d{8})(?!\d)")
"""Beginning of the file name of an official zip, with step and release; a browser may have added " (1)" to it."""
VERSION_TEXT: Final = re.compile(r"(?P<name>.+?)(-[0-9a-f]{8})?(@.*)?")
"""Pattern of a version as predictions state it: the name of the weights, perhaps with a digest and the runtime."""


def release_of(store: ModelStore, name: str, step: int) -> str:
    """Return the official release from which a version's network was trained; empty if unknown.

    Args:
        store: Holds the version and its ancestors, or their records.
        name: The version.
        step: 1 or 2.
    """
    for entry in lineage(store, name, step):
        release = entry.removeprefix(OFFICIAL_PREFIX)
        if entry != release and RELEASE_NAME.fullmatch(release):
            return release
        recorded = (read_record(store, entry) or {}).get("releases", {}).get(str(step), "")
        if RELEASE_NAME.fullmatch(str(recorded)):
            return str(recorded)
    return ""


def require_supported(release: str) -> None:
    """Check that a release is not too old. A newer one may fit: its regions are checked elsewhere.

    Raises:
        WeightsError: It is too old.
    """
    if release < RELEASES[0]:
        raise WeightsError(
            registry_messages.TOO_OLD.format(
                release=release, releases=" and ".join(RELEASES), newest=NEWEST, command=COMMAND
            )
        )


def require_one_release(store: ModelStore, names: Mapping[int, str]) -> None:
    """Check that both steps come from the same release: a mixed pair was never trained or tested together.

    Args:
        store: Holds the versions.
        names: Step -> version that is in use or will be.

    Raises:
        WeightsError: The releases differ, or one is too old.
    """
    releases = {step: release for step, name in names.items() if (release := release_of(store, name, step))}
    for release in releases.values():
        require_supported(release)
    require_same(releases, {step: repr(names[step]) for step in releases})


def require_same(releases: Mapping[int, str], names: Mapping[int, str]) -> None:
    """Check that the steps come from one release.

    Args:
        releases: Step -> release, for steps whose release is known.
        names: Step -> name of its weights.

    Raises:
        WeightsError: They differ.
    """
    if len(set(releases.values())) > 1:
        pair = " and ".join(f"step {step} ({names[step]}) from {releases[step]}" for step in sorted(releases))
        raise WeightsError(registry_messages.TWO_RELEASES.format(pair=pair, command=COMMAND))


def weights_text(store: ModelStore, names: Mapping[int, str]) -> str:
    """Return sentences that say which weights are in use, what they are for, and whether there is a newer release.

    Args:
        store: Holds the versions.
        names: Step -> version in use.
    """
    distinct = sorted(set(names.values()))
    sentences = (
        registry_messages.WEIGHTS_IN_USE.format(names=", ".join(distinct)),
        warning_of(store, distinct),
        release_text(store, names),
    )
    return " ".join(filter(None, sentences))


def warning_of(store: ModelStore, versions: Iterable[str]) -> str:
    """Return the warning for starter weights or weights trained from them; "" for other weights.

    Args:
        store: Holds the versions, or their records.
        versions: Names, or versions with their digest and runtime.
    """
    texts = set(versions)
    # A name may itself end like a digest.
    names = {match["name"] for text in texts if (match := VERSION_TEXT.fullmatch(text))} | texts
    if STARTER in names:
        return registry_messages.STARTER_WARNING
    for name in sorted(names):
        ancestors = lineage(store, name)
        if STARTER in ancestors:
            records = (read_record(store, one) or {} for one in ancestors)
            cases = {
                str(case.get("correction") or case.get("image"))
                for record in records
                for case in record.get("training", ())
            }
            count = "1 corrected scan" if len(cases) == 1 else f"{len(cases)} corrected scans"
            return registry_messages.DESCENDANT_WARNING.format(name=name, count=count)
    return ""


def release_text(store: ModelStore, names: Mapping[int, str]) -> str:
    """Return a sentence about the release the weights come from, and about newer ones; empty if it is unknown.

    Args:
        store: Holds the versions.
        names: Step -> version in use.
    """
    found = sorted({release for step, name in names.items() if (release := release_of(store, name, step))})
    if not found:
        return ""
    release = found[0]
    if release > NEWEST:
        return registry_messages.NEWER_RELEASE.format(release=release, newest=NEWEST)
    if release == NEWEST:
        return registry_messages.NEWEST_RELEASE.format(release=release)
    return registry_messages.OLDER_RELEASE.format(release=release, newest=NEWEST, command=COMMAND)
