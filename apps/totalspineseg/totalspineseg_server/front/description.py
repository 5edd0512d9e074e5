"""Describe what this server accepts in ``/openapi.json``, so that client programs can be generated and tested."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from totalspineseg_server.corrections.correction_store import SAFE_TAG
from totalspineseg_server.corrections.ids import MAX_STEM_CHARACTERS
from totalspineseg_server.front.guard import ID_PARAMETERS, SESSION_ID, Known
from totalspineseg_server.version import VERSION

URL: Final = "/openapi.json"
TITLE: Final = "TotalSpineSeg"
ID: Final = {"minLength": 1, "maxLength": MAX_STEM_CHARACTERS, "pattern": r"^[^\u0000-\u001f\u007f]+$"}
"""Rule for ids: any name that a person can read."""
TEXTS: Final[Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(ID_PARAMETERS, ID),
    "tag": {"pattern": f"^{SAFE_TAG.pattern}$"},
    "session_id": {"pattern": f"^{SESSION_ID.pattern}$"},
}
"""Rule for the text of each parameter, as the guard enforces it; "" means none where the parameter is optional."""
JSON_FIELDS: Final = ("params", "info")
"""Fields of forms that hold a JSON object."""
JSON_TEXT: Final = {"contentMediaType": "application/json", "contentSchema": {"type": "object"}}
LEFT_OUT: Final = {
    **dict.fromkeys(("/batch/infer/{model}", "/scoring/{method}"), ("run_sync", "token")),
    "": ("token",),
}
"""Path -> parameters of MONAI Label that the guard refuses, or that have an effect only without authentication. Those
of all other paths are under ""."""
PACS: Final = ("/proxy/", "/submissions/{instance}")
SCORING: Final = ("/scoring/",)
"""Paths that are useless without a PACS, or without a scoring method."""
METHODS: Final = ("get", "head", "put", "post", "delete")


def install(app: FastAPI, known: Callable[[], Known]) -> None:
    """Let an application describe its routes.

    Args:
        app: Application whose routes are in place at the first request.
        known: Called for each request; returns the names of everything that the running app offers.
    """

    def openapi() -> dict[str, Any]:
        return described(get_openapi(title=TITLE, version=VERSION, routes=app.routes), known())

    app.openapi = openapi  # type: ignore[method-assign]


def described(document: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """Describe which values each parameter accepts.

    Args:
        document: The framework's description of the routes. Not modified.
        known: The names of everything that the running app offers.

    Returns:
        The description without the operations that have nothing to offer on this server.
    """
    names: dict[str, Collection[str]] = {
        "/infer/{model}": known.models,
        "/batch/infer/{model}": known.models,
        "/train/{model}": known.trainers,
        "/scoring/{method}": known.scorers,
        "/activelearning/{strategy}": known.strategies,
    }
    closed = (*(() if known.on_server else PACS), *(() if known.scorers else SCORING))
    paths = {path: operations for path, operations in document["paths"].items() if not path.startswith(closed)}
    for path, operation in _operations(paths):
        operation["parameters"] = [
            _parameter(entry, names.get(path, ()))
            for entry in operation.get("parameters", ())
            if entry["name"] not in LEFT_OUT.get(path, LEFT_OUT[""])
        ]
    schemas = {name: _form(schema) for name, schema in document.get("components", {}).get("schemas", {}).items()}
    return {**document, "paths": paths, "components": {**document.get("components", {}), "schemas": schemas}}


def _operations(paths: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in paths.items():
        for method in METHODS:
            if method in operations:
                yield path, operations[method]


def _parameter(entry: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    schema = dict(entry["schema"])
    if entry["in"] == "path" and names:
        schema["enum"] = sorted(names)
    elif rule := TEXTS.get(entry["name"]):
        # A default of "" does not follow the rule.
        schema = (
            {**schema, **rule} if schema.pop("default", None) != "" else {"anyOf": [{**schema, **rule}, {"const": ""}]}
        )
    return {**entry, "schema": schema}


def _form(schema: Mapping[str, Any]) -> dict[str, Any]:
    fields = schema.get("properties", {})
    texts = {
        name: {**fields[name], **JSON_TEXT} for name in JSON_FIELDS if fields.get(name, {}).get("type") == "string"
    }
    return {**schema, "properties": {**fields, **texts}} if texts else dict(schema)
