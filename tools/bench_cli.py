"""Measure the command line: synthetic scans through a cold process, per stage, with CPU seconds and peak memory.

    .venv/bin/python tools/bench_cli.py [--scans 6] [--weights NAME] [--data-dir DIR] [--device cpu] [--out bench]

Prints a table and writes it as JSON. The first run is cold (a new process that loads the networks), the second
one finds everything finished: what it takes is the start of the command.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "totalspineseg"
LAUNCHER = f"import sys; sys.path.insert(0, {str(APP)!r}); from lib.cli import main; sys.exit(main())"
SEED = 11


def timed(words: list[str]) -> dict[str, float]:
    """Run a command; wall and CPU seconds, peak memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-c", LAUNCHER, *words], check=False).returncode
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Peak of the largest child so far: the cold run comes first and is the largest.
    return {"exit_code": code, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mib": after.ru_maxrss // 1024}


def stages(output: Path) -> dict[str, dict[str, float]]:
    """Stage -> mean and largest seconds over the scans, in the order they ran."""
    records = [json.loads(path.read_text()) for path in sorted((output / "reports").glob("*.json"))]
    names = list(dict.fromkeys(stage for record in records for stage in record["seconds"]))
    table = {}
    for name in names:
        values = [record["seconds"].get(name, 0.0) for record in records]
        table[name] = {"mean_s": round(sum(values) / len(values), 3), "largest_s": round(max(values), 3)}
    return table


def bench(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Make the scans, run the command twice, collect."""
    sys.path.insert(0, str(APP))
    from lib.synthesis import demo_studies

    scans = demo_studies(folder / "in", arguments.scans, SEED)
    words = [str(folder / "in"), str(folder / "out"), "--quiet", "--device", arguments.device]
    words += ["--weights", arguments.weights] if arguments.weights else []
    words += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    cold = timed(words)
    table = stages(folder / "out")
    total = sum(row["mean_s"] for row in table.values())
    networks = sum(row["mean_s"] for name, row in table.items() if name.endswith("network"))
    return {
        "scans": len(scans),
        "cores": os.cpu_count(),
        "load_at_end": [round(value, 1) for value in os.getloadavg()],
        "models": json.loads((folder / "out" / "run.json").read_text())["models"],
        "cold": cold,
        "everything_finished": timed(words),
        "stages": table,
        "networks_share": round(networks / total, 3) if total else None,
    }


def main() -> int:
    """Run the bench; returns the exit code of the cold run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--weights", default="")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "bench")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = bench(Path(folder), arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cli.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["stages"].items():  # type: ignore[attr-defined]
        print(f"{name:<28} {row['mean_s']:8.3f} s  (largest {row['largest_s']:.3f})")
    for name in ("cold", "everything_finished"):
        print(f"{name:<28} {result[name]}")
    print(f"networks' share of the stages: {result['networks_share']}; written to {arguments.out / 'cli.json'}")
    return int(result["cold"]["exit_code"])  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
