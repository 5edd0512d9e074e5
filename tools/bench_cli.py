"""`make bench-cli`: run synthetic scans through the command (cold) and through the running server (warm).

    .venv/bin/python tools/bench_cli.py [--scans 6] [--weights NAME] [--device cpu] [--runtime openvino] [--out bench]

Prints seconds by stage, CPU seconds and peak memory, how long a start takes, and the networks' share of a warm request;
with a GPU also its name and memory. The same numbers go to OUT/cli.json.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_processes import cpu_seconds, gpu_mib, gpu_name, peak_mib
from bench_request import warm_request
from local_server import APP, ROOT, own_app, serving
from monailabel.client.client import MONAILabelClient

from totalspineseg_server.files import read_json, write_json
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.nnunet.runtimes import RUNTIMES, Runtime
from totalspineseg_server.processes import unwind_on_signals
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.synthesis import demo_studies

LAUNCHER = f"import sys; sys.path.insert(0, {str(APP)!r}); from totalspineseg_server.cli import main; sys.exit(main())"
SEED = 11
SAME_STAGE = {"read image": "read", "write result": "write"}
"""Stage of the command -> the same stage of the server."""


def main() -> int:
    """Run the benchmark; return the exit code of the cold run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--weights", default="starter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    parser.add_argument("--out", type=Path, default=ROOT / "bench")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = demo_studies(folder / "in", arguments.scans, SEED)
        store = own_app(folder / "app", arguments.weights)
        result = {
            "scans": len(scans),
            "cores": os.cpu_count(),
            "gpu": gpu_name(),
            "runtime": arguments.runtime,
            "command": command(folder, store, arguments.device, arguments.runtime, len(scans)),
            "server": server(folder, scans, arguments.device, arguments.runtime),
            "forward": forward(scans, store, arguments.device, arguments.runtime, folder),
            "load_at_end": [round(value, 1) for value in os.getloadavg()],
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "cli.json", result)
    show(result)
    print(f"written to {arguments.out / 'cli.json'}")
    return int(result["command"]["exit_code"])  # type: ignore[index]


def command(folder: Path, store: ModelStore, device: str, runtime: str, count: int) -> dict[str, Any]:
    """Run a new process that loads the networks and segments all scans; then one that finds everything finished."""
    words = [str(folder / "in"), str(folder / "out"), "--quiet", "--device", device, "--runtime", runtime]
    words += ["--data-dir", str(store.model_dir)]
    cold, again = timed(words), timed(words)
    records = [read_json(path) for path in sorted((folder / "out" / "reports").glob("*.json"))]
    return {
        "exit_code": cold["exit_code"],
        "wall_s": cold["wall_s"] / count,
        "cpu_s": cold["cpu_s"] / count,
        "peak_mib": cold["peak_mib"],
        "nothing_to_do_s": again["wall_s"],
        "models": read_json(folder / "out" / "run.json")["models"],
        "stages": stages([record["seconds"] for record in records]),
    }


def timed(words: Sequence[str]) -> dict[str, float]:
    """Run the command; return wall and CPU seconds, and peak memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-c", LAUNCHER, *words], check=False).returncode
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Peak of the largest child so far; the cold run comes first and is the largest.
    return {"exit_code": code, "wall_s": wall, "cpu_s": cpu, "peak_mib": after.ru_maxrss // 1024}


def server(folder: Path, scans: Sequence[Path], device: str, runtime: str) -> dict[str, Any]:
    """Measure the start, the first request after it, then every scan through the warm server."""
    pids: list[int] = []
    start = time.perf_counter()
    options = {"device": "" if device == "auto" else device, "runtime": runtime, "started": pids.append}
    with serving(folder / "in", folder / "app", folder / "server.log", **options) as url:  # type: ignore[arg-type]
        answers = time.perf_counter() - start
        client = MONAILabelClient(url, tmpdir=str(folder), client_id="bench")
        first, _ = request(client, scans[0])
        cpu = cpu_seconds(pids[0])
        timings = [request(client, scan) for scan in scans]
        return {
            "wall_s": sum(wall for wall, _ in timings) / len(scans),
            "cpu_s": (cpu_seconds(pids[0]) - cpu) / len(scans),
            "peak_mib": peak_mib(pids[0]),
            "gpu_mib": gpu_mib(pids[0]),
            "answers_after_s": answers,
            "first_request_s": first,
            "same_request_warm_s": timings[0][0],
            "stages": stages([latencies for _, latencies in timings]),
        }


def request(client: MONAILabelClient, scan: Path) -> tuple[float, dict[str, float]]:
    """Return the seconds of one request as a client sees them, and the server's own by stage."""
    start = time.perf_counter()
    file, report = client.infer("totalspineseg", scan.name.removesuffix(".nii.gz"), {"result_extension": ".nrrd"})
    wall = time.perf_counter() - start
    Path(file).unlink()
    return wall, {SAME_STAGE.get(name, name): s for name, s in report["latencies"].items() if name != "total"}


def stages(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return stage -> mean seconds over the scans, in the order of the stages."""
    names = dict.fromkeys(name for row in seconds for name in row)
    return {name: sum(row.get(name, 0.0) for row in seconds) / len(seconds) for name in names}


def forward(scans: Sequence[Path], store: ModelStore, device: str, runtime: Runtime, folder: Path) -> dict[str, float]:
    """Return the seconds of a warm request in this process, and those in the networks' forward passes."""
    networks = Networks(store, device=device, runtime=runtime)
    networks.warm_up()
    warm_request(scans[0], networks, folder / "labels.nrrd")
    rows = [warm_request(scan, networks, folder / "labels.nrrd") for scan in scans]
    whole, inside = (sum(row[k] for row in rows) / len(rows) for k in (0, 1))
    return {"request_s": whole, "networks_s": inside, "share": inside / whole}


def show(result: Mapping[str, Any]) -> None:
    """Print one table."""
    cold, warm, inside = result["command"], result["server"], result["forward"]
    gpu = result["gpu"] or "no GPU"
    print(f"{result['scans']} synthetic scans, {result['cores']} CPU cores, {gpu}, runtime {result['runtime']}")
    print(f"weights {', '.join(cold['models'].values())}; load of the machine at the end {result['load_at_end'][0]}")
    print(f"{'':<34}{'command, cold':>15}{'server, warm':>15}")
    for name in dict.fromkeys([*cold["stages"], *warm["stages"]]):
        line(f"{name}, s", cold["stages"].get(name), warm["stages"].get(name))
    line("a scan, all in all, s", cold["wall_s"], warm["wall_s"])
    line("a scan, CPU seconds", cold["cpu_s"], warm["cpu_s"])
    line("peak memory, MiB", cold["peak_mib"], warm["peak_mib"], digits=0)
    line("GPU memory, MiB", None, warm["gpu_mib"], digits=0)
    line("nothing left to do, s", cold["nothing_to_do_s"], None)
    line("from start to first answer, s", None, warm["answers_after_s"])
    line("first request after that, s", None, warm["first_request_s"])
    line("the same request again, s", None, warm["same_request_warm_s"])
    print(
        f"networks' forward passes: {inside['share']:.0%} of a warm request ({inside['networks_s']:.2f} s of", end=" "
    )
    print(f"{inside['request_s']:.2f} s, in one process)")


def line(name: str, cold: float | None, warm: float | None, *, digits: int = 2) -> None:
    """Print one row; a value that was not measured is a dash."""
    cells = ["-" if value is None else f"{value:.{digits}f}" for value in (cold, warm)]
    print(f"{name:<34}{cells[0]:>15}{cells[1]:>15}")


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
