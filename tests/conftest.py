"""Fixtures shared by test files."""

import os

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
