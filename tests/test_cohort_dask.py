"""Tests that runs over several processes write the same files as one, even if a worker is lost or the user stops."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import numpy as np
import psutil
import pytest
from distributed import Client

import tiny_models
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.cli import main
from totalspineseg_server.cohort import cluster
from totalspineseg_server.cohort.cluster import started
from totalspineseg_server.cohort.cluster_profile import Profile, parse_profile
from totalspineseg_server.cohort.dask_executor import DaskExecutor
from totalspineseg_server.cohort.dask_payload import make_task
from totalspineseg_server.cohort.inputs import Case, find_cases
from totalspineseg_server.cohort.record import read_record
from totalspineseg_server.cohort.running import LocalExecutor, Stream, run
from totalspineseg_server.cohort.work import RunOptions, Work
from totalspineseg_server.cohort.worker import REFUSAL, ScanWorker, job_json
from totalspineseg_server.errors import ClusterError
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet.discovery import files_in_use
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.numbering.evidence import Pin
from totalspineseg_server.registry.model_store import ModelStore

APP = Path(__file__).parents[1] / "apps" / "totalspineseg"
LAUNCHER = f"import sys; sys.path.insert(0, {str(APP)!r}); from totalspineseg_server.cli import main; sys.exit(main())"
SHAPE = (24, 32, 40)
SCANS = 6


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
    return Work(output, RunOptions(), {f"step{step}": files_in_use(store, step).version for step in (1, 2)})


def contents(output: Path) -> dict[str, bytes]:
    """Return file -> bytes; records are compared separately, without their seconds."""
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


def test_a_worker_that_joined_later_and_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the app took one scan after the other and failed each."""
    worker = SimpleNamespace(plugins={"ours": SimpleNamespace()})
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    answer = make_task("ours")({})
    assert str(APP.resolve()) in answer[REFUSAL]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_worker_costs_nothing(tmp_path: Path, store: ModelStore, scans: Path, local: Path) -> None:
    """A killed worker lost its scans, or the results differed from those of a local run."""
    work = work_in(tmp_path, store)
    gpus: list[str] = []
    killed = []

    @contextmanager
    def watched() -> Iterator[Client]:
        with started(Profile(workers=2, gpus=("0", "3")), tmp_path) as client:
            gpus.extend(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values())
            yield client

    executor = DaskExecutor(job_json(work, store, device="cpu", threads=1), watched, ours=True)

    def killing(cases: Sequence[Case]) -> Stream:
        for done in executor(cases):
            if not killed:
                victim = worker_processes()[0]
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)
            yield done

    summary = run(work, find_cases(scans), killing)
    assert killed
    assert set(summary.failures) == {"bad"}
    assert "readable NIfTI" in summary.failures["bad"]
    assert len(summary.records) == SCANS
    assert contents(tmp_path) == contents(local)
    assert records(tmp_path) == records(local)
    assert sorted(gpus) == ["0", "3"]


def test_more_workers_than_gpus_share_them_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SpecCluster", lambda **options: options["workers"])
    workers = cluster._local(Profile(workers=3, gpus=("0", "3")))
    assert [worker["options"]["env"]["CUDA_VISIBLE_DEVICES"] for worker in workers.values()] == ["0", "3", "0"]


SBATCH = """#!/bin/bash
# The script is gone once this returns, so it is read first, as the real one does.
script=$(cat "$1")
setsid bash -c "$script" > /dev/null 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -- -$job; echo $job >> {log}; done
"""
SLURM = """
cluster: slurm
workers: 1
cores: 1
memory: 3GB
options: {queue: gpu, walltime: "01:00:00", job_extra_directives: ["--gres=gpu:1"], interface: lo}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_ends_jobs_and_keeps_what_is_done(tmp_path: Path, store: ModelStore, scans: Path, local: Path) -> None:
    """Ctrl-C ended the command with exit code 0 and no run.json, or left jobs running. The jobs are those of a queue
    whose commands start them on this machine."""
    queue, source, output = tmp_path / "queue", tmp_path / "in", tmp_path / "out"
    for folder in (queue, source):
        folder.mkdir()
    for k in range(40):
        (source / f"s{k:02d}.nii.gz").symlink_to(scans / f"s{k % SCANS:02d}.nii.gz")
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL.format(log=queue / "ended")}.items():
        (queue / name).write_text(text, encoding="utf-8")
        (queue / name).chmod(0o755)
    (tmp_path / "slurm.yaml").write_text(SLURM, encoding="utf-8")
    words = [source, output, "--weights", store.weights, "--device", "cpu", "--keep-only", "step2_output"]
    # A shell's background jobs ignore Ctrl-C, and so would this one if the tests are such a job.
    heard = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {LAUNCHER}"
    process = subprocess.Popen(
        [sys.executable, "-c", heard, *words, "--executor", "dask", "--profile", tmp_path / "slurm.yaml"],
        env=os.environ | {"PATH": f"{queue}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    limit = time.monotonic() + 600
    while process.poll() is None and not list(output.glob("reports/*.json")) and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, reported = process.communicate(timeout=200)
    assert process.returncode == 130, reported
    assert "interrupted" in reported
    document = json.loads((output / "run.json").read_text(encoding="utf-8"))
    done = {path.stem for path in output.glob("reports/*.json")}
    assert 0 < len(done) < 40
    assert set(document["done"]) == done
    assert len(document["not_started"]) == 40 - len(done)
    assert document["failed"] == {}
    for name in done:
        expected = local / "step2_output" / f"s{int(name[1:]) % SCANS:02d}.nii.gz"
        assert (output / "step2_output" / f"{name}.nii.gz").read_bytes() == expected.read_bytes()
    assert (queue / "ended").is_file()
    # The keys of the connection are gone with it.
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.fixture
def collected() -> Iterator[None]:
    """Clean up after a test: dask-jobqueue leaves key files open if no job starts, and the warning about this would
    fail another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.usefixtures("collected")
def test_jobs_that_the_queue_refuses_are_one_sentence(
    tmp_path: Path, store: ModelStore, scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong partition was only logged, and the run waited forever."""
    (tmp_path / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n", encoding="utf-8"
    )
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "slurm.yaml").write_text(SLURM, encoding="utf-8")
    words = [str(scans), str(tmp_path / "out"), "--weights", store.weights, "--executor", "dask"]
    words += ["--profile", str(tmp_path / "slurm.yaml")]
    assert main(words) == 2
    assert "'sbatch'" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(words) == 2
    reported = capsys.readouterr().err
    assert "invalid partition" in reported


REFUSALS = {
    "another folder": ({"output": "/nowhere"}, "same path"),
    "other packages": ({"software": {"torch": "1.0"}}, "packages"),
    "other weights": ({"models": {"step1": "other-00000000"}}, "other-00000000"),
}


@pytest.mark.parametrize(("change", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_a_worker_that_would_give_other_results_refuses(
    tmp_path: Path, store: ModelStore, scans: Path, change: dict[str, Any], sentence: str
) -> None:
    """A worker with other weights or packages mixed its results with those of the others."""
    work = work_in(tmp_path, store)
    work.make_room()
    scan_worker = ScanWorker(job_json(work, store, device="cpu", threads=1) | change)
    (case,) = find_cases(scans / "s00.nii.gz")
    assert sentence in scan_worker.segment(case.as_json())["refusal"]


def test_a_stopped_worker_writes_nothing(tmp_path: Path, store: ModelStore, scans: Path) -> None:
    work = work_in(tmp_path, store)
    work.make_room()
    scan_worker = ScanWorker(job_json(work, store, device="cpu", threads=1))
    scan_worker.stop()
    (case,) = find_cases(scans / "s00.nii.gz")
    assert scan_worker.segment(case.as_json()) == {"stopped": True}
    assert not list(tmp_path.glob("*/s00*"))


def test_what_is_sent_to_workers_comes_back() -> None:
    case = Case("a b", Path("/in/a b.nii"), Path("sub-01/anat"), Path("/loc/a.nii.gz"), "why")
    assert Case.from_json(json.loads(json.dumps(case.as_json()))) == case
    options = RunOptions(iso=True, keep=("input",), method="iterative", pins=(Pin(CODE_OF["L5"], (1.0, 2.0, 3.0)),))
    assert RunOptions.from_json(json.loads(json.dumps(options.as_json()))) == options


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "local, slurm, pbs"),
        ({"cluster": "slurm"}, "'memory'"),
        ({"cluster": "local", "gpus": "0"}, "list"),
        ({"cluster": "local", "memory": "4GB"}, "cluster, workers, cores"),
        ({"cluster": "local", "workers": 0}, "'workers'"),
        ({"cluster": "local", "nodes": 2}, "nodes"),
        ({"cluster": "pbs", "memory": "4GB", "options": ["queue"]}, "names and values"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_profiles_that_cannot_be_understood(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(sentence)):
        parse_profile(content)


def test_a_profile_says_how_much_of_everything() -> None:
    assert parse_profile({"cluster": "local", "gpus": [0, 3]}) == Profile(workers=2, gpus=("0", "3"))
    assert parse_profile({"cluster": "pbs", "memory": "8GB", "workers": 4, "cores": 2}).threads == 2
