"""The version of this software, written here alone."""

from typing import Final

VERSION: Final = "0.1.0"
