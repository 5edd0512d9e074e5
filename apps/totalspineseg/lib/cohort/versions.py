"""List the software versions of a run, for ``run.json``."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "connected-components-3d", "nnunetv2")


def software_versions() -> dict[str, str]:
    """Return name -> version of the software that affects results, without packages that are not installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
