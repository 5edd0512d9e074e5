"""Connections to clusters: one that runs already, or one that this run starts and ends."""

import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster

from lib.cohort.profile import Profile
from lib.errors import ClusterError

THREADS: Final = 3
"""Scans in hand of a worker; they take turns in the network."""
LOST_WORKERS_PER_SCAN: Final = 3
"""A scan whose worker is lost goes to another one so often; then the scan itself is likely what ends them."""
CONNECT_S: Final = 30
"""Longest wait for a scheduler that is said to run, seconds."""
SUBMIT: Final = {"slurm": "sbatch", "pbs": "qsub"}
"""What hands a job to the queue."""
QUIET: Final = logging.CRITICAL
"""Dask reports every lost and every cancelled worker; what became of a scan is told by the run."""
CONFIGURATION: Final[dict[str, Any]] = {
    "distributed.scheduler.allowed-failures": LOST_WORKERS_PER_SCAN,
    # A network may hold a worker's lock for minutes on a small machine.
    "distributed.scheduler.worker-ttl": None,
    # No pages about the work on open ports.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


@contextmanager
def running(address: str) -> Iterator[Client]:
    """Connect to a scheduler that runs already, and leave it running.

    Args:
        address: Such as "tcp://host:8786", or the path of a scheduler file.

    Raises:
        ClusterError: Nobody answers there.
    """
    _hush()
    place = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        client = Client(**place, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"a running Dask scheduler is required at --scheduler {address!r}, got no answer ({error})"
        ) from error
    with client:
        yield client


@contextmanager
def started(profile: Profile, output: Path) -> Iterator[Client]:
    """Start a cluster, and end it.

    Args:
        profile: Which.
        output: A folder that all machines see, for the keys of the connection while the run lasts.

    Raises:
        ClusterError: It cannot be started.
    """
    _hush()
    with dask.config.set(CONFIGURATION):
        try:
            cluster = _local(profile) if profile.cluster == "local" else _jobs(profile, output)
        except ClusterError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ClusterError(f"a {profile.cluster} cluster could not be started: {error}") from error
        with cluster, Client(cluster) as client:
            yield client


def _hush() -> None:
    """Leave the telling to the run, unless the user asked for more (``TOTALSPINESEG_LOG=info``)."""
    if not logging.getLogger().isEnabledFor(logging.INFO):
        logging.getLogger("distributed").setLevel(QUIET)


def _local(profile: Profile) -> SpecCluster:
    """Processes of this machine, reached over the loopback address with keys of their own."""
    # On a shared machine, whoever may open the port could run code; with the keys only this run can.
    common = {"host": "127.0.0.1", "security": (security := Security.temporary()), "protocol": "tls://"}
    workers = {}
    for k in range(profile.workers):
        environment = {"OMP_NUM_THREADS": str(profile.threads)}
        if profile.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = profile.gpus[k % len(profile.gpus)]
        options = {**common, "nthreads": THREADS, "memory_limit": 0, "env": environment, "silence_logs": QUIET}
        workers[k] = {"cls": Nanny, "options": options}
    # The scheduler answers over HTTP even without a dashboard, at a fixed port if nobody names another.
    options = {**common, "dashboard": False, "dashboard_address": "127.0.0.1:0", "port": 0}
    scheduler = {"cls": Scheduler, "options": options}
    return SpecCluster(scheduler=scheduler, workers=workers, security=security, silence_logs=QUIET)


def _jobs(profile: Profile, output: Path) -> SpecCluster:
    """SLURM or PBS jobs, one worker each; lost jobs are submitted again."""
    command = SUBMIT[profile.cluster]
    if shutil.which(command) is None:
        raise ClusterError(
            f"a machine from which jobs can be submitted is required, got one without {command!r}; use a login node"
        )
    options: dict[str, Any] = dict(profile.options)
    prologue = [f"export OMP_NUM_THREADS={profile.threads}", *options.pop("job_script_prologue", [])]
    extra = [*options.pop("worker_extra_args", []), "--nthreads", str(THREADS), "--no-dashboard"]
    scheduler = {"dashboard": False, "dashboard_address": ":0", **options.pop("scheduler_options", {})}
    cluster = _job_class(profile.cluster)(
        cores=profile.threads,
        processes=1,
        memory=profile.memory,
        job_script_prologue=prologue,
        worker_extra_args=extra,
        scheduler_options=scheduler,
        security=options.pop("security", Security.temporary()),
        shared_temp_directory=options.pop("shared_temp_directory", str(output.resolve())),
        silence_logs=QUIET,
        **options,
    )
    try:
        # As scale() does, but waiting: there a refused submission is only logged, and the run waits for ever.
        for _ in range(profile.workers):
            cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(cluster._correct_state)
    except RuntimeError as error:
        _end(cluster)
        said = str(error).partition("stderr:")[2].split("\n\n")[0].strip() or str(error)
        raise ClusterError(f"jobs that {command} accepts are required, got {said!r}; correct the profile") from error
    cluster.adapt(minimum_jobs=profile.workers, maximum_jobs=profile.workers)
    return cluster


def _end(cluster: SpecCluster) -> None:
    """Close a cluster some of whose jobs were refused, which Dask does not expect; the others are ended."""
    for name in [name for name, job in cluster.workers.items() if job.job_id is None]:
        del cluster.workers[name], cluster.worker_spec[name]
    cluster._created.clear()
    cluster.close()


def _job_class(name: str) -> type[SpecCluster]:
    """dask-jobqueue's class; importing it takes Ctrl-C away from the run, so that is given back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    from dask_jobqueue import PBSCluster, SLURMCluster

    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)
    found: type[SpecCluster] = SLURMCluster if name == "slurm" else PBSCluster
    return found
