"""Which predictions were made by weights, or by what they descend from."""

from collections.abc import Collection, Mapping

from lib.nnunet.version import parts_of
from lib.registry.records import lineage, read_record
from lib.registry.store import ModelStore


def line_of(store: ModelStore, names: Collection[str]) -> frozenset[str]:
    """Return what versions and their ancestors are known by: names, and what tells the answers of their networks.

    Args:
        store: Where the versions are.
        names: "starter" or versions' names.
    """
    found: set[str] = set()
    for ancestor in {ancestor for name in names for ancestor in lineage(store, name)}:
        record = read_record(store, ancestor) or {}
        parents = (str(parent["version"]) for parent in record.get("parents", {}).values())
        found |= {ancestor, *(parts_of(version)[1] for version in (*record.get("models", {}).values(), *parents))}
    return frozenset(found)


def is_of_line(prediction: Mapping[str, object] | None, line: frozenset[str]) -> bool:
    """Whether a network of a line made a prediction, by either step.

    Args:
        prediction: What the record of a correction says of it ("versions": step -> version); None for none.
        line: From ``line_of``.
    """
    versions = (prediction or {}).get("versions")
    made_by = [str(version) for version in versions.values()] if isinstance(versions, Mapping) else []
    return any(not line.isdisjoint(parts_of(version)) for version in made_by)
