"""Connect to a cluster that is already running, or start one for this run."""

import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.cohort.cluster_profile import Profile
from totalspineseg_server.errors import ClusterError

THREADS: Final = 3
"""Number of scans in progress in each worker; they take turns in the network."""
LOST_WORKERS_PER_SCAN: Final = 3
"""Number of workers that may be lost on the same scan; if more are, the scan itself probably crashes them."""
CONNECT_S: Final = 30
"""Longest time to wait for the answer of a scheduler, seconds."""
SUBMIT: Final = {"slurm": "sbatch", "pbs": "qsub"}
"""Commands that submit a job to the queue."""
QUIET: Final = logging.CRITICAL
"""Log level for Dask, which reports every lost and canceled worker; the run itself reports what happened to each scan.
"""
CONFIGURATION: Final[dict[str, Any]] = {
    "distributed.scheduler.allowed-failures": LOST_WORKERS_PER_SCAN,
    # A network may hold a worker's lock for minutes on a small machine.
    "distributed.scheduler.worker-ttl": None,
    # Serve no pages about the work on open ports.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


@contextmanager
def running(address: str) -> Iterator[Client]:
    """Connect to a scheduler that is already running, and leave it running.

    Args:
        address: For example "tcp://host:8786", or the path of a scheduler file.

    Raises:
        ClusterError: No scheduler answers there.
    """
    _hush()
    place = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        client = Client(**place, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(cohort_messages.NO_SCHEDULER.format(address=address, error=error)) from error
    with client:
        yield client


@contextmanager
def started(profile: Profile, output: Path) -> Iterator[Client]:
    """Start a cluster, and end it.

    Args:
        profile: Description of the cluster.
        output: Folder that all machines see, for the keys of the connection during the run.

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
            raise ClusterError(cohort_messages.CLUSTER_FAILED.format(cluster=profile.cluster, error=error)) from error
        with cluster, Client(cluster) as client:
            yield client


def _hush() -> None:
    """Silence Dask's messages, unless the user asked for more (``TOTALSPINESEG_LOG=info``)."""
    if not logging.getLogger().isEnabledFor(logging.INFO):
        logging.getLogger("distributed").setLevel(QUIET)


def _local(profile: Profile) -> SpecCluster:
    """Start processes on this machine, which are reached over the loopback address with keys of their own."""
    # On a shared machine, anybody who can open the port could run code; the keys allow only this run.
    common = {"host": "127.0.0.1", "security": (security := Security.temporary()), "protocol": "tls://"}
    workers = {}
    for k in range(profile.workers):
        environment = {"OMP_NUM_THREADS": str(profile.threads)}
        if profile.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = profile.gpus[k % len(profile.gpus)]
        options = {**common, "nthreads": THREADS, "memory_limit": 0, "env": environment, "silence_logs": QUIET}
        workers[k] = {"cls": Nanny, "options": options}
    # The scheduler answers over HTTP even without a dashboard, at a fixed port unless another is named.
    options = {**common, "dashboard": False, "dashboard_address": "127.0.0.1:0", "port": 0}
    scheduler = {"cls": Scheduler, "options": options}
    return SpecCluster(scheduler=scheduler, workers=workers, security=security, silence_logs=QUIET)


def _jobs(profile: Profile, output: Path) -> SpecCluster:
    """Start SLURM or PBS jobs, one worker each; lost jobs are submitted again."""
    command = SUBMIT[profile.cluster]
    if shutil.which(command) is None:
        raise ClusterError(cohort_messages.NO_CLUSTER_COMMAND.format(command=command))
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
        # Do what scale() does, but wait for the answer: scale() only logs a refused submission, and the run would wait
        # forever.
        for _ in range(profile.workers):
            cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(cluster._correct_state)
    except RuntimeError as error:
        _end(cluster)
        reply = str(error).partition("stderr:")[2].split("\n\n")[0].strip() or str(error)
        raise ClusterError(cohort_messages.JOBS_REFUSED.format(command=command, reply=reply)) from error
    cluster.adapt(minimum_jobs=profile.workers, maximum_jobs=profile.workers)
    return cluster


def _end(cluster: SpecCluster) -> None:
    """Close a cluster after some of its jobs were refused, and end the other jobs; Dask does not expect this."""
    for name in [name for name, job in cluster.workers.items() if job.job_id is None]:
        del cluster.workers[name], cluster.worker_spec[name]
    cluster._created.clear()
    cluster.close()


def _job_class(name: str) -> type[SpecCluster]:
    """Return dask-jobqueue's class. Importing it replaces the handlers of Ctrl-C, which are restored."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    from dask_jobqueue import PBSCluster, SLURMCluster

    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)
    found: type[SpecCluster] = SLURMCluster if name == "slurm" else PBSCluster
    return found
