"""Find out whether some weights or their ancestors made a prediction."""

from collections.abc import Collection, Mapping

from totalspineseg_server.nnunet.content_version import parts_of
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import lineage, read_record


def line_of(store: ModelStore, names: Collection[str]) -> frozenset[str]:
    """Return the names of versions and their ancestors, and the identifiers that their networks' predictions carry.

    Args:
        store: The model versions.
        names: "starter" or versions' names.
    """
    found: set[str] = set()
    for ancestor in {ancestor for name in names for ancestor in lineage(store, name)}:
        record = read_record(store, ancestor) or {}
        parents = (str(parent["version"]) for parent in record.get("parents", {}).values())
        found |= {ancestor, *(parts_of(version)[1] for version in (*record.get("models", {}).values(), *parents))}
    return frozenset(found)


def is_of_line(prediction: Mapping[str, object] | None, line: frozenset[str]) -> bool:
    """Return whether a network of a line made a prediction, in either step.

    Args:
        prediction: The prediction in a correction's record ("versions": step -> version); None if there is none.
        line: From ``line_of``.
    """
    versions = (prediction or {}).get("versions")
    made_by = [str(version) for version in versions.values()] if isinstance(versions, Mapping) else []
    return any(not line.isdisjoint(parts_of(version)) for version in made_by)
