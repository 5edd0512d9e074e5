"""Read JSON objects as dataclasses, including records that another version of this software wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from totalspineseg_server.errors import StorageError

T = TypeVar("T")


def from_fields(kind: type[T], content: object, source: str) -> T:
    """Build a dataclass from a JSON object.

    Args:
        kind: A dataclass of JSON native values; its tuples are lists in JSON.
        content: The JSON value. Fields that ``kind`` does not have are ignored. Not modified.
        source: Name of its source, for the message.

    Raises:
        StorageError: It is not an object, lacks a field that has no default, or a value has another type.
    """
    if not isinstance(content, Mapping):
        raise StorageError(f"The record {source} is damaged: it has no fields. Restore it from a backup.")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    missing, wrong = [], []
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in content:
            value, hint = content[field.name], hints[field.name]
            if not _fits(value, hint):
                wrong.append(field.name)
            values[field.name] = tuple(value) if get_origin(hint) is tuple and not wrong else value
        elif field.default is MISSING and field.default_factory is MISSING:
            missing.append(field.name)
    if missing or wrong:
        faults = (("it lacks", missing), ("it has unusable values of", wrong))
        listed = " and ".join(f"{fault} {', '.join(names)}" for fault, names in faults if names)
        raise StorageError(f"The record {source} is damaged: {listed}. Restore it from a backup.")
    return kind(**values)


def _fits(value: object, hint: Any) -> bool:
    """Return whether a JSON value has the type of a field; the contents of collections are not checked."""
    origin, kinds = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in kinds)
    if origin is Literal:
        return value in kinds
    if hint in (None, NoneType):
        return value is None
    base = origin or hint
    if issubclass(base, str):
        return isinstance(value, str)
    if issubclass(base, Mapping):
        return isinstance(value, Mapping)
    if issubclass(base, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, str)
    if base in (int, float):
        return isinstance(value, int if base is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, base)
