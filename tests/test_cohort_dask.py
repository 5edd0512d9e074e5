"""Runs over several worker processes: the same files as here, also when a worker is lost or the user stops."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import tiny_models
from lib.cohort.cluster import started
from lib.cohort.inputs import find_cases
from lib.cohort.local import LocalExecutor
from lib.cohort.options import RunOptions
from lib.cohort.profile import Profile
from lib.cohort.record import read_record
from lib.cohort.run import run
from lib.cohort.spread import DaskExecutor
from lib.cohort.station import job_json
from lib.cohort.work import Work
from lib.geometry import Grid
from lib.nnunet.networks import Networks
from lib.nnunet.version import version_in_use
from lib.registry.store import ModelStore
from lib.volume_io import write_volume

SHAPE = (24, 32, 40)
SCANS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tiny_models.write_models(tmp_path_factory.mktemp("models"))
    return ModelStore(folder, weights=str(folder))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for k in range(SCANS):
        data = np.random.default_rng(k % 3).normal(100, 30, SHAPE).astype(np.int16)
        write_volume(folder / f"s{k:02d}.nii.gz", data, Grid(SHAPE, np.diag([-1.0, 1.0, 1.2, 1.0])))
    (folder / "bad.nii.gz").write_bytes(b"")
    return folder


def work_in(output: Path, store: ModelStore) -> Work:
    return Work(output, RunOptions(), {f"step{step}": version_in_use(store, step) for step in (1, 2)})


def spread(work: Work, store: ModelStore, profile: Profile, **changes: Any) -> DaskExecutor:
    job = job_json(work, store, device="cpu", threads=1) | changes
    return DaskExecutor(job, lambda: started(profile, work.output), ours=True)


def contents(output: Path) -> dict[str, bytes]:
    """File -> bytes; records without their seconds are compared apart."""
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.suffix in (".gz", ".jpg")}


def records(output: Path) -> dict[str, Any]:
    found = {path.stem: read_record(output, path.stem) for path in (output / "reports").glob("*.json")}
    return {name: {k: v for k, v in (record or {}).items() if k != "seconds"} for name, record in found.items()}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, store: ModelStore, scans: Path) -> Path:
    output = tmp_path_factory.mktemp("local")
    work = work_in(output, store)
    run(work, find_cases(scans), LocalExecutor(work, lambda: Networks(store, device="cpu"), workers=2))
    return output


def worker_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_lost_worker_costs_nothing(tmp_path: Path, store: ModelStore, scans: Path, local: Path) -> None:
    """A worker that was killed took its scans with it, or the results differed from those of a local run."""
    work = work_in(tmp_path, store)
    executor = spread(work, store, Profile(workers=3))
    killed = []

    def killing(cases: Any) -> Iterator[Any]:
        for done in executor(cases):
            if not killed:
                victim = worker_processes()[0]
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)
            yield done

    summary = run(work, find_cases(scans), killing)  # type: ignore[arg-type]
    assert killed
    assert set(summary.failures) == {"bad"}
    assert "a readable NIfTI" in summary.failures["bad"]
    assert len(summary.records) == SCANS
    assert contents(tmp_path) == contents(local)
    assert records(tmp_path) == records(local)
