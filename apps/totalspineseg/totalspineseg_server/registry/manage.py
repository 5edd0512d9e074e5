"""List the versions, how they were made, and which one is in use."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.registry import registry_messages
from totalspineseg_server.registry.judgments import Judgment, handled_by, judged_names, judgments
from totalspineseg_server.registry.model_store import DATASET_OF_STEP, NAME, STARTER, ModelStore
from totalspineseg_server.registry.records import lineage, read_record, removed_versions


@dataclass(frozen=True)
class Listed:
    """One line of the list of versions.

    Attributes:
        name: The version.
        active_steps: Steps for which it is in use.
        created: UTC, ISO 8601; empty if unknown.
        parent: Name of the version it was trained from; empty for others.
        corrections: Number of corrections it was trained on.
        verdict: The gate's sentence, or why the version was not put into use although it passed; empty if it was not
            judged when it was made.
        judged: Time and sentence of the last judgment since then; empty if there is none.
        removed: Time when its weights were removed; empty while they exist.
    """

    name: str
    active_steps: tuple[int, ...]
    created: str
    parent: str
    corrections: int
    verdict: str
    judged: str = ""
    removed: str = ""


def list_versions(store: ModelStore, *, removed: bool = False) -> tuple[Listed, ...]:
    """Return all versions, the starter weights first; those whose weights were removed come last, and only if asked
    for.
    """
    active = {step: store.active().get(step, STARTER) for step in DATASET_OF_STEP}
    names = (STARTER, *store.versions()) if store.starter_dir.is_dir() else store.versions()
    listed = []
    for name in (*names, *(removed_versions(store) if removed else ())):
        record = read_record(store, name) or {}
        last = _looks(store, name)[-1:]
        parents = {parent["name"] for parent in record.get("parents", {}).values()}
        listed.append(
            Listed(
                name,
                tuple(step for step, chosen in active.items() if chosen == name),
                str(record.get("created", "")),
                ", ".join(sorted(parents)),
                len(record.get("training", ())),
                str(record.get("not_served") or (record.get("gate") or {}).get("reason", "")),
                "".join(f"judged {entry.time}: {entry.verdict}" for entry in last),
                str(record.get("removed", "")),
            )
        )
    return tuple(listed)


def show_version(store: ModelStore, name: str) -> Mapping[str, Any]:
    """Return everything that is recorded about a version, its ancestors, and how well it does on synthetic spines.

    Raises:
        WeightsError: There is no such version, and none was removed.
    """
    if name not in removed_versions(store):
        require_known(store, name)
    record = read_record(store, name) or {"name": name}
    judged = [asdict(judgment) for judgment in _looks(store, name)]
    synthetic = handled_by(store, name)
    return {**record, "judgments": judged, "synthetic": synthetic, "lineage": list(lineage(store, name))}


def require_served(store: ModelStore, name: str) -> None:
    """Check that a version may be put into use: the gate refused it neither when it was made nor in a later judgment.

    If the same hold-out was used several times, the last judgment counts.

    Raises:
        WeightsError: The gate refused it; the message is the gate's.
    """
    require_known(store, name)
    gate = (read_record(store, name) or {}).get("gate") or {}
    refusals = [str(gate.get("reason", "no reason recorded"))] if gate and not gate.get("publish", False) else []
    last_looks = {judgment.site: judgment for judgment in _looks(store, name)}.values()
    refusals += [judgment.verdict for judgment in last_looks if not judgment.passed]
    if refusals:
        raise WeightsError(registry_messages.REFUSED.format(name=name, verdict=refusals[-1]))


def was_judged(store: ModelStore, name: str) -> bool:
    """Return whether the gate ever judged a version. The starter weights count as judged, because others are compared
    with them.
    """
    return name == STARTER or bool((read_record(store, name) or {}).get("gate") or _looks(store, name))


def require_known(store: ModelStore, name: str) -> None:
    """Check that the weights of a version exist.

    Raises:
        WeightsError: They do not exist.
    """
    known = (*store.versions(), STARTER)
    if not NAME.fullmatch(name) or name not in known:
        gone = registry_messages.REMOVED_WEIGHTS if name in removed_versions(store) else ""
        raise WeightsError(registry_messages.NO_VERSION.format(name=name, gone=gone, known=", ".join(known)))


def _looks(store: ModelStore, name: str) -> list[Judgment]:
    """Return all judgments on the networks of a version, under any name that they had, oldest first."""
    digests = (read_record(store, name) or {}).get("digests")
    same = [
        other
        for other in judged_names(store)
        if other == name or (digests and (read_record(store, other) or {}).get("digests") == digests)
    ]
    return sorted((entry for other in same for entry in judgments(store, other)), key=lambda entry: entry.time)


HOLDOUT: Final = "hold-out"
"""Name of the set of the site's own scans in a report of the gate."""


def overview(store: ModelStore) -> list[dict[str, Any]]:
    """Return all versions as plain values for JSON, including those whose weights were removed.

    Returns:
        ``name``, ``in_use`` (steps), ``created``, ``parents`` (step -> name), ``corrections``, ``annotators``,
        ``passed`` (None if no gate judged it), ``verdict``, ``table`` (one line per set and measure) and ``holdout``
        (measure -> score on the site's own scans), ``removed``.
    """
    return [
        _version(store, entry.name, entry.active_steps, entry.removed) for entry in list_versions(store, removed=True)
    ]


def _version(store: ModelStore, name: str, in_use: tuple[int, ...], removed: str) -> dict[str, Any]:
    try:
        record = show_version(store, name)
    except StorageError as error:
        record = {"not_served": str(error)}
    training = [case for case in record.get("training", ()) if isinstance(case, Mapping)]
    last = (record.get("judgments") or [None])[-1]
    gate: Mapping[str, Any] = (last["report"] if last else record.get("gate")) or {}
    passed = bool(gate.get("publish")) if gate else None
    verdict = (last["verdict"] if last else "") or record.get("not_served") or gate.get("reason", "")
    table = _table(gate)
    return {
        "name": name,
        "in_use": list(in_use),
        "created": str(record.get("created", "")),
        "parents": {step: str(parent.get("name", "")) for step, parent in record.get("parents", {}).items()},
        "corrections": len({str(case.get("correction")) for case in training}),
        "annotators": sorted({str(case.get("client") or case.get("annotator") or "") for case in training} - {""}),
        "passed": passed,
        "verdict": str(verdict),
        "table": table,
        "holdout": {line["measure"]: line["candidate"] for line in table if line["set"] == HOLDOUT},
        "removed": removed,
    }


def _table(gate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one line for each comparison of the gate; measures that applied to no subject are left out."""
    return [
        {"set": str(entry.get("name", "")), "measure": str(measure), **values}
        for entry in gate.get("sets", ())
        for measure, values in entry.get("measures", {}).items()
        if values.get("subjects")
    ]
