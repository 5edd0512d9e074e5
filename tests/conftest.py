"""Fixtures shared by test files."""

import os
import sys

# Before torch loads: the crash tests fork, and a forked child hangs on the threads its parent had started.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator

import pytest

from serving import Server, studies_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running server for all tests that need one: importing the host takes seconds."""
    with studies_server(tmp_path_factory.mktemp("server")) as running:
        yield running


EXIT_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep how the tests ended."""
    session.config.stash[EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once: with every native library of the tests in one process, their exit handlers crash."""
    status = config.stash.get(EXIT_STATUS, None)
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
