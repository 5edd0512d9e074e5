"""Let step 1 see only the part of an image where a coarse network finds the spine, and no air.

Step 1 of the official size spends minutes of a CPU on air, belly and muscle. The coarse network, step 1 of the starter
weights, looks at the whole image in a second. What it finds decides which tiles of the whole image the fine network
computes, and nothing else: tiles in other places would change voxels, and names that are in doubt.
"""

import logging
from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from totalspineseg_server.nnunet.air import tissue_box
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import EarlierTiles, WarmPredictor
from totalspineseg_server.nnunet.preprocessing import Box, FloatArray, common_box, nonzero_box
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.transforms.components import foreground_box
from totalspineseg_server.transforms.pieces import one_spine

logger = logging.getLogger(__name__)

FINE_MM3: Final = 4.0
"""Largest voxel of a network for which a coarse look saves more time than it takes; that of the official networks is 1
cubic mm.
"""
MARGIN_MM: Final = (5, 5, 40)
"""Distance from the structures that the coarse network found, (right-left, front-back, along the spine), within which
all tiles that decide are computed. The starter weights miss tips of processes, and a vertebra at the end of a scan."""
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
        air beyond. If the coarse or the fine network finds nothing, the fine one gets the whole image. No tile is
        computed twice.

        Args:
            channels: (C, X, Y, Z) float32, 1 mm isotropic, RAS. Not modified.
            soft: Region names whose probabilities are returned.

        Returns:
            Labels (X, Y, Z) and a probability map per name in ``soft``, all 0 outside the box.
        """
        limits = nonzero_box(channels)
        if limits is None:
            return self.fine.predict(channels, soft=soft)
        if self._skip_air:
            tissue = tissue_box(torch.from_numpy(np.ascontiguousarray(channels[0])))
            limits = common_box(limits, tissue) or limits
        wanted = limits
        if self._look is not None:
            # The coarse network also finds specks in noise and far from the spine.
            found = foreground_box(one_spine(self._look.predict(channels, within=limits).labels, 1))
            if found is None:
                logger.info("The coarse look found no spine; step 1 gets the whole image")
                return self.fine.predict(channels, soft=soft)
            wanted = with_margin(found, limits)
        earlier = EarlierTiles()
        for _ in range(LOOKS):
            prediction = self.fine.predict(
                channels, soft=soft, within=limits, wanted=wanted, skip_air=self._skip_air, earlier=earlier
            )
            wider = widened(prediction.labels, prediction.seen or limits, limits)
            if wider == prediction.seen:
                return prediction
            if wider is None:
                break
            logger.info(
                "The spine reaches the edge of the box that step 1 searched, so step 1 runs again on %s", _size(wider)
            )
            wanted = wider
        return self.fine.predict(channels, soft=soft, earlier=earlier)

    def warm_up(self) -> None:
        """Run the fine network once if the first run is slower."""
        self.fine.warm_up()

    def retire(self) -> None:
        """Release GPU memory for good; see ``WarmPredictor.retire``."""
        self.fine.retire()


def with_margin(found: Box, limits: Box) -> Box:
    """Return the part of the image that the fine network must see: what the coarse look found, and ``MARGIN_MM``
    around it, as far as the limits allow."""
    sides = []
    for axis, margin, limit in zip(found, MARGIN_MM, limits, strict=True):
        start = min(max(limit.start, axis.start - margin), limit.stop - 1)
        sides.append(slice(start, max(start + 1, min(limit.stop, axis.stop + margin))))
    return sides[0], sides[1], sides[2]


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


def _size(box: Box) -> str:
    return " x ".join(str(axis.stop - axis.start) for axis in box) + " mm"
