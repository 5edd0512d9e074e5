"""What pyproject.toml cannot say about the wheel: ranges of packages from their pins, and the app folder inside it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
APP = "apps/totalspineseg"
PACKAGE = "totalspineseg_server"
PIN = re.compile(r"([\w.-]+)==((\d+)\.(\d+)[\w.]*)")
EXACT = ("monailabel",)
"""Packages whose internals are adapted to, so that only the release that was tested will do."""
EXTRAS = {"openvino": ("openvino",), "cluster": ("cluster",), "dev": ("dev", "openvino", "cluster")}


def ranges(name: str) -> list[str]:
    """Return the packages of a file of pins, from the tested release on to the next minor one."""
    found = []
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        if pin := PIN.match(line):
            package, release, major, minor = pin.groups()
            upper = f"=={release}" if package in EXACT else f">={release},<{major}.{int(minor) + 1}"
            found.append(f"{package}{upper}")
    return found


setup(
    packages=[*find_packages(APP, include=[f"{PACKAGE}*"]), f"{PACKAGE}.app_folder"],
    # The app folder is packed as a folder of the package: main.py, the starter weights, the viewer if npm brought it.
    package_dir={"": APP, f"{PACKAGE}.app_folder": APP},
    package_data={
        PACKAGE: ["**/*.css", "**/*.html", "**/*.js"],
        f"{PACKAGE}.app_folder": [
            # Only the files of the weights: a comparison by ``weights quantize`` is this machine's.
            *(
                f"model/starter/Dataset*/*/{name}"
                for name in ("SHA256SUMS", "dataset.json", "plans.json", "training.json", "trust.json")
            ),
            "model/starter/Dataset*/*/fold_*/*.pth",
            "npm/node_modules/@niivue/niivue/dist/index.js",
            "npm/node_modules/@niivue/niivue/package.json",
            "npm/node_modules/*/LICENSE*",
            "npm/node_modules/@*/*/LICENSE*",
        ],
    },
    include_package_data=False,
    install_requires=ranges("requirements.txt"),
    extras_require={
        extra: [entry for name in names for entry in ranges(f"requirements-{name}.txt")]
        for extra, names in EXTRAS.items()
    },
)
