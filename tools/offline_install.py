"""Install the project from a folder of packages, without an index: a new clone, then its wheel alone.

    .venv/bin/python tools/offline_install.py

Downloads about 4 GB into ``wheelhouse/`` first, as `make wheelhouse` does. Exit code 0: the clone labeled a
scan, and so did the wheel, by its command and from Python; and the wheel serves.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import requests
from local_server import ROOT

from totalspineseg_server.processes import free_port, stop, tied, unwind_on_signals

INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "http_proxy", "https_proxy")
NOWHERE = "http://127.0.0.1:9"
"""Address where no program listens, so that a request for a package ends the installation."""
START_SECONDS = 120
FROM_PYTHON = """
import sys
import numpy
import totalspineseg_server as spine
from totalspineseg_server.io.volumes import read_labels

result = spine.segment(sys.argv[1], model=spine.load_model(device="cpu"))
print(result.certainty, *(level.name for level in result.levels))
assert numpy.array_equal(result.labels, read_labels(__import__("pathlib").Path(sys.argv[2])).data)
"""
"""Program that segments the scan of its first argument and compares it with the labels of its second."""
SCAN = Path("tests") / "real" / "cervical_t2" / "t2.nii.gz"


def main() -> int:
    """Install, and label a scan."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    subprocess.run(["make", "wheelhouse"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="totalspineseg-offline-") as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        offline = {**os.environ, **dict.fromkeys(INDEXES, NOWHERE), "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}
        subprocess.run(["make", "setup", f"WHEELS={ROOT / 'wheelhouse'}"], cwd=clone, env=offline, check=True)
        command = clone / ".venv" / "bin" / "totalspineseg"
        words = [command, clone / SCAN, Path(name) / "results", "--weights", "starter", "--device", "cpu"]
        subprocess.run(words, cwd=clone, env=offline, check=True)
        if not (Path(name) / "results" / "step2_output" / SCAN.name).is_file():
            return 1
        subprocess.run(["make", "wheel"], cwd=clone, env=offline, check=True)
        return wheel_works(next((clone / "dist").glob("*.whl")), Path(name) / "wheel", offline)


def wheel_works(wheel: Path, folder: Path, environment: Mapping[str, str]) -> int:
    """Install a wheel into an environment of its own, and use its command, its API and its server.

    Args:
        wheel: The wheel.
        folder: A new folder for the environment and the results.
        environment: Variables, by which no index can be reached.

    Returns:
        0 if all worked.
    """
    uv, python = ROOT / ".venv" / "bin" / "uv", folder / "env" / "bin" / "python"
    own = {**environment, "XDG_DATA_HOME": str(folder / "data")}
    folder.mkdir()
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "env"], env=own, check=True)
    packages = ["--no-index", "--find-links", ROOT / "wheelhouse", "--overrides", ROOT / "requirements-override.txt"]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages, wheel], env=own, check=True)
    command = python.with_name("totalspineseg-server")
    subprocess.run([command, ROOT / SCAN, "results", "--device", "cpu"], cwd=folder, env=own, check=True)
    labels = folder / "results" / "step2_output" / SCAN.name
    for words in (["lint", labels], ["weights", "list"], ["models", "list"]):
        subprocess.run([command, *words], cwd=folder, env=own, check=True)
    subprocess.run([python, "-c", FROM_PYTHON, ROOT / SCAN, labels], cwd=folder, env=own, check=True)
    shutil.copytree(ROOT / SCAN.parent, folder / "studies")
    port = free_port()
    with (folder / "log").open("wb") as log:
        words = [command, "serve", "--studies", "studies", "--port", str(port)]
        server = subprocess.Popen(tied(list(map(str, words))), cwd=folder, env=own, stdout=log, stderr=log)
    try:
        return (
            0 if answers(f"http://127.0.0.1:{port}/info/") and answers(f"http://127.0.0.1:{port}/lab/niivue.js") else 1
        )
    finally:
        stop(server)


def answers(url: str) -> bool:
    """Return whether a server that has just been started answers within a minute or two."""
    for _ in range(START_SECONDS):
        try:
            return requests.get(url, timeout=START_SECONDS).ok
        except requests.ConnectionError:
            time.sleep(1)
    return False


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
