"""Give MONAI Label the app where it looks for it; the app itself is in the package beside this file."""

from totalspineseg_server.app import App

__all__ = ["App"]
