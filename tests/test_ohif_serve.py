"""Tests of ``make serve-ohif``: from an empty folder to a labeled spine on the screen, and Ctrl-C ends it all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from demo_series import demo_pacs
from server_process import ROOT

from totalspineseg_server.anatomy import NAME_OF, VERTEBRAE
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.processes import free_port, stop
from viewer import browser

pytestmark = [
    pytest.mark.ohif,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
SECONDS = 900
SEED = 7
"""Of tools/serve_ohif.py, so that the truth of its first study is known."""
PICTURES = "TOTALSPINESEG_PICTURES"
"""Names a folder for the picture of the README."""


@contextmanager
def started(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, running in its own folder."""
    command = [sys.executable, str(ROOT / "tools" / "serve_ohif.py"), "--folder", str(folder), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            yield process
        finally:
            stop(process)


def wait_for_address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        text = (folder / "log").read_text(encoding="utf-8")
        if process.poll() is not None:
            raise AssertionError(text[-3000:])
        found = [line.split()[1] for line in text.splitlines() if line.startswith("OHIF: ")]
        if found:
            return found[0].removesuffix("/ohif/")
        time.sleep(0.5)
    raise AssertionError((folder / "log").read_text(encoding="utf-8")[-3000:])


def test_a_labeled_spine_from_nothing(tmp_path: Path) -> None:
    study = demo_pacs(tmp_path / "made", 1, SEED, truth=True)[0]
    sagittal = study.series[0]
    assert sagittal.truth is not None
    truth = read_labels(sagittal.truth).data
    folder = tmp_path / "served"
    folder.mkdir()
    with started(folder, free_port()) as process:
        url = wait_for_address(folder, process)
        assert requests.get(f"{url}/info/", timeout=SECONDS).json()["datastore"]["total"] == 6
        with browser(url) as viewer:
            viewer.open(study.uid)
            viewer.settle()
            viewer.run()
            found = viewer.voxels()
            viewer.picture(tmp_path / "ohif.png")
            viewer.page.screenshot(path=str(tmp_path / "ohif.jpg"), type="jpeg", quality=80)
        orthanc = json.loads((folder / "orthanc" / "orthanc.json").read_text(encoding="utf-8"))["HttpPort"]
        assert requests.get(f"http://127.0.0.1:{orthanc}/studies", timeout=60).ok
        process.send_signal(signal.SIGINT)
        process.wait(timeout=SECONDS)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{orthanc}/studies", timeout=60)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/info/", timeout=60)
    expected = {NAME_OF[int(c)]: int(n) for c, n in zip(*np.unique(truth, return_counts=True), strict=True) if c}
    whole = [NAME_OF[code] for code in VERTEBRAE if expected.get(NAME_OF[code], 0) > 0.5 * max(expected.values())]
    near = [name for name in whole if 0.6 < found.get(name, 0) / expected[name] < 1.6]
    assert len(near) >= 0.8 * len(whole), (found, expected)
    if os.environ.get(PICTURES):
        shutil.copy(tmp_path / "ohif.jpg", os.environ[PICTURES])
