"""Watching folders for files that come or go; of many at once it tells once."""

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
"""So long no file has come or gone: who copies a thousand of them tells a thousand times."""
MOST_SECONDS: Final = 5.0
"""Those that keep coming are not waited for any longer than so."""
TOLD: Final = (EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MOVED)


class FolderWatch(FileSystemEventHandler):
    """A watch on folders, until it is stopped.

    Args:
        folders: Folder -> whether what lies below it counts, too. Each folder that is watched costs the system a watch
            of a limited number.
        look: Called after files came or went, in a thread of the watch's own. It must not raise anything.
        index: A file of these folders that changes often, and needs no look.
        reload: Called when it has changed; must not raise anything either.
        poll: Whether the system does not tell of changes, as for folders of another machine.
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
        self._came = threading.Event()
        self._stopped = False
        self._observer: Any = PollingObserver() if poll else Observer()
        try:
            for folder, below in folders.items():
                self._observer.schedule(self, str(folder), recursive=below)
            self._observer.start()
        except OSError as error:
            logger.warning("the studies are not watched (%s); restart the server after files came or went", error)
        threading.Thread(target=self._wait, name="studies-watch", daemon=True).start()

    def on_any_event(self, event: Any) -> None:
        """Take note of a change; hidden files are those being written, and the history's."""
        paths = [path for path in (event.src_path, event.dest_path) if path]
        if self._index in paths:
            self._reload()
        elif event.event_type in TOLD and not all(Path(path).name.startswith(".") for path in paths):
            self._came.set()

    def stop(self) -> None:
        """End the watch."""
        self._stopped = True
        self._observer.stop()
        self._came.set()

    def _wait(self) -> None:
        while self._came.wait() and not self._stopped:
            end = time.monotonic() + MOST_SECONDS
            while self._came.is_set() and time.monotonic() < end:
                self._came.clear()
                time.sleep(QUIET_SECONDS)
            self._look()
