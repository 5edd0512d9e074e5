"""Run other programs: find a port for them, end them, and keep them from outliving this process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

STOP_SECONDS: Final = 60
"""Time that a program, such as Orthanc, has to write its data before it is killed."""
PARENT: Final = "TOTALSPINESEG_PARENT"
"""Environment variable with the id of the process that background processes must not outlive."""
LOOK_SECONDS: Final = 1.0
"""Interval at which a background process checks its parent."""
GRACE_SECONDS: Final = 20.0
"""Time for a background process, such as a training, to save its data once its parent is gone."""
ENDING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a program to end; Windows has no SIGHUP."""
SIGNALED: Final = 128
"""Exit status of a process that was ended by a signal, minus the signal's number, as in a shell."""
TIED: Final = """
import ctypes, os, signal, sys
kernel = ctypes.CDLL(None)
if hasattr(kernel, "prctl"):
    kernel.prctl(1, ctypes.c_ulong(signal.SIGTERM))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Program that asks Linux for SIGTERM when the parent is gone (1: PR_SET_PDEATHSIG), and then becomes the command."""


def free_port() -> int:
    """Return a port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: "subprocess.Popen[bytes]", *, seconds: float = STOP_SECONDS) -> None:
    """End a process, by force if it does not end itself.

    Args:
        process: Process that may have ended already.
        seconds: Time that it has to end itself.
    """
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tied(command: Sequence[str]) -> list[str]:
    """Return a command that gets SIGTERM when this process is gone, even after SIGKILL; outside Linux it is unchanged.

    Args:
        command: A program's path and its arguments. The thread that starts it must live as long as the program, because
            to Linux this thread is the parent.
    """
    if sys.platform == "win32":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]


def unwind_on_signals() -> None:
    """Make signals that end this process raise ``SystemExit``, so that its child processes stop and temporary folders
    are removed.

    A second signal changes nothing, so that the cleanup is completed. A signal that was ignored before, as with nohup,
    stays ignored.
    """

    def leave(number: int, _: object) -> None:
        for other in ENDING:
            signal.signal(other, lambda *_: None)
        sys.exit(SIGNALED + number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def become_parent() -> None:
    """Let the background processes that this process starts end with it; see ``end_with_parent``."""
    os.environ[PARENT] = str(os.getpid())


def parent_is_gone() -> bool:
    """Return whether the parent of this process called ``become_parent`` and has ended, even by SIGKILL.

    Windows does not report this: there, a process keeps the number of a parent that has ended.

    Do not call it in a grandchild, for which the parent always counts as gone.
    """
    return _has_parent() and os.getppid() != int(os.environ[PARENT])


def end_with_parent(*, grace_seconds: float = GRACE_SECONDS) -> None:
    """Let this process end when its parent has ended; nothing happens in the parent itself, or without one.

    Args:
        grace_seconds: Time that it has to end itself once ``parent_is_gone``.
    """

    def watch() -> None:
        while not parent_is_gone():
            time.sleep(LOOK_SECONDS)
        time.sleep(grace_seconds)
        os._exit(1)

    if _has_parent():
        threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_within(seconds: float) -> None:
    """End this process even if its threads are still working.

    Args:
        seconds: Time for the main program to end everything else.
    """

    def end() -> None:
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=end, name="end", daemon=True).start()


def _has_parent() -> bool:
    return os.environ.get(PARENT, str(os.getpid())) != str(os.getpid())
