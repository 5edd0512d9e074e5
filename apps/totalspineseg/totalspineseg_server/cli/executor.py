"""Add the options that say where a run is computed, and make the executor that they choose."""

import argparse
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import existing_path, positive
from totalspineseg_server.errors import SettingError, TotalSpineSegError
from totalspineseg_server.nnunet.runtimes import RUNTIMES
from totalspineseg_server.places import NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from totalspineseg_server.cohort.cluster_profile import Profile
    from totalspineseg_server.cohort.inputs import Case
    from totalspineseg_server.cohort.running import Executor, Stream
    from totalspineseg_server.cohort.work import Networks, Work
    from totalspineseg_server.nnunet.runtimes import Runtime
    from totalspineseg_server.registry.model_store import ModelStore

MAX_DEFAULT_WORKERS: Final = 4
"""Largest default number of threads: reading and writing for one network rarely keep more of them busy."""


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--runtime``, ``--executor`` and the options that belong to them."""
    parser.add_argument(
        "--device",
        metavar="cuda|cpu",
        default="auto",
        help="device that runs the networks (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default=RUNTIMES[0],
        help="software that runs the networks: auto (PyTorch, or OpenVINO on a CPU where 'weights install' measured it "
        "to be faster; in half precision on a GPU where 'weights quantize' compared it; default), torch (in single "
        "precision), openvino, or openvino-int8 after 'weights quantize'",
    )
    parser.add_argument(
        "--whole-image",
        action="store_true",
        help="give step 1 the whole image, even if 'weights quantize' found that a box around the spine is enough",
    )
    parser.add_argument(
        "--max-workers",
        type=positive,
        metavar="N",
        help="number of threads that read and write while the network works",
    )
    parser.add_argument(
        "--executor",
        choices=("local", "dask"),
        default="local",
        help="local: this process (default); dask: many processes or machines",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="with --executor dask: a running Dask scheduler, such as tcp://host:8786, or its scheduler file",
    )
    parser.add_argument(
        "--profile",
        type=existing_path,
        metavar="FILE",
        help="with --executor dask: a YAML file with the SLURM or PBS jobs, or local processes, to start (without "
        "--scheduler and --profile: one process for each GPU of this machine)",
    )


def executor_of(arguments: argparse.Namespace, work: "Work", store: "ModelStore", runtime: "Runtime") -> "Executor":
    """Return the executor that the options choose; nothing heavy is imported until there is work.

    Args:
        arguments: The options.
        work: Work for each scan.
        store: The weights in use.
        runtime: Software that runs the networks, on every machine.

    Raises:
        TotalSpineSegError: The options contradict each other, or the profile is not valid.
    """
    if arguments.executor == "local":
        for option in ("scheduler", "profile"):
            if getattr(arguments, option) is not None:
                raise TotalSpineSegError(cli_messages.NEEDS_DASK.format(option=option))
        return _local(arguments, work, store, runtime)
    if arguments.scheduler and arguments.profile:
        raise TotalSpineSegError(cli_messages.SCHEDULER_OR_PROFILE)
    return _dask(arguments, work, store, runtime)


def _local(arguments: argparse.Namespace, work: "Work", store: "ModelStore", runtime: "Runtime") -> "Executor":
    from totalspineseg_server.cohort.running import LocalExecutor
    from totalspineseg_server.cohort.worker import warm_networks

    def networks() -> "Networks":
        whole = arguments.whole_image
        return warm_networks(store, work.versions, device=arguments.device, runtime=runtime, whole_image=whole)

    workers = arguments.max_workers or min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1)
    return LocalExecutor(work, networks, workers=workers)


def _dask(arguments: argparse.Namespace, work: "Work", store: "ModelStore", runtime: "Runtime") -> "Executor":
    if find_spec("distributed") is None:
        raise SettingError(cli_messages.NO_DASK.format(name=NAME))
    from totalspineseg_server.cohort.cluster_profile import read_profile
    from totalspineseg_server.cohort.worker import job_json

    profile = read_profile(arguments.profile) if arguments.profile else None

    def tell(text: str) -> None:
        if not arguments.quiet:
            print(text, file=sys.stderr, flush=True)

    def job(threads: int) -> dict[str, Any]:
        whole = arguments.whole_image
        return job_json(work, store, device=arguments.device, runtime=runtime, whole_image=whole, threads=threads)

    def executor(cases: "Sequence[Case]") -> "Stream":
        from totalspineseg_server.cohort.cluster import running, started
        from totalspineseg_server.cohort.dask_executor import DaskExecutor

        if arguments.scheduler:
            return DaskExecutor(job(0), lambda: running(arguments.scheduler), ours=False, tell=tell)(cases)
        wanted = profile or _one_process_a_gpu(arguments.device)
        ours = wanted.cluster == "local"
        return DaskExecutor(job(wanted.threads), lambda: started(wanted, work.output), ours=ours, tell=tell)(cases)

    return executor


def _one_process_a_gpu(device: str) -> "Profile":
    from totalspineseg_server.cohort.cluster_profile import Profile

    if device == "cpu":
        return Profile()
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    gpus = tuple(seen if len(seen) == count and all(seen) else map(str, range(count)))
    return Profile(workers=max(count, 1), gpus=gpus)
