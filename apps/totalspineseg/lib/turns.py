"""Locks by name: one thread at a time for each name, all names at once."""

import threading
from weakref import WeakValueDictionary


class Turns:
    """A lock for every name; it is removed with the last thread that holds it or waits for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def at(self, name: str) -> threading.Lock:
        """Return the lock of a name, for a ``with`` statement."""
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())
