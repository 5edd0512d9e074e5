"""Make the code that is sent to the workers, which cannot import the package yet.

Everything here is defined inside a function, which makes Dask send it by value; the plugin then adds the app's folder
to the worker's ``sys.path``, as the launcher does here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from distributed import WorkerPlugin

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.places import PACKAGE

APP: Final = PACKAGE.parent
"""Folder that holds the package; the same on all machines."""


def make_plugin(name: str, job: Mapping[str, Any], *, ignore_interrupts: bool) -> WorkerPlugin:
    """Return the plugin that holds one ``ScanWorker`` in each worker process.

    Args:
        name: The plugin's name; a new one for every run.
        job: From ``worker.job_json``.
        ignore_interrupts: Whether to leave Ctrl-C to the process that started the workers.
    """
    app, title, content = str(APP), name, dict(job)

    class Warm(WorkerPlugin):  # type: ignore[misc]
        """Holds the ``ScanWorker``, from the first scan to the end of the run."""

        name = title

        def setup(self, worker: Any) -> None:
            """Make the package importable and make the ``ScanWorker``; a worker that joins later does the same."""
            import signal
            import sys
            import threading

            if app not in sys.path:
                sys.path.insert(0, app)
            if ignore_interrupts and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            from totalspineseg_server.cohort.worker import ScanWorker

            self.scan_worker = ScanWorker(content)

        def teardown(self, worker: Any) -> None:
            """Let running scans finish, and release the networks, because the run is over."""
            self.scan_worker.stop()

    return Warm()


def make_task(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return the function that processes one scan on a worker.

    Args:
        name: The plugin's name.
    """
    # Dask sends the function whole, so that it works on a worker that cannot import the app.
    refusal = cohort_messages.APP_NOT_SEEN.format(app=str(APP))

    def segment(case: Mapping[str, Any]) -> dict[str, Any]:
        from distributed import get_worker

        plugin = get_worker().plugins.get(name)
        if plugin is None:
            return {"stopped": True}
        scan_worker = getattr(plugin, "scan_worker", None)
        if scan_worker is None:
            # If the setup fails on a worker that joined later, Dask keeps the plugin, which would fail scan after scan.
            return {"refusal": refusal}
        answer: dict[str, Any] = scan_worker.segment(case)
        return answer

    return segment
