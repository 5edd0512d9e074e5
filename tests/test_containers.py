"""Tests of the container files, which cannot be built here: each command in them is one that works outside."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rooms import ROOT

from serving import Server
from totalspineseg_server.cli import _parser
from totalspineseg_server.cli import serve as serve_command

FOLDER = ROOT / "containers"
LINES = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text(encoding="utf-8")).splitlines()
PROGRAMS = {"python", "uv", "useradd", "install"}


def values(instruction: str) -> list[str]:
    return [line.removeprefix(instruction).strip() for line in LINES if line.startswith(f"{instruction} ")]


def served(words: list[str]) -> dict[str, object]:
    assert words[0] == "serve"
    return vars(_parser("serve", serve_command).parse_args(words[1:]))


def test_the_container_serves_as_the_command_does() -> None:
    assert json.loads(values("ENTRYPOINT")[0]) == ["totalspineseg-server"]
    options = served(json.loads(values("CMD")[0]))
    assert (options["studies"], options["host"], options["port"]) == ("/data/studies", "0.0.0.0", 8000)
    assert values("EXPOSE") == ["8000"]
    assert values("VOLUME") == ["/data"]


def test_the_container_does_not_run_as_root() -> None:
    assert values("USER") == ["1000"]
    assert "useradd --uid 1000" in values("RUN")[-1]


@pytest.mark.parametrize("line", [part for run in values("RUN") for part in run.split(" && ")])
def test_a_command_of_the_container_is_known(line: str) -> None:
    words = shlex.split(line)
    assert words[0] in PROGRAMS
    if words[:3] == ["uv", "pip", "install"]:
        uv = Path(sys.executable).parent / "uv"
        known = subprocess.run(
            [uv, "pip", "install", "--help"], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout
        assert [word for word in words if word.startswith("--") and word not in known] == []
        backends = set(re.findall(r"TORCH=(\w+)", "\n".join(LINES)))
        assert backends == {"cpu", "cu128"}
        assert all(f" {backend}," in known for backend in backends)


def test_the_container_has_the_uv_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"UV_VERSION[ :]*=(.*)", "\n".join(LINES)) == re.findall(r"UV_VERSION := (.*)", makefile)


def test_the_health_check_of_the_container_asks_a_running_server(server: Server) -> None:
    check = json.loads(values("HEALTHCHECK")[0].split("CMD ", 1)[1])
    assert check[:2] == ["python", "-c"]
    port = server.url.rsplit(":", 1)[1]
    answers = [
        subprocess.run([sys.executable, "-c", check[2].replace("8000", at)], capture_output=True).returncode
        for at in (port, "9")
    ]
    assert answers == [0, 1]


def test_the_composed_server_has_options_and_volumes_that_exist() -> None:
    text = os.path.expandvars((FOLDER / "compose.yaml").read_text(encoding="utf-8").replace(":-localhost", ""))
    services = yaml.safe_load(text)
    server = services["services"]["server"]
    assert served(server["command"])["studies"] == "http://orthanc:8042/dicom-web"
    assert (FOLDER / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert [volume.split(":")[0] for volume in server["volumes"]] == ["data"]
    assert {"data", "pacs"} == services["volumes"].keys()
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert "ports" not in services["services"]["orthanc"]
    gpu = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text(encoding="utf-8"))["services"]["server"]
    assert f"TORCH={gpu['build']['args']['TORCH']}" in "\n".join(LINES)
