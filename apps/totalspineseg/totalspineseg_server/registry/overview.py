"""List all versions for people: what each was trained from, on which corrections, and the numbers of the gate."""

from collections.abc import Mapping
from typing import Any, Final

from totalspineseg_server.errors import StorageError
from totalspineseg_server.registry.manage import list_versions, show_version
from totalspineseg_server.registry.model_store import ModelStore

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
