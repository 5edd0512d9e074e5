"""Define the types that networks and the pipeline share, and a label map that takes little memory."""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.trust import UNMEASURED, Trust


@dataclass(frozen=True)
class Prediction:
    """One network's answer for one image.

    Attributes:
        labels: (X, Y, Z) uint8 network classes (``anatomy.Step1`` or ``anatomy.Step2``), 0 = background, on the
            grid of the channels.
        soft: Region name -> (X, Y, Z) float32 probability in 0..1, only for the requested regions.
        trust: How far the network is trusted: its measured errors.
        mirror_difference: Share of the regions, 0..1, that differ between the image and its left-right mirror image (1
            - Dice of all regions together); None if the network did not see the mirror image.
        seen: The part of the grid that the network saw; None if nothing says so.
    """

    labels: npt.NDArray[np.uint8]
    soft: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    trust: Trust = UNMEASURED
    mirror_difference: float | None = None
    seen: tuple[slice, slice, slice] | None = None


class Predictor(Protocol):
    """A network, or anything else that turns image channels into network classes."""

    @property
    def version(self) -> str:
        """The weights in use, such as "starter-1a2b3c4d"."""

    def predict(self, channels: npt.NDArray[np.float32], *, soft: Collection[str] = ()) -> Prediction:
        """Segment one image.

        Args:
            channels: (C, X, Y, Z) float32, 1 mm isotropic, RAS. Not modified.
            soft: Names of the regions whose probabilities are requested.

        Returns:
            Labels, and one probability map for each name in ``soft``.
        """


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
        """Pack a uint8 map, which is not modified."""
        return cls(labels.shape, zlib.compress(np.ascontiguousarray(labels).tobytes(), 1))

    def unpacked(self) -> LabelArray:
        """Return the map, which cannot be written to."""
        return np.frombuffer(zlib.decompress(self.content), np.uint8).reshape(self.shape)
