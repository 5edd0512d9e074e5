"""What it takes to run another program beside this one: a port for it, its end, and no life of its own after ours."""

import os
import socket
import subprocess
import threading
import time
from typing import Final

STOP_SECONDS: Final = 60
"""For what a program has to write before it ends, such as Orthanc its index."""
PARENT: Final = "TOTALSPINESEG_PARENT"
"""Environment variable with the id of the process that background processes must not outlive."""
LOOK_SECONDS: Final = 1.0
"""How often a background process looks for its parent."""
GRACE_SECONDS: Final = 20.0
"""For what a background process has to store once its parent is gone, such as a training its state."""


def free_port() -> int:
    """A port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: "subprocess.Popen[bytes]", *, seconds: float = STOP_SECONDS) -> None:
    """End a process, in the end without its consent.

    Args:
        process: May have ended already.
        seconds: How long it may take to end by itself.
    """
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def become_parent() -> None:
    """Let the background processes that this one starts end with it; see ``end_with_parent``."""
    os.environ[PARENT] = str(os.getpid())


def parent_is_gone() -> bool:
    """Whether this process was started by one that called ``become_parent`` and has ended since, even by SIGKILL.

    Processes further down are not meant: to them their grandparent is always gone.
    """
    return _has_parent() and os.getppid() != int(os.environ[PARENT])


def end_with_parent(*, grace_seconds: float = GRACE_SECONDS) -> None:
    """See to it that this process ends when its parent has; nothing happens in the parent itself, or without one.

    Args:
        grace_seconds: How long it may take to end by itself, as soon as ``parent_is_gone``.
    """

    def watch() -> None:
        while not parent_is_gone():
            time.sleep(LOOK_SECONDS)
        time.sleep(grace_seconds)
        os._exit(1)

    if _has_parent():
        threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _has_parent() -> bool:
    return os.environ.get(PARENT, str(os.getpid())) != str(os.getpid())
