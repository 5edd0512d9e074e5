"""Measure processes and the GPU for the benchmarks."""

import os
import subprocess
from pathlib import Path

import torch


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a running process has used."""
    # The name in parentheses may have spaces; user and system ticks are the 12th and 13th field after it.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """Return the largest memory that a running process has used, MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def gpu_name() -> str:
    """Return the name of the first GPU, or ""."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def gpu_mib(pid: int) -> float | None:
    """Return the GPU memory of a process, MiB; None without a GPU or if the driver does not report it."""
    if not torch.cuda.is_available():
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    used = [float(memory) for process, memory in (row.split(",") for row in lines) if int(process) == pid]
    return sum(used) if used else None
