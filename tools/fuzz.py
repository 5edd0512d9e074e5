"""Requests that nobody would write, made from the server's own description of itself; none may end in its own fault.

Starts a server on a loopback port with phantoms to label and networks that cost nothing, sends it at least CALLS
requests (those the description allows, and those it does not), and prints what was answered by operation.
Exit code 1: an answer of 500 or above, a request without an answer, fewer requests than that, or a server that ended.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tests")]

import requests  # noqa: E402

from lib.anatomy import WIRE_LABELS  # noqa: E402
from lib.processes import unwind_on_signals  # noqa: E402
from lib.volume_io import IMAGE_SUFFIXES, stem  # noqa: E402
from serving import Server, studies_server  # noqa: E402

CALLS = 2000
EXAMPLES = 40
"""Random requests for each operation, beside those at the limits of its schema: together more than CALLS."""
SECONDS = 1500
"""Ten times what it takes on a quiet machine; then the run is given up as failed."""
ANSWER_SECONDS = 120
SPARE = 20
"""Images and sessions that may be removed."""
FAULT = 500


def main() -> int:
    """Run once; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemathesis", type=Path, default=ROOT / ".venv-fuzz" / "bin" / "schemathesis")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="random requests for each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep requests, answers and the server's log in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="totalspineseg-fuzz-") as name:
        folder = arguments.keep.resolve() if arguments.keep else Path(name)
        with studies_server(folder / "server") as server:
            (folder / "known.json").write_text(json.dumps(known_values(server, folder, arguments.seed)))
            code = fuzz(server, arguments, folder / "requests.har")
            alive = server.process.poll() is None
            paths = requests.get(f"{server.url}/openapi.json", timeout=ANSWER_SECONDS).json()["paths"]
        answers = read_answers(folder / "requests.har", paths)
        print(table(answers))
        log = (folder / "server" / "server.log").read_text(encoding="utf-8", errors="replace")
    calls = sum(sum(entry.values()) for entry in answers.values())
    faults = sum(count for entry in answers.values() for status, count in entry.items() if status >= FAULT)
    print(f"{calls} requests, {faults} faults of the server; schemathesis ended with {code}")
    if faults:
        print(log[-20_000:])
    enough = calls >= CALLS or arguments.examples < EXAMPLES
    return 0 if code == 0 and not faults and alive and enough else 1


def fuzz(server: Server, arguments: argparse.Namespace, report: Path) -> int:
    """Send the requests; returns the exit code of schemathesis."""
    command = [
        *(str(arguments.schemathesis), "run", f"{server.url}/openapi.json"),
        *("--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink", "--no-color"),
        *("--max-examples", str(arguments.examples), "--seed", str(arguments.seed)),
        *("--request-timeout", str(ANSWER_SECONDS), "--suppress-health-check", "all", "--warnings", "off"),
        *("--report", "har", "--report-har-path", str(report), "--generation-database", "none"),
    ]
    environment = {
        **os.environ,
        "FUZZ_KNOWN": str(report.parent / "known.json"),
        "SCHEMATHESIS_HOOKS": "fuzz_hooks",
        "PYTHONPATH": str(ROOT / "tools"),
    }
    return subprocess.run(command, timeout=SECONDS, check=False, cwd=report.parent, env=environment).returncode


def known_values(server: Server, folder: Path, seed: int) -> dict[str, Any]:
    """What exists on the server, and files it takes, for tools/fuzz_hooks.py."""
    images = sorted(path for path in server.studies.iterdir() if path.name.endswith(IMAGE_SUFFIXES))
    label = folder / "label.nrrd"
    answer = requests.post(
        f"{server.url}/infer/totalspineseg",
        params={"image": "z-last", "output": "image"},
        data={"params": json.dumps({"save_label": True})},
        timeout=ANSWER_SECONDS,
    )
    answer.raise_for_status()
    label.write_bytes(answer.content)
    # The host's uploads move what they keep, and images of the studies may be deleted by a request.
    copies = [Path(shutil.copy(path, folder)) for path in images]
    names = [stem(path) for path in images]
    sessions = [session(server, copies[:1]), session(server, copies)]
    spare = [session(server, copies[:1]) for _ in range(SPARE)]
    added = [f"added {number}" for number in range(SPARE)]
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
        # What the others need stays.
        "instead": {
            "PUT /datastore/image": {"image": added},
            "DELETE /datastore/image": {"id": added},
            "DELETE /session/{session_id}": {"session_id": spare},
        },
    }


def session(server: Server, files: Sequence[Path]) -> str:
    """Make a session of one file or several; returns its id."""
    parts = [("files", (path.name, path.read_bytes())) for path in files]
    answer = requests.put(f"{server.url}/session/", files=parts, timeout=ANSWER_SECONDS)
    answer.raise_for_status()
    return str(answer.json()["session_id"])


def read_answers(report: Path, paths: Mapping[str, Collection[str]]) -> Mapping[str, Counter[int]]:
    """Statuses by operation, of the requests in a HAR file; those that the description lacks together."""
    known = [(path, re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]*", re.escape(path)))) for path in paths]
    answers: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for entry in json.loads(report.read_text(encoding="utf-8"))["log"]["entries"]:
        method, path = entry["request"]["method"], urlsplit(entry["request"]["url"]).path
        name = next((template for template, pattern in known if pattern.fullmatch(path)), "")
        described = name and method.lower() in paths[name]
        answers[f"{method} {name}" if described else "not described"][entry["response"]["status"]] += 1
    return answers


def table(answers: Mapping[str, Mapping[int, int]]) -> str:
    """What was answered, a line for each operation."""
    lines = [f"{'operation':<38} {'2xx, 3xx':>9} {'4xx':>6} {'5xx':>6}  most frequent"]
    for name, entry in sorted(answers.items()):
        well, refused, failed = (sum(n for status, n in entry.items() if status // 100 in kinds) for kinds in KINDS)
        often = ", ".join(f"{status}: {count}" for status, count in Counter(entry).most_common(4))
        lines.append(f"{name:<38} {well:>9} {refused:>6} {failed:>6}  {often}")
    return "\n".join(lines)


KINDS: Sequence[Sequence[Any]] = ((2, 3), (4,), (5,))


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
