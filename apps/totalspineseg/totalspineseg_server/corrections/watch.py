"""Watch folders for files that appear or disappear, and report many changes at once."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from watchdog.events import EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MOVED, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

logger = logging.getLogger(__name__)

QUIET_SECONDS: Final = 0.5
"""Time without another change before a look, so that copying a thousand files causes one look."""
MOST_SECONDS: Final = 5.0
"""Longest delay of a look while changes continue."""
WATCHED_EVENTS: Final = (EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MOVED)


class FolderWatch(FileSystemEventHandler):
    """A watch on folders, until it is stopped.

    Args:
        folders: Folder -> whether everything below it counts, too. Each watched folder takes one of a limited number of
            watches of the system.
        look: Called after files appeared or disappeared, in a thread of its own. It must not raise anything.
        index: A file in these folders that changes often and needs no look.
        reload: Called after it has changed; must not raise anything either.
        poll: Whether the system does not report changes, as for folders of another machine.
    """

    def __init__(
        self,
        folders: Mapping[Path, bool],
        look: Callable[[], None],
        *,
        index: Path,
        reload: Callable[[], None],
        poll: bool,
    ) -> None:
        self._look = look
        self._index = str(index)
        self._reload = reload
        self._changed = threading.Event()
        self._stopped = False
        self._observer: Any = PollingObserver() if poll else Observer()
        try:
            for folder, below in folders.items():
                self._observer.schedule(self, str(folder), recursive=below)
            self._observer.start()
        except OSError as error:
            logger.warning(
                "The studies folder is not watched (%s). Restart the server after adding or removing files.", error
            )
        threading.Thread(target=self._wait, name="studies-watch", daemon=True).start()

    def on_any_event(self, event: Any) -> None:
        """Note a change, except of hidden files, which are being written or belong to the history."""
        paths = [path for path in (event.src_path, event.dest_path) if path]
        if self._index in paths:
            self._reload()
        elif event.event_type in WATCHED_EVENTS and not all(Path(path).name.startswith(".") for path in paths):
            self._changed.set()

    def stop(self) -> None:
        """End the watch."""
        self._stopped = True
        self._observer.stop()
        self._changed.set()

    def _wait(self) -> None:
        while self._changed.wait() and not self._stopped:
            end = time.monotonic() + MOST_SECONDS
            while self._changed.is_set() and time.monotonic() < end:
                self._changed.clear()
                time.sleep(QUIET_SECONDS)
            self._look()
