"""The step of training that all runs share: loss over regions, pseudo Dice, learning rate."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from torch import nn
from torch.nn.functional import avg_pool3d

from lib.nnunet.targets import REGIONS

SMOOTH: Final = 1.0
"""Voxels; a region that is in neither truth nor prediction then has Dice 1, and a stray voxel costs half of it."""
HALF: Final = 0.5
"""Share of a voxel above which it is given to a region, as a logit above 0 gives it."""
GRADIENT_NORM: Final = 12.0
"""Largest norm of the gradient (nnU-Net's value); one odd patch does not undo the rest."""
FULL_SHARE: Final = 0.02
"""Rate at the end relative to its peak."""
USUAL_RATE: Final = 0.009
"""Highest learning rate of a fine-tuning relative to the usual size of a convolution's weights: 8e-4 and 1e-3 for the
starter weights, on which it was chosen (decision 16)."""


def usual_rate(network: nn.Module) -> float:
    """The highest learning rate of a fine-tuning that fits a network.

    Args:
        network: With its weights. Not modified.

    Source:
        You et al., Large Batch Optimization for Deep Learning (LAMB), ICLR 2020: behind a normalization only the change
        of a weight relative to its size counts. Wide networks have small weights: a rate that is low for a narrow one
        would rewrite them.
    """
    weights = [p.detach().float() for p in network.parameters() if p.ndim > 1]
    total = sum(float(weight.square().sum()) for weight in weights)
    return USUAL_RATE * math.sqrt(total / sum(weight.numel() for weight in weights))


def region_loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the regions in view.

    Args:
        logits: (N, R, ...) of the network.
        target: (N, R, R + 1 or 2 R, ...) share of each region in each voxel, then the share that nobody has looked at,
            of all regions together or of each: a voxel where it is not 0 counts for nothing.
        weight: (N, R, ...) how much each voxel counts for each region, 0..1, see ``region_weights``; None for 1.

    Returns:
        A scalar, at best -1: cross-entropy 0 less a mean Dice of 1, of a region that counts less its share.

    Source:
        nnU-Net's loss for region labels (BCE and soft Dice), at full resolution, patch by patch: beside a patch full of
        spine, a narrow slab would count for next to nothing. ``SMOOTH`` differs, and the
        Dice is that for soft labels of Wang et al., Dice Semimetric Losses, MICCAI 2023, equal to the usual one where
        a share is 0 or 1: the usual one is best at 0 and 1 whatever the share, so that a cord of 3.7 voxels comes out
        as 3. A region out of view is left to the cross-entropy: its Dice would drive a rare landmark to nothing. Of
        parts of other regions (landmark discs, odd and even vertebrae) the cross-entropy counts once more within
        structures alone: spread over the whole patch, a landmark that was taken for another one cost next to nothing.
        In view is what fills half of a voxel somewhere: a ``Teacher``'s faint doubt everywhere is no structure.
        Sums are divided by what would count without weights, and a region's Dice, which does not change when all of its
        voxels count less, is multiplied by the mean weight of its truth: otherwise a structure of little weight would
        move the loss in full where it is alone.
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
    # Exactly 1 where every voxel counts in full.
    mean_weight = weighted.sum(axes) / truth.sum(axes).clamp(min=HALF)
    return (entropy - (dice * mean_weight * in_view).sum(1) / in_view.sum(1).clamp(min=1)).mean()


@cache
def inner_regions(count: int) -> list[int]:
    """Channels of the regions that are part of another region, of the step that has ``count`` regions."""
    for regions in REGIONS.values():
        if len(regions) == count:
            classes = [set(values) for values in regions.values()]
            return [k for k, part in enumerate(classes) if any(part < whole for whole in classes)]
    return []


def truth_and_known(target: torch.Tensor, regions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Region shares, and whether a voxel counts for a region; both (N, R, ...), see ``region_loss``."""
    truth, hidden = target[:, :regions], target[:, regions:]
    known = hidden == 0 if hidden.shape[1] == regions else (hidden == 0).all(1, keepdim=True)
    return truth, known.expand_as(truth)


def deep_loss(logits: Sequence[torch.Tensor], target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Dice and cross-entropy of regions at every resolution, weights halving; the coarsest is left out.

    Args:
        logits: (N, R, ...), finest first.
        target: See ``region_loss``, float32.
        weight: See ``region_loss``, float32.

    Returns:
        Scalar loss.

    Source: nnU-Net's deep supervision; here targets are shares, averaged for coarser levels as the weights are.
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
    """Count voxels that are right, drawn though not there, and missed, by region; see ``region_loss``.

    A voxel is of a region that fills half of it; one that nobody has looked at does not count.

    Returns:
        Three tensors (R,).
    """
    shares, known = truth_and_known(target, logits.shape[1])
    truth, found = (shares >= HALF) & known, (logits > 0) & known
    axes = (0, *range(2, logits.ndim))
    return (truth & found).sum(axes), (found & ~truth).sum(axes), (truth & ~found).sum(axes)


def learning_rate(iteration: float, *, total: float, warmup: float, peak: float) -> float:
    """Linear warm-up, then half a cosine down to ``FULL_SHARE`` of the peak.

    Args:
        iteration: From 0; or a time in any other unit, as the other two.
        total: Iterations of the whole run.
        warmup: Iterations until the peak.
        peak: The highest rate.
    """
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, total - warmup)
    return peak * (FULL_SHARE + (1 - FULL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def computes_in_half(device: torch.device) -> bool:
    """Whether a training's passes run in bfloat16: where the device computes in it itself, as it is faster there.

    On a CPU that has it (AVX512_BF16) a pass takes 0.55 of the time; one that imitates it would be slower. Weights,
    loss and optimizer stay float32; float16 would need its gradients scaled.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # PyTorch has no public name for it.
    has_it = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(has_it())
