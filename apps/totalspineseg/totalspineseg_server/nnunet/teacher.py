"""Prevent forgetting: on uncorrected scans, a training also learns the output of the network that it began from."""

import torch
from torch import nn


class Teacher:
    """The network from which a training began.

    Args:
        network: Frozen, in evaluation mode, on the training's device.
        share: Share of the network's output in a target; the rest is the truth.

    Source:
        Li and Hoiem, Learning without Forgetting, ECCV 2016; here on replayed patches, whose truth is known as well.
        With the truth alone every outline would shift a little, because a few dozen spines are soon learned by heart.
    """

    def __init__(self, network: nn.Module, share: float) -> None:
        self._network, self._share = network, share

    def mix(self, channels: torch.Tensor, target: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return targets with the network's output mixed in.

        Args:
            channels: Channels of a batch, (N, C, ...). Not modified.
            target: See ``targets.region_shares``; (N, R + 1, ...). Not modified.
            chosen: Patches to mix, bool (N,); the others keep their target.

        Returns:
            Targets of the same shape and type; voxels that nobody checked stay so.
        """
        if not chosen.any():
            return target
        with torch.no_grad():
            answer = torch.sigmoid(self._network(channels[chosen]).float()).to(target.dtype)
        mixed = target.clone()
        regions = answer.shape[1]
        mixed[chosen, :regions] = torch.lerp(target[chosen, :regions], answer, self._share)
        return mixed
