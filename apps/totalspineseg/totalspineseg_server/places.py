"""Say where this installation keeps its files: in a clone beside the code, for a wheel in the user's folders."""

import os
from pathlib import Path
from typing import Final

NAME: Final = "totalspineseg-server"
"""Name of the distribution, of its command, and of its folders."""
PACKAGE: Final = Path(__file__).resolve().parent
INSTALLED: Final = (PACKAGE / "app_folder").is_dir()
"""Whether this is an installed wheel, which has the app folder inside the package."""
SHIPPED: Final = PACKAGE / "app_folder" if INSTALLED else PACKAGE.parent
"""The app folder as installed: ``main.py``, the starter weights, the viewer of the lab's page. In a wheel it is only
read."""
COMMAND: Final = NAME if INSTALLED else "totalspineseg"
"""The command that users of this installation type."""


def data_dir() -> Path:
    """Return the user's folder for data of this software; it may not exist yet."""
    # Import here, because commands that need no such folder should work in an older environment of a clone.
    from platformdirs import user_data_path

    return Path(user_data_path(NAME, appauthor=False))


def cache_dir() -> Path:
    """Return the user's folder for files that can be computed again; it may not exist yet."""
    from platformdirs import user_cache_path

    return Path(user_cache_path(NAME, appauthor=False))


def app_dir() -> Path:
    """Return the folder that MONAI Label serves, with ``model`` and ``logs``; for a wheel it may not exist yet."""
    return data_dir() if INSTALLED else SHIPPED


def model_dir() -> Path:
    """Return the folder of installed and trained models, unless ``--data-dir`` names another."""
    return app_dir() / "model"


def python_path() -> str:
    """Return ``PYTHONPATH`` for Python programs that this one starts and that import the package."""
    paths = os.environ.get("PYTHONPATH", "")
    # An installed package is found anyway, and its folder could hide modules of Python.
    return paths if INSTALLED else os.pathsep.join(filter(None, [str(PACKAGE.parent), paths]))
