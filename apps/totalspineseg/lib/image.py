"""An image as it was read from a file."""

from dataclasses import dataclass

from lib.geometry import Volume


@dataclass(frozen=True)
class Image(Volume):
    """A volume with warnings about its file.

    Attributes:
        warnings: A sentence for each oddity of the file, although the image can be used.
    """

    warnings: tuple[str, ...] = ()
