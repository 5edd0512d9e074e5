"""An image as it was read from a file."""

from dataclasses import dataclass

from lib.geometry import Volume


@dataclass(frozen=True)
class Image(Volume):
    """A volume with what its reader should know about it.

    Attributes:
        warnings: A sentence for each thing that is odd about the file, though the image can be used.
    """

    warnings: tuple[str, ...] = ()
