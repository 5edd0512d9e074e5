"""What travels to the workers: functions and a plugin that are sent as code, because workers cannot import ``lib`` yet.

Everything here is defined inside a function, which makes Dask send it by value; the plugin then puts the app's folder
on the worker's ``sys.path``, as the launcher does here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from distributed import WorkerPlugin

APP: Final = Path(__file__).resolve().parents[2]
"""The folder that holds ``lib``; the same on all machines."""


def make_plugin(name: str, job: Mapping[str, Any], *, ignore_interrupts: bool) -> WorkerPlugin:
    """The plugin that keeps one ``Station`` per worker process.

    Args:
        name: The plugin's name; another for every run.
        job: From ``station.job_json``.
        ignore_interrupts: Leave Ctrl-C to the process that started the workers.
    """
    app, title, content = str(APP), name, dict(job)

    class Warm(WorkerPlugin):  # type: ignore[misc]
        """Holds the station, from the first scan to the end of the run."""

        name = title

        def setup(self, worker: Any) -> None:
            """Make ``lib`` importable and open the station; a worker that joins later does the same."""
            import signal
            import sys
            import threading

            if app not in sys.path:
                sys.path.insert(0, app)
            if ignore_interrupts and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            from lib.cohort.station import Station

            self.station = Station(content)

        def teardown(self, worker: Any) -> None:
            """The run is over: scans in hand end, networks are dropped."""
            self.station.stop()

    return Warm()


def make_task(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function that does one scan on a worker.

    Args:
        name: The plugin's name.
    """
    app = str(APP)

    def segment(case: Mapping[str, Any]) -> dict[str, Any]:
        from distributed import get_worker

        plugin = get_worker().plugins.get(name)
        if plugin is None:
            return {"stopped": True}
        station = getattr(plugin, "station", None)
        if station is None:
            # Dask keeps a plugin whose setup failed on a worker that joined later; it would fail scan after scan.
            return {"refusal": f"workers that see the app under the same path ({app}) are required, got one without"}
        answer: dict[str, Any] = station.segment(case)
        return answer

    return segment
