"""Send odd requests, made from the server's own description; none of them may cause a fault of the server.

Starts a server on a loopback port with phantoms to label and networks that take no time, sends it at least CALLS
requests (allowed by the description or not), and prints the answers by operation. Exit code 1: an answer of 500 or
above, a request without an answer, too few requests, or a server that ended.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tests")]

import requests  # noqa: E402

from serving import Server, studies_server  # noqa: E402
from totalspineseg_server.anatomy import WIRE_LABELS  # noqa: E402
from totalspineseg_server.files import write_json  # noqa: E402
from totalspineseg_server.io.volumes import IMAGE_SUFFIXES, stem  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402

CALLS = 2000
EXAMPLES = 80
"""Random requests for each operation, besides those at the limits of its schema; together more than CALLS."""
SECONDS = 1800
"""Time after which the run has failed, seconds: ten times the duration on a quiet machine."""
ANSWER_SECONDS = 120
REASONS = 25
LABELED = "z-last"
"""Name of the image whose label is made in advance."""
ADDED, SPARE = 5, 20
"""Number of images and sessions that may be removed."""
FAULT = 500


def main() -> int:
    """Run once; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemathesis", type=Path, default=ROOT / ".venv-fuzz" / "bin" / "schemathesis")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="random requests for each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep requests, answers and the server's log in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="totalspineseg-fuzz-") as name:
        folder = arguments.keep.resolve() if arguments.keep else Path(name)
        with studies_server(folder / "server") as server:
            write_json(folder / "known.json", known_values(server, folder, arguments.seed))
            code = fuzz(server, arguments, folder)
            alive = server.process.poll() is None
        answers = read_answers(folder / "answers.jsonl")
        print(table(answers))
        print(f"\nmost frequent refusals of allowed requests\n{frequent_refusals(folder / 'answers.jsonl')}\n")
        log = (folder / "server" / "server.log").read_text(encoding="utf-8", errors="replace")
    statuses = [Counter(statuses) for entry in answers.values() for statuses in entry.values()]
    calls = sum(entry.total() for entry in statuses)
    faults = sum(count for entry in statuses for status, count in entry.items() if status >= FAULT)
    print(f"{calls} requests, {faults} faults of the server; schemathesis ended with {code}")
    if faults:
        print(log[-20_000:])
    enough = calls >= CALLS or arguments.examples < EXAMPLES
    return 0 if code == 0 and not faults and alive and enough else 1


def fuzz(server: Server, arguments: argparse.Namespace, folder: Path) -> int:
    """Send the requests; return the exit code of schemathesis."""
    command = [
        *(str(arguments.schemathesis), "run", f"{server.url}/openapi.json"),
        *("--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink", "--no-color"),
        *("--max-examples", str(arguments.examples), "--seed", str(arguments.seed)),
        *("--request-timeout", str(ANSWER_SECONDS), "--suppress-health-check", "all", "--warnings", "off"),
        *("--generation-database", "none"),
    ]
    environment = {
        **os.environ,
        "FUZZ_KNOWN": str(folder / "known.json"),
        "FUZZ_ANSWERS": str(folder / "answers.jsonl"),
        "SCHEMATHESIS_HOOKS": "fuzz_hooks",
        "PYTHONPATH": str(ROOT / "tools"),
    }
    return subprocess.run(command, timeout=SECONDS, check=False, cwd=folder, env=environment).returncode


def known_values(server: Server, folder: Path, seed: int) -> dict[str, Any]:
    """Return the ids that exist on the server, and files that it accepts, for tools/fuzz_hooks.py."""
    images = sorted(path for path in server.studies.iterdir() if path.name.endswith(IMAGE_SUFFIXES))
    label = folder / "label.nrrd"
    answer = requests.post(
        f"{server.url}/infer/totalspineseg",
        params={"image": LABELED, "output": "image"},
        data={"params": json.dumps({"save_label": True})},
        timeout=ANSWER_SECONDS,
    )
    answer.raise_for_status()
    label.write_bytes(answer.content)
    # MONAI Label moves uploaded files, and a request may delete images of the studies.
    copies = [Path(shutil.copy(path, folder)) for path in images]
    names = [stem(path) for path in images]
    sessions = [session(server, copies[:1]), session(server, copies)]
    spare = [session(server, copies[:1]) for _ in range(SPARE)]
    added = [f"added {number}" for number in range(ADDED)]
    return {
        "seed": seed,
        "images": [str(path) for path in copies],
        "labels": [str(label)],
        "label_info": [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()],
        "values": {
            **dict.fromkeys(("image", "label", "id"), names),
            "tag": ["final", "original", "step1"],
            "session_id": sessions,
        },
        # These must stay, because other requests need them.
        "instead": {
            "PUT /datastore/image": {"image": added},
            "DELETE /datastore/image": {"id": added},
            "DELETE /session/{session_id}": {"session_id": spare},
            "PUT /datastore/label": {"image": [LABELED], "tag": ["final", "step1"]},
            "DELETE /datastore/label": {"id": [LABELED], "tag": ["step1"]},
            **{f"{method} /datastore/label": {"label": [LABELED], "image": [LABELED]} for method in ("GET", "HEAD")},
            "PUT /datastore/label/info": {"label": [LABELED], "tag": ["original"]},
        },
    }


def session(server: Server, files: Sequence[Path]) -> str:
    """Make a session with one or several files; return its id."""
    parts = [("files", (path.name, path.read_bytes())) for path in files]
    answer = requests.put(f"{server.url}/session/", files=parts, timeout=ANSWER_SECONDS)
    answer.raise_for_status()
    return str(answer.json()["session_id"])


def read_answers(file: Path) -> dict[str, dict[str, Counter[int]]]:
    """Return operation -> "positive" or "negative" (allowed by the description or not) -> statuses."""
    answers: dict[str, dict[str, Counter[int]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        operation, mode, status, _ = json.loads(line)
        answers.setdefault(operation, {}).setdefault(mode, Counter())[status] += 1
    return answers


def frequent_refusals(file: Path) -> str:
    """Return the reasons for which allowed requests were refused, the most frequent first."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    reasons = Counter(f"{name}: {reason}" for name, mode, _, reason in lines if mode == "positive" and reason)
    return "\n".join(f"{count:>5} {reason}" for reason, count in reasons.most_common(REASONS))


def table(answers: Mapping[str, Mapping[str, Mapping[int, int]]]) -> str:
    """Return the table of answers, a line for each operation."""
    lines = [
        f"{'':<36} {'allowed':>14}  {'not allowed':>14}",
        f"{'operation':<36}" + f" {'taken':>7} {'refused':>7}" * 2,
    ]
    for name, entry in sorted(answers.items()):
        counts = [
            sum(count for status, count in entry.get(mode, {}).items() if low <= status < high)
            for mode in ("positive", "negative")
            for low, high in ((200, 400), (400, FAULT))
        ]
        often = ", ".join(f"{status}: {n}" for status, n in Counter(entry.get("positive", {})).most_common(4))
        lines.append(f"{name:<36}" + "".join(f" {count:>7}" for count in counts) + f"  {often}")
    return "\n".join(lines)


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
