"""What a run was made with, for ``run.json``."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "connected-components-3d", "nnunetv2")


def software_versions() -> dict[str, str]:
    """Name -> version of what decides about results; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
