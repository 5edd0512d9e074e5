"""Read from a YAML file which cluster to start for a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.errors import ClusterError

KINDS: Final = ("local", "slurm", "pbs")
JOB_KINDS: Final = ("slurm", "pbs")


@dataclass(frozen=True)
class Profile:
    """A cluster that a run starts and ends.

    Attributes:
        cluster: "local" (processes of this machine), "slurm" or "pbs" (one worker in each job).
        workers: Number of processes or jobs.
        cores: CPU cores of each; 0 to share those of this machine among local processes.
        memory: Memory of each job, such as "16GB"; "" for local processes, whose memory is not limited.
        gpus: GPU of each local process, as in ``CUDA_VISIBLE_DEVICES``. If there are fewer GPUs than processes, they
            are used again; if there are none, each process sees the GPUs of its environment.
        options: Other options for dask-jobqueue's cluster class, such as queue, walltime, job_extra_directives.
    """

    cluster: str = "local"
    workers: int = 1
    cores: int = 0
    memory: str = ""
    gpus: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def threads(self) -> int:
        """CPU threads of each worker's network."""
        return self.cores or max(1, (os.cpu_count() or 1) // self.workers)


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Args:
        path: YAML file.

    Raises:
        ClusterError: It cannot be read, or is not valid.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(cohort_messages.UNREADABLE_PROFILE.format(profile=str(path), error=error)) from error
    if not isinstance(content, dict):
        raise ClusterError(f"a profile must consist of names and values, such as 'cluster: slurm', got {content!r}")
    return parse_profile(content)


def parse_profile(content: Mapping[str, Any]) -> Profile:
    """Return a profile from its names and values.

    Args:
        content: See ``Profile``; every name but ``cluster`` may be left out.

    Raises:
        ClusterError: A name is unknown, or a value is not possible.
    """
    known = tuple(Profile.__dataclass_fields__)
    if unknown := sorted(set(content) - set(known)):
        raise ClusterError(f"a profile may only contain {', '.join(known)}, got {', '.join(map(str, unknown))}")
    kind = content.get("cluster")
    if kind not in KINDS:
        raise ClusterError(f"'cluster' in a profile must be one of {', '.join(KINDS)}, got {kind!r}")
    gpus = content.get("gpus") or ()
    if isinstance(gpus, str) or not isinstance(gpus, (list, tuple)):
        raise ClusterError(f"'gpus' in a profile must be a list, such as [0, 1], got {gpus!r}")
    options = content.get("options") or {}
    if not isinstance(options, dict):
        raise ClusterError(f"'options' in a profile must consist of names and values, got {options!r}")
    profile = Profile(
        cluster=kind,
        workers=_count(content, "workers", len(gpus) or 1),
        cores=_count(content, "cores", 1 if kind in JOB_KINDS else 0),
        memory=str(content.get("memory") or ""),
        gpus=tuple(str(gpu) for gpu in gpus),
        options=MappingProxyType(dict(options)),
    )
    if kind in JOB_KINDS and (profile.gpus or not profile.memory):
        raise ClusterError(
            f"A {kind} profile needs 'memory', and no 'gpus' (request GPUs in 'options: "
            f"job_extra_directives'), got memory {profile.memory!r} and gpus {list(profile.gpus)!r}"
        )
    if kind == "local" and (profile.memory or profile.options):
        raise ClusterError("a local profile may only contain cluster, workers, cores and gpus, got memory or options")
    return profile


def _count(content: Mapping[str, Any], name: str, default: int) -> int:
    value = content.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < min(default, 1):
        raise ClusterError(f"{name!r} in a profile must be a whole number above 0, got {value!r}")
    return value
