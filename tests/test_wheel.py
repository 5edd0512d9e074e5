"""Tests of the wheel: its packages and files, and that an unpacked one works without the clone."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import setuptools
from rooms import LIB, ROOT
from urllib3.util import Retry

from totalspineseg_server import places
from totalspineseg_server.app import history_root
from totalspineseg_server.nnunet.fast_ways import FAST_FILE
from totalspineseg_server.processes import free_port, stop, tied
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.version import VERSION

APP = LIB.parent
PIN = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
SECONDS = 120
SCAN = ROOT / "tests" / "real" / "cervical_t2" / "t2.nii.gz"


@pytest.fixture(scope="module")
def packing() -> Iterator[dict[str, Any]]:
    """What setup.py hands to setuptools."""
    values: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: values.update(arguments))
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    yield values


def test_every_folder_of_the_package_is_packed(packing: dict[str, Any]) -> None:
    folders = {".".join(path.parent.relative_to(APP).parts) for path in LIB.rglob("*.py")}
    assert set(packing["packages"]) == {*folders, "totalspineseg_server.app_folder"}


def test_every_file_that_is_not_code_is_packed(packing: dict[str, Any]) -> None:
    """A page or the weights were missing in the wheel, and nothing in a clone showed it."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", str(APP)], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout.split("\0")
    files = {ROOT / name for name in tracked if name and not name.endswith(".py")}
    data = packing["package_data"]
    packed = {file for pattern in data["totalspineseg_server"] for file in LIB.glob(pattern)}
    packed |= {file for pattern in data["totalspineseg_server.app_folder"] for file in APP.glob(pattern)}
    left_out = {str(file.relative_to(APP)) for file in files - packed}
    assert left_out == {"model/starter/.gitignore", "npm/package.json", "npm/package-lock.json"}


def test_what_was_compared_on_this_machine_is_neither_packed_nor_committed(packing: dict[str, Any]) -> None:
    """A wheel from a clone in which ``weights quantize`` had run allowed INT8 on machines that had compared nothing."""
    plans = next((APP / "model" / "starter").glob("*/*/plans.json"))
    compared = plans.with_name(FAST_FILE).relative_to(APP)
    patterns = packing["package_data"]["totalspineseg_server.app_folder"]
    assert not any(compared.match(pattern) for pattern in patterns)
    assert subprocess.run(["git", "check-ignore", "-q", str(APP / compared)], cwd=ROOT, check=False).returncode == 0


def test_the_packages_are_those_that_were_tested(packing: dict[str, Any]) -> None:
    required = {re.split(r"[<>=]", entry)[0]: entry for entry in packing["install_requires"]}
    pins = dict(PIN.findall((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    assert required.keys() == pins.keys()
    assert required["monailabel"] == f"monailabel=={pins['monailabel']}"
    assert required["numpy"] == f"numpy>={pins['numpy']},<1.27"
    assert not {"dask", "openvino", "pytest"} & required.keys()
    extras = {
        extra: {re.split(r"[<>=]", entry)[0] for entry in found} for extra, found in packing["extras_require"].items()
    }
    assert extras["openvino"] == {"openvino", "nncf"}
    assert extras["cluster"] == {"dask", "distributed", "dask-jobqueue"}
    assert extras["dev"] > extras["cluster"] | extras["openvino"] | {"pytest", "mypy"}


def test_a_clone_keeps_its_models_beside_its_code() -> None:
    assert (places.INSTALLED, places.COMMAND) == (False, "totalspineseg")
    assert places.model_dir() == APP / "model"
    assert places.python_path().split(os.pathsep)[0] == str(APP)


def test_an_installed_wheel_keeps_its_models_with_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter weights are in the package, and everything else in the user's folder, which may not exist yet."""
    shipped = tmp_path / "site" / "app_folder"
    (shipped / "model" / "starter").mkdir(parents=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(places, "INSTALLED", True)
    monkeypatch.setattr(places, "SHIPPED", shipped)
    assert places.model_dir() == tmp_path / "data" / "totalspineseg-server" / "model"
    assert ModelStore(places.model_dir()).resolve(1).root == shipped / "model" / "starter"
    other = tmp_path / "other"
    assert ModelStore(other).starter_dir == other / "starter"
    own = places.model_dir() / "starter"
    own.mkdir(parents=True)
    assert ModelStore(places.model_dir()).resolve(2).root == own


def test_the_history_of_a_pacs_stays_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    new = history_root("http://pacs/dicom-web", {})
    assert new.parent == tmp_path / "data" / "totalspineseg-server"
    earlier = tmp_path / ".local" / "share" / "totalspineseg" / new.name
    earlier.mkdir(parents=True)
    assert history_root("http://pacs/dicom-web", {}) == earlier


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as a site's packages hold it."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools builds beside the files.
    copy = folder / "copy"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if name.startswith(("apps/", "requirements")) or "/" not in name:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    assert wheel.name == f"totalspineseg_server-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder


def environment(folder: Path) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "XDG_DATA_HOME": str(folder / "data")}


@pytest.mark.slow
def test_the_command_of_the_wheel_has_its_weights_and_its_name(unpacked: Path) -> None:
    (entry,) = (unpacked / "site").glob("*.dist-info/entry_points.txt")
    assert "totalspineseg-server = totalspineseg_server.cli:main" in entry.read_text(encoding="utf-8")

    def answer(*words: str) -> str:
        program = "import sys; from totalspineseg_server.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, *words]
        run = subprocess.run(
            command,
            cwd=unpacked,
            env=environment(unpacked),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        return run.stdout + run.stderr

    assert answer("--version") == f"totalspineseg-server {VERSION}\n"
    assert "starter" in answer("weights", "list")
    assert "'totalspineseg-server weights install'" in answer(str(SCAN), "out", "--weights", "official")
    assert not (unpacked / "data").exists()


@pytest.mark.slow
def test_monai_label_starts_the_app_itself(unpacked: Path, tmp_path: Path) -> None:
    """``monailabel start_server --app`` is what users of MONAI Label type."""
    shipped = unpacked / "site" / "totalspineseg_server" / "app_folder" / "main.py"
    assert shipped.read_bytes() == (APP / "main.py").read_bytes()
    (tmp_path / "app").mkdir()
    (tmp_path / "studies").mkdir()
    shutil.copy(shipped, tmp_path / "app")
    port = free_port()
    words = ["start_server", "--app", "app", "--studies", "studies", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            tied([sys.executable, "-m", "monailabel.main", *words]),
            cwd=tmp_path,
            env=environment(unpacked),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            session = requests.Session()
            attempts = Retry(SECONDS, backoff_factor=1, backoff_max=1)
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=attempts))
            about = session.get(f"http://127.0.0.1:{port}/info/", timeout=SECONDS).json()
        finally:
            stop(process)
    assert {"totalspineseg", "totalspineseg_review"} <= about["models"].keys()
