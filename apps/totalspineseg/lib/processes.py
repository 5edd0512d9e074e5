"""What it takes to run another program beside this one: a port for it, and its end."""

import socket
import subprocess
from typing import Final

STOP_SECONDS: Final = 60
"""For what a program has to write before it ends, such as Orthanc its index."""


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
