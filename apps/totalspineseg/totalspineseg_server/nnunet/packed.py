"""Keep many label maps in memory at once, compressed."""

import zlib
from dataclasses import dataclass

import numpy as np

from totalspineseg_server.geometry import LabelArray


@dataclass(frozen=True)
class Packed:
    """A label map that takes little memory.

    Attributes:
        shape: Shape of the map.
        content: Its voxels, compressed.
    """

    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, labels: LabelArray) -> "Packed":
        """Pack a uint8 map. Not modified."""
        return cls(labels.shape, zlib.compress(np.ascontiguousarray(labels).tobytes(), 1))

    def unpacked(self) -> LabelArray:
        """Return the map, which cannot be written to."""
        return np.frombuffer(zlib.decompress(self.content), np.uint8).reshape(self.shape)
