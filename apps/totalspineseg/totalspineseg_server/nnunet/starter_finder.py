"""Mark discs for step 2 as a trained step 1 finds them, during the training of the starter weights."""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from totalspineseg_server.files import sha256_of
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.starter_plans import GRIDS, STRIDES

LIKELY = 0.5
_DISC = "disc"


class StarterFinder:
    """A step-1 network that marks discs in training patches.

    Args:
        folder: A step-1 starter model.
        device: Device of the training.

    Raises:
        WeightsError: There is no such model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        model = ModelFolder.open(folder, step=1)
        self.sha256 = sha256_of(model.checkpoint)
        self._network = model.load_network().to(device)
        self._spacing = model.spacing_mm
        self._channel = model.regions.index(_DISC)

    def mark(self, channels: torch.Tensor, near_marked: torch.Tensor) -> torch.Tensor:
        """Replace synthetic discs by found ones.

        Args:
            channels: Image and marked discs, float32 (B, 2, Z, Y, X). Not modified.
            near_marked: Where a found disc is one of the marked set, bool (B, 1, Z, Y, X).

        Returns:
            Channels with the found discs of the marked set; unchanged where no disc was found, because odd and even
            could not be told apart without marks.
        """
        found = (self._chance(channels[:, :1]) > LIKELY) & near_marked
        seen = found.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        return torch.cat([channels[:, :1], torch.where(seen, found.to(channels.dtype), channels[:, 1:])], 1)

    def _chance(self, image: torch.Tensor) -> torch.Tensor:
        """Return the probability of a disc on step 2's grid, computed on step 1's; image and result (B, 1, Z, Y, X)."""
        shape = zip(image.shape[2:], GRIDS[2].spacing_mm, self._spacing, strict=True)
        size = [max(1, round(n * fine / coarse)) for n, fine, coarse in shape]
        missing = [-n % int(f) for n, f in zip(size, np.prod(STRIDES, axis=0), strict=True)]
        seen = interpolate(image, size, mode="trilinear")
        with torch.no_grad():
            logits = self._network(pad(seen, [n for lost in reversed(missing) for n in (0, lost)]))
        discs = logits[:, self._channel : self._channel + 1, : size[0], : size[1], : size[2]]
        return torch.sigmoid(interpolate(discs.float(), image.shape[2:], mode="trilinear"))
