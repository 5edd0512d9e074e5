"""Share fixtures between test files."""

import gc
import logging
import multiprocessing
import os
import subprocess

# Set this before torch loads: the crash tests fork, and a forked child hangs on the threads that its parent had
# started.
os.environ["OMP_NUM_THREADS"] = "1"

if method := os.environ.get("START_METHOD"):
    # How Windows and macOS start worker processes; tools/release_check.py asks for it.
    multiprocessing.set_start_method(method)

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from serving import Server, studies_server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need the server as slow, and run files with slow tests first."""
    for item in items:
        if {"server", "untouched"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the search for garbage away from imported modules, in which it took a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        # pytest gives its handlers six times a test to each logger that does not propagate: PyTorch has fifty of them.
        for name, logger in logging.Logger.manager.loggerDict.items():
            if name.startswith("torch") and isinstance(logger, logging.Logger):
                logger.propagate = True
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Print how a worker ended if it ended too early; -9 is SIGKILL."""
    if error:
        try:
            print(f"\nexit status of {node.gateway.id}: {node.gateway._io.popen.wait(10)}")
        except (AttributeError, subprocess.TimeoutExpired) as missing:
            print(f"\nexit status of {node.gateway.id} is unknown: {missing!r}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one server for all tests of this process that need one, because importing MONAI Label takes seconds."""
    with studies_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let the system decide when it writes files: no test cuts the power, and each wait would take milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield
