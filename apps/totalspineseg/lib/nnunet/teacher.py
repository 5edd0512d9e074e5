"""Against forgetting: on uncorrected scans a training also learns what the network it began from answered."""

import torch
from torch import nn


class Teacher:
    """A network as it was before the training.

    Args:
        network: Frozen, in evaluation mode, on the training's device.
        share: Of a target, how much is the network's answer; the rest is the truth.

    Source:
        Li and Hoiem, Learning without Forgetting, ECCV 2016; here on replayed patches, whose truth is known too. Truth
        alone moves every outline a little, for a few dozen spines are soon known by heart.
    """

    def __init__(self, network: nn.Module, share: float) -> None:
        self._network, self._share = network, share

    def mix(self, channels: torch.Tensor, target: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """Targets with the network's answer in them.

        Args:
            channels: Of a batch, (N, C, ...). Not modified.
            target: See ``targets.region_shares``; (N, R + 1, ...). Not modified.
            taught: Which patches are mixed, bool (N,); the others keep their truth.

        Returns:
            Targets of the same shape and type; what nobody has looked at stays so.
        """
        if not taught.any():
            return target
        with torch.no_grad():
            answer = torch.sigmoid(self._network(channels[taught]).float()).to(target.dtype)
        mixed = target.clone()
        regions = answer.shape[1]
        mixed[taught, :regions] = torch.lerp(target[taught, :regions], answer, self._share)
        return mixed
