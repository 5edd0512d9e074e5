"""Let step 1 see only the part of an image where a coarse network finds the spine, and no air.

Step 1 of the official size spends minutes of a CPU on air, belly and muscle. The coarse network, step 1 of the starter
weights, looks at the whole image in a second. What it finds decides where the fine network looks, and nothing else.
"""

import logging
from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from totalspineseg_server.nnunet.air import tissue_box
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.preprocessing import Box, FloatArray
from totalspineseg_server.nnunet.tiles import tile_starts
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.transforms.components import foreground_box
from totalspineseg_server.transforms.pieces import one_spine

logger = logging.getLogger(__name__)

FINE_MM3: Final = 4.0
"""Largest voxel of a network for which a coarse look saves more time than it takes; that of the official networks is 1
cubic mm.
"""
MARGIN_MM: Final = (15, 15, 40)
"""Smallest distance from the structures that the coarse network found to the sides of the box, (right-left, front-back,
along the spine). The starter weights miss tips of processes, and a vertebra at the end of a scan."""
EDGE_MM: Final = 3
"""Distance to a side of the box within which a structure may go on beyond it."""
WIDEN_MM: Final = 60
"""Distance by which such a side moves outward before the fine network runs again: more than a vertebra with its disc.
"""
LOOKS: Final = 3
"""Number of boxes to try before the fine network gets the whole image."""


class FocusedPredictor:
    """Step 1 in the box that a coarse look gives it; the answer covers the whole image.

    Args:
        fine: Step 1.
        look: A fast step 1; only the position of its result is used. None for the whole image except air, as in step
            2, which gets only the crop around the spine.
        skip_air: Whether the box ends where the image holds nothing but air beyond it, if that saves tiles, and tiles
            of air are left out.
    """

    def __init__(self, fine: WarmPredictor, look: WarmPredictor | None, *, skip_air: bool = True) -> None:
        self.fine, self._look, self._skip_air = fine, look, skip_air

    @property
    def version(self) -> str:
        """The weights of the fine network."""
        return self.fine.version

    def predict(self, channels: FloatArray, *, soft: Collection[str] = ()) -> Prediction:
        """Segment one image; see ``WarmPredictor.predict``.

        If a structure reaches a side of the box, the box is widened and the network looks again, unless there is only
        air beyond. If the coarse or the fine network finds nothing, the fine one gets the whole image.

        Args:
            channels: (C, X, Y, Z) float32, 1 mm isotropic, RAS. Not modified.
            soft: Region names whose probabilities are returned.

        Returns:
            Labels (X, Y, Z) and a probability map per name in ``soft``, all 0 outside the box.
        """
        shape = channels.shape[1:]
        whole: Box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        limits = whole
        if self._skip_air:
            limits = self._with_fewer_tiles(tissue_box(torch.from_numpy(np.ascontiguousarray(channels[0]))), whole)
        box = limits
        if self._look is not None:
            # The coarse network also finds specks in noise and far from the spine.
            found = foreground_box(one_spine(self._look.predict(channels, within=limits).labels, 1))
            if found is None:
                logger.info("The coarse look found no spine; step 1 gets the whole image")
                return self.fine.predict(channels, soft=soft)
            box = self._box(found, limits)
        for _ in range(LOOKS):
            if box == whole and not self._skip_air:
                break
            prediction = self.fine.predict(channels, soft=soft, within=box, skip_air=self._skip_air)
            wider = widened(prediction.labels, box, limits)
            if wider == box:
                return prediction
            if wider is None:
                break
            logger.info(
                "The spine reaches the edge of the box that step 1 searched, so step 1 runs again on %s", _size(wider)
            )
            box = wider
        return self.fine.predict(channels, soft=soft)

    def warm_up(self) -> None:
        """Run the fine network once if the first run is slower."""
        self.fine.warm_up()

    def retire(self) -> None:
        """Release GPU memory for good; see ``WarmPredictor.retire``."""
        self.fine.retire()

    def _box(self, found: Box, limits: Box) -> Box:
        """Return the box around the structures that the coarse look found: the largest one within the limits with the
        fewest tiles."""
        spans = (
            span(axis, margin, tile, limit, step=self.fine.tile_step)
            for axis, margin, tile, limit in zip(found, MARGIN_MM, self._tile(), limits, strict=True)
        )
        x, y, z = spans
        return x, y, z

    def _with_fewer_tiles(self, part: Box, whole: Box) -> Box:
        """Return a part without its limits along the axes on which they save no tile: where all tiles stay in their
        places, all labels stay the same."""
        sides = (
            inside if _count(inside, tile, self.fine.tile_step) < _count(axis, tile, self.fine.tile_step) else axis
            for inside, axis, tile in zip(part, whole, self._tile(), strict=True)
        )
        x, y, z = sides
        return x, y, z

    def _tile(self) -> tuple[int, ...]:
        """Return the size of a tile along the axes of the image, voxels of 1 mm."""
        folder = self.fine.folder
        order = [folder.transpose.index(2 - axis) for axis in range(3)]
        return tuple(round(folder.patch[k] * folder.spacing_mm[k]) for k in order)


def span(found: slice, margin: int, tile: int, limits: slice, *, step: float) -> slice:
    """Return the part of one axis that a network looks at: as wide as the fewest tiles allow.

    Args:
        found: The part with the spine.
        margin: Smallest distance to its ends, voxels, as far as the limits allow.
        tile: Voxels of a tile.
        limits: The part of the axis that may be looked at: the image, or what of it is not air.
        step: Distance between neighboring tiles, as a share of a tile.
    """
    start = min(max(limits.start, found.start - margin), limits.stop)
    stop = max(start, min(limits.stop, found.stop + margin))
    count = _count(slice(start, stop), tile, step)
    width = min(limits.stop - limits.start, tile + int((count - 1) * tile * step))
    start = min(max(limits.start, start - (width - (stop - start)) // 2), limits.stop - width)
    return slice(start, start + width)


def widened(labels: npt.NDArray[np.uint8], box: Box, limits: Box) -> Box | None:
    """Return the box after moving outward the sides that a structure comes close to.

    Args:
        labels: (X, Y, Z) uint8 classes found in the box, 0 outside. Not modified.
        box: Where the network looked, voxels of 1 mm.
        limits: The part of the image that may be looked at.

    Returns:
        The same box if no structure comes close to a side inside the limits; None if there is no structure.
    """
    found = foreground_box(labels)
    if found is None:
        return None
    sides = []
    for inside, around, limit in zip(found, box, limits, strict=True):
        start, stop = around.start, around.stop
        if start > limit.start and inside.start - start < EDGE_MM:
            start = max(limit.start, start - WIDEN_MM)
        if stop < limit.stop and stop - inside.stop < EDGE_MM:
            stop = min(limit.stop, stop + WIDEN_MM)
        sides.append(slice(start, stop))
    return sides[0], sides[1], sides[2]


def is_worth_a_look(folder: ModelFolder) -> bool:
    """Return whether a coarse look saves time; it saves none if the network itself is coarse."""
    return bool(np.prod(folder.spacing_mm) <= FINE_MM3)


def _count(part: slice, tile: int, step: float) -> int:
    """Return the number of tiles along one axis of a part."""
    return len(tile_starts(max(part.stop - part.start, tile), tile, step))


def _size(box: Box) -> str:
    return " x ".join(str(axis.stop - axis.start) for axis in box) + " mm"
