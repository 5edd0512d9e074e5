"""State the version of this software, which is written only here, and the versions of what it runs on."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

VERSION: Final = "0.2.0"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those of these packages that are installed, by name."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
