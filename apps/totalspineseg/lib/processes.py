"""What it takes to run another program beside this one: a port for it, its end, and no life of its own after ours."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

STOP_SECONDS: Final = 60
"""For what a program has to write before it ends, such as Orthanc its index."""
PARENT: Final = "TOTALSPINESEG_PARENT"
"""Environment variable with the id of the process that background processes must not outlive."""
LOOK_SECONDS: Final = 1.0
"""How often a background process looks for its parent."""
GRACE_SECONDS: Final = 20.0
"""For what a background process has to store once its parent is gone, such as a training its state."""
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a program to end."""
SIGNALED: Final = 128
"""A shell adds the signal's number to it for the exit status."""
LOCKS: Final = Path("/proc/locks")
TIED: Final = """
import ctypes, os, signal, sys
kernel = ctypes.CDLL(None)
if hasattr(kernel, "prctl"):
    kernel.prctl(1, ctypes.c_ulong(signal.SIGTERM))
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Has Linux send SIGTERM when the parent is gone (1: PR_SET_PDEATHSIG), and becomes the program."""


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


def tied(command: Sequence[str]) -> list[str]:
    """A command that gets SIGTERM when this process is gone, even by SIGKILL; on systems other than Linux as it was.

    Args:
        command: A program's path and its arguments, to be started by a thread that lasts as long as it shall: Linux
            takes the thread for the parent.
    """
    return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]


def unwind_on_signals() -> None:
    """Let signals that end this process raise ``SystemExit``: what it started is stopped, its folders are removed.

    A second one changes nothing, for that must not be left half done. One that is ignored already, as by nohup, stays
    so.
    """

    def leave(number: int, _: object) -> None:
        for other in ENDING:
            signal.signal(other, lambda *_: None)
        sys.exit(SIGNALED + number)

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


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


def lock_holder(file: Path) -> str:
    """Who holds a lock (``flock``) on a file, in words; Linux tells of processes on this machine."""
    try:
        inode = file.stat().st_ino
        held = [line.split() for line in LOCKS.read_text().splitlines() if "->" not in line]
    except OSError:
        held = []
    # Number, kind, mode, access, process, device and inode ..
    processes = {int(words[4]) for words in held if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode)}
    if os.getpid() in processes:
        return "a request of this very process"
    return f"process {min(processes)}" if processes else "another program, maybe on another machine"


def end_within(seconds: float) -> None:
    """See to it that this process, which is about to end, is not held up by what its threads still do.

    Args:
        seconds: How long its own program may take for what else has to be ended.
    """

    def end() -> None:
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=end, name="end", daemon=True).start()


def _has_parent() -> bool:
    return os.environ.get(PARENT, str(os.getpid())) != str(os.getpid())
