"""Give schemathesis what it cannot invent: ids of existing images, real images and labels, names of files.

Schemathesis loads this module with the server's description (see tools/fuzz.py); real values are in a JSON file.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import schemathesis

KNOWN = json.loads(Path(os.environ["FUZZ_KNOWN"]).read_text(encoding="utf-8"))
CONTENT = {name: Path(name).read_bytes() for name in (*KNOWN["images"], *KNOWN["labels"])}
RANDOM = random.Random(KNOWN["seed"])
REAL = 0.9
"""Share of the values that are replaced by real ones."""
NAMES = (
    "image.nii.gz",
    "volume.NRRD",
    "ü" * 150 + ".dcm",
    "..",
    "a/../b.nii",
    "\u202e.dcm",
    "meta.info",
    "x" * 400,
    "series.zip",
    "",
)
"""Names of files, some of them not valid."""
OK = 200
REASON = 70
"""Number of letters of a refusal that are kept."""
MADE = {"PUT /session/": ("session_id", "session_id"), "PUT /datastore/image": ("image", "image")}
"""Operation -> parameter whose values it creates, and the field of its answer with them."""
FILES = {"file": "images", "label": "labels"}
JSON_TEXTS = (
    "{}",
    "",
    "null",
    "[]",
    '{"client_id": "reader"}',
    '{"label_info": []}',
    '{"image": 3, "pin": "L5 0 0 0"}',
)
SETTINGS: dict[str, Any] = {
    "save_label": True,
    "label_tag": "original",
    "result_extension": ".nii.gz",
    "structures": "discs",
}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Replace most invented values by real ones."""
    instead = KNOWN["instead"].get(f"{case.method.upper()} {case.operation.path}", {})
    for values in (case.query, case.path_parameters):
        for name, known in {**KNOWN["values"], **instead}.items():
            if values and name in values and RANDOM.random() < REAL:
                values[name] = RANDOM.choice(known)
    if isinstance(case.body, dict) and case.media_type == "multipart/form-data":
        kwargs["files"] = [part for name, value in case.body.items() for part in _parts(name, value)]
    elif isinstance(case.body, dict) and case.media_type == "application/x-www-form-urlencoded":
        case.body = {name: _text(name, value) for name, value in case.body.items()}


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Record the answer; later requests use what a request has created."""
    described = case.method.upper() == case.operation.method.upper()
    name = f"{case.operation.method.upper()} {case.operation.path}" if described else "methods that are not described"
    content = _json(response)
    with Path(os.environ["FUZZ_ANSWERS"]).open("a", encoding="utf-8") as file:
        reason = str(content.get("detail", ""))[:REASON]
        file.write(json.dumps([name, case.meta.generation.mode.value, response.status_code, reason]) + "\n")
    if name in MADE and response.status_code == OK:
        parameter, field = MADE[name]
        KNOWN["values"][parameter].append(content[field])


def _json(response: Any) -> dict[str, Any]:
    try:
        content = json.loads(response.content)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    if name == "files":
        return [("files", _file("images", item)) for item in value] if isinstance(value, list) else []
    if name in FILES:
        return [(name, _file(FILES[name], value))]
    return [(name, (None, _text(name, value)))]


def _file(kind: str, made_up: Any) -> tuple[str, bytes]:
    if RANDOM.random() < REAL:
        path = RANDOM.choice(KNOWN[kind])
        return (Path(path).name if RANDOM.random() < REAL else RANDOM.choice(NAMES)), CONTENT[path]
    content = getattr(made_up, "data", made_up)
    return RANDOM.choice(NAMES), content if isinstance(content, bytes) else str(content).encode(errors="replace")


def _text(name: str, value: Any) -> str:
    if name in ("params", "info") and RANDOM.random() < REAL:
        if name == "params" and RANDOM.random() < REAL:
            return json.dumps({"label_info": KNOWN["label_info"], **SETTINGS})
        return RANDOM.choice(JSON_TEXTS)
    return value if isinstance(value, str) else json.dumps(value, default=str)
