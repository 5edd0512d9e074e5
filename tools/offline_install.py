"""Install the project from a folder of packages, without an index, in a new clone, and label a scan there.

    .venv/bin/python tools/offline_install.py

Downloads about 4 GB into ``wheelhouse/`` first, as `make wheelhouse` does. Exit code 0: the clone labeled the scan.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from local_server import ROOT

from totalspineseg_server.processes import unwind_on_signals

INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "http_proxy", "https_proxy")
NOWHERE = "http://127.0.0.1:9"
"""Address where no program listens, so that a request for a package ends the installation."""
SCAN = Path("tests") / "real" / "cervical_t2" / "t2.nii.gz"


def main() -> int:
    """Install, and label a scan."""
    subprocess.run(["make", "wheelhouse"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="totalspineseg-offline-") as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        offline = {**os.environ, **dict.fromkeys(INDEXES, NOWHERE), "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1"}
        subprocess.run(["make", "setup", f"WHEELS={ROOT / 'wheelhouse'}"], cwd=clone, env=offline, check=True)
        command = clone / ".venv" / "bin" / "totalspineseg"
        words = [command, clone / SCAN, Path(name) / "results", "--weights", "starter", "--device", "cpu"]
        subprocess.run(words, cwd=clone, env=offline, check=True)
        return 0 if (Path(name) / "results" / "step2_output" / SCAN.name).is_file() else 1


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
