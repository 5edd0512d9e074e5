"""Compute the parts that all trainings share: the loss over regions, a teacher, pseudo Dice, the learning rate."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from torch import nn
from torch.nn.functional import avg_pool3d

from totalspineseg_server.nnunet.targets import REGIONS

SMOOTH: Final = 1.0
"""Voxels added to both sides of the Dice: a region that is in neither truth nor prediction then has Dice 1, and a
single wrong voxel halves it."""
HALF: Final = 0.5
"""A voxel belongs to a region that fills more than this share of it; the logit of such a voxel is above 0."""
GRADIENT_NORM: Final = 12.0
"""Largest norm of the gradient (nnU-Net's value), so that a single odd patch does not undo the rest."""
FULL_SHARE: Final = 0.02
"""Learning rate at the end, relative to its peak."""
USUAL_RATE: Final = 0.009
"""Highest learning rate of a fine-tuning relative to the usual size of a convolution's weights: 8e-4 and 1e-3 for the
starter weights, for which it was chosen (decision 13)."""


def usual_rate(network: nn.Module) -> float:
    """Return the highest learning rate of a fine-tuning that fits a network.

    Args:
        network: Network with its weights. Not modified.

    Source:
        You et al., Large Batch Optimization for Deep Learning (LAMB), ICLR 2020: before a normalization only the change
        of a weight relative to its size counts. Wide networks have small weights, which a rate for narrow networks
        would rewrite.
    """
    weights = [p.detach().float() for p in network.parameters() if p.ndim > 1]
    total = sum(float(weight.square().sum()) for weight in weights)
    return USUAL_RATE * math.sqrt(total / sum(weight.numel() for weight in weights))


def region_loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return cross-entropy plus soft Dice over the regions in view.

    Args:
        logits: (N, R, ...) logits of the network.
        target: (N, R + 1 or 2 R, ...) share of each region in each voxel, then the share that nobody checked, of all
            regions together or of each; a voxel where it is not 0 does not count.
        weight: (N, R, ...) weight of each voxel for each region, 0..1, see ``region_weights``; None for 1.

    Returns:
        A scalar, at best -1: cross-entropy 0 minus a mean Dice of 1 (less for regions with less weight).

    Source:
        nnU-Net's loss for region labels (BCE and soft Dice), at full resolution, computed patch by patch: in a sum over
        the batch, a narrow slab beside a patch full of spine would have nearly no effect. ``SMOOTH`` differs, and the
        Dice is the one for soft labels of Wang et al., Dice Semimetric Losses, MICCAI 2023, which equals the usual one
        if a share is 0 or 1: the usual one is best at 0 and 1 whatever the share, so that a cord of 3.7 voxels would
        become 3. A region out of view counts only in the cross-entropy, because its Dice would suppress rare landmarks.
        For parts of other regions (landmark discs, odd and even vertebrae) the cross-entropy counts once more, within
        structures only: averaged over the whole patch, a wrong landmark would have nearly no effect. A region is in
        view if it fills half of a voxel somewhere: the faint doubt of a ``Teacher``, which is everywhere, is not a
        structure. Sums are divided by the count without weights. A region's Dice does not change if all of its voxels
        have less weight, so it is multiplied by the mean weight of its truth: otherwise a structure of little weight
        would have the full effect where it is alone.
    """
    truth, known = (part.to(logits.dtype) for part in truth_and_known(target, logits.shape[1]))
    every = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    weight = known if weight is None else known * weight
    every = every * weight
    axes = tuple(range(2, logits.ndim))
    entropy = every.sum((1, *axes)) / known.sum((1, *axes)).clamp(min=1)
    if parts := inner_regions(logits.shape[1]):
        within = ((truth.amax(1, keepdim=True) >= HALF) * known)[:, parts]
        entropy = entropy + (every[:, parts] * within).sum((1, *axes)) / within.sum((1, *axes)).clamp(min=1)
    truth = truth * known
    share, weighted = torch.sigmoid(logits) * weight, truth * weight
    size, error = (share + weighted).sum(axes), (share - weighted).abs().sum(axes)
    dice = (size - error + SMOOTH) / (size + SMOOTH)
    in_view = (truth.amax(axes) >= HALF).to(dice.dtype)
    # This is exactly 1 where every voxel counts fully.
    mean_weight = weighted.sum(axes) / truth.sum(axes).clamp(min=HALF)
    return (entropy - (dice * mean_weight * in_view).sum(1) / in_view.sum(1).clamp(min=1)).mean()


@cache
def inner_regions(count: int) -> list[int]:
    """Return the channels of regions that are parts of another region, for the step with ``count`` regions."""
    for regions in REGIONS.values():
        if len(regions) == count:
            classes = [set(values) for values in regions.values()]
            return [k for k, part in enumerate(classes) if any(part < whole for whole in classes)]
    return []


def truth_and_known(target: torch.Tensor, regions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the region shares, and whether a voxel counts for a region; both (N, R, ...), see ``region_loss``."""
    truth, hidden = target[:, :regions], target[:, regions:]
    known = hidden == 0 if hidden.shape[1] == regions else (hidden == 0).all(1, keepdim=True)
    return truth, known.expand_as(truth)


def deep_loss(logits: Sequence[torch.Tensor], target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return Dice and cross-entropy of regions at every resolution but the coarsest, with halving weights.

    Args:
        logits: (N, R, ...), finest first.
        target: See ``region_loss``, float32.
        weight: See ``region_loss``, float32.

    Returns:
        Scalar loss.

    Source: nnU-Net's deep supervision; here targets are shares, and both targets and weights are averaged for coarser
    levels.
    """
    weights = [0.5**k for k in range(max(1, len(logits) - 1))]
    total = logits[0].new_zeros(())
    for level, level_weight in zip(logits, weights, strict=False):
        factor = [a // b for a, b in zip(target.shape[2:], level.shape[2:], strict=True)]
        truth, voxels = (
            avg_pool3d(map_, factor) if map_ is not None and max(factor) > 1 else map_ for map_ in (target, weight)
        )
        total = total + level_weight * region_loss(level, truth, voxels)
    return total / sum(weights)


def region_hits(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Count right, false and missed voxels by region; see ``region_loss``.

    A voxel belongs to a region that fills half of it; voxels that nobody checked do not count.

    Returns:
        Three tensors (R,).
    """
    shares, known = truth_and_known(target, logits.shape[1])
    truth, found = (shares >= HALF) & known, (logits > 0) & known
    axes = (0, *range(2, logits.ndim))
    return (truth & found).sum(axes), (found & ~truth).sum(axes), (truth & ~found).sum(axes)


def learning_rate(iteration: float, *, total: float, warmup: float, peak: float) -> float:
    """Return a learning rate with a linear warm-up, then half a cosine down to ``FULL_SHARE`` of the peak.

    Args:
        iteration: Iteration, from 0; or a time in another unit, the same for all three.
        total: Iterations of the whole run.
        warmup: Iterations until the peak.
        peak: The highest rate.
    """
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, total - warmup)
    return peak * (FULL_SHARE + (1 - FULL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def computes_in_half(device: torch.device) -> bool:
    """Return whether a training runs in bfloat16: it does on devices that compute in it directly and so are faster.

    On a CPU with AVX512_BF16 a pass takes 0.55 of the time; on one that emulates it, it would take longer. Weights,
    loss and optimizer stay float32; float16 would need scaled gradients.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public name for this check.
    has_it = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(has_it())


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
