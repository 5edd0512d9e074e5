"""Let the gate judge a version in a process of its own, so that neither the page nor a reader waits for it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import HTTPException

from totalspineseg_server.front import front_messages
from totalspineseg_server.infers.http import BUSY
from totalspineseg_server.processes import stop, tied

PACKAGE: Final = Path(__file__).parents[1]
PROGRAM: Final = f"import sys; from {PACKAGE.name}.cli import main; sys.exit(main(sys.argv[1:]))"
JUDGED: Final = (0, 1)
"""Exit codes of a judgment: passed, refused."""
STOP_SECONDS: Final = 5.0


class Judge:
    """The current judgment, or the last one. Only one runs at a time, because each keeps all processors busy for
    minutes.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_running = self._was_stopped = False
        self._version = self._line = self._failure = ""
        self._begun = 0.0

    def start(self, version: str, words: Sequence[str]) -> None:
        """Start a judgment.

        Args:
            version: Its name, for ``state``.
            words: Arguments of ``totalspineseg models judge``.

        Raises:
            HTTPException: Another judgment is running.
        """
        with self._guard:
            if self._is_running:
                raise HTTPException(BUSY, front_messages.JUDGING_RUNS.format(version=self._version))
            self._is_running, self._was_stopped = True, False
            self._version, self._line, self._failure = version, front_messages.NETWORKS_LOADED, ""
            self._begun = time.monotonic()
        threading.Thread(target=self._run, args=(words,), name="judge", daemon=True).start()

    def stop(self) -> None:
        """End the current judgment, if there is one."""
        with self._guard:
            self._was_stopped = True
            process = self._process
        if process is not None:
            stop(process, seconds=STOP_SECONDS)

    def state(self) -> dict[str, Any]:
        """Return ``running``, the ``version``, ``seconds`` so far, the last line of progress as ``message``, and
        ``failure``: why the last judgment ended without a verdict."""
        with self._guard:
            return {
                "running": self._is_running,
                "version": self._version,
                "seconds": round(time.monotonic() - self._begun) if self._is_running else 0,
                "message": self._line if self._is_running else "",
                "failure": self._failure,
            }

    def _run(self, words: Sequence[str]) -> None:
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
        # Linux ends the process with this thread, which lives as long as the process, and with the server.
        command = tied([sys.executable, "-c", PROGRAM, "models", "judge", *words])
        code, line = -1, ""
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            )
            with self._guard:
                self._process, was_stopped = process, self._was_stopped
            if was_stopped:
                process.terminate()
            assert process.stdout is not None
            for raw in process.stdout:
                if text := raw.decode("utf-8", "replace").strip():
                    line = text
                    with self._guard:
                        self._line = text
            code = process.wait()
            process.stdout.close()
        except OSError as error:
            line = str(error)
        finally:
            with self._guard:
                self._process, self._is_running = None, False
                if code not in JUDGED and not self._was_stopped:
                    reason = line or front_messages.LOG_SAYS
                    self._failure = front_messages.NOT_JUDGED.format(version=self._version, reason=reason)
