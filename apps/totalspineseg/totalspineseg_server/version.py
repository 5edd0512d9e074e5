"""State the version of this software; it is written only here."""

from typing import Final

VERSION: Final = "0.2.0"
