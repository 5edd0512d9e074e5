"""Spine MRI: name and segment every vertebra, disc, the cord and the canal.

``load_model``, ``segment``, ``number``, ``lint`` and ``measure`` are the Python API; it is imported at its first use.
"""

from typing import TYPE_CHECKING, Any

from totalspineseg_server.version import VERSION

if TYPE_CHECKING:
    from totalspineseg_server.api import lint, load_model, measure, number, segment

__all__ = ["lint", "load_model", "measure", "number", "segment"]

__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Return a function of the API."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from totalspineseg_server import api

    return getattr(api, name)
