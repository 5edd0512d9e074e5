"""The file that MONAI Label loads: it looks here for the app, which is in the package beside it."""

from totalspineseg_server.app import App

__all__ = ["App"]
