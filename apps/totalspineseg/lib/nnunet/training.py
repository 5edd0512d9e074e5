"""The step of training both kinds of runs share: loss over regions, pseudo Dice by name, learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from lib.nnunet.targets import IGNORE_CLASS, REGIONS, Step, region_masks

SMOOTH: Final = 1.0
"""Voxels; a region that is in neither truth nor prediction then has Dice 1, and a stray voxel costs half of it."""
GRADIENT_NORM: Final = 12.0
"""Largest norm of the gradient (nnU-Net's value); one odd patch does not undo the rest."""
FULL_SHARE: Final = 0.02
"""Rate at the end relative to its peak."""


def region_loss(logits: torch.Tensor, target: torch.Tensor, step: Step) -> torch.Tensor:
    """Cross-entropy plus soft Dice over all regions; voxels of the ignore class count for nothing.

    Args:
        logits: (N, R, ...) of the network.
        target: (N, ...) uint8 classes.
        step: 1 or 2.

    Returns:
        A scalar, at best -1: cross-entropy 0 less a mean Dice of 1.

    Source:
        nnU-Net's loss for region labels (BCE and batch-wise soft Dice), at full resolution only; ``SMOOTH`` differs.
    """
    truth = region_masks(target, step).to(logits.dtype)
    known = (target != IGNORE_CLASS[step]).unsqueeze(1).to(logits.dtype)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    entropy = (entropy * known).sum() / (known.sum() * logits.shape[1]).clamp(min=1)
    share = torch.sigmoid(logits) * known
    axes = (0, *range(2, logits.ndim))
    both = 2 * (share * truth).sum(axes) + SMOOTH
    dice = both / (share.sum(axes) + (truth * known).sum(axes) + SMOOTH).clamp(min=1e-8)
    return entropy - dice.mean()


@dataclass
class RegionCounts:
    """Voxels right and wrong by region, summed over validation patches.

    Attributes:
        step: 1 or 2.
        both: Voxels in truth and prediction, by region.
        either: Voxels of truth plus voxels of prediction, by region.
    """

    step: Step
    both: list[int] = field(default_factory=list)
    either: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.both = self.both or [0] * len(REGIONS[self.step])
        self.either = self.either or [0] * len(REGIONS[self.step])

    def add(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch; the ignore class is left out."""
        truth = region_masks(target, self.step)
        found = (logits > 0) & (target != IGNORE_CLASS[self.step]).unsqueeze(1)
        axes = (0, *range(2, logits.ndim))
        for k, (b, t, f) in enumerate(zip((truth & found).sum(axes), truth.sum(axes), found.sum(axes), strict=True)):
            self.both[k] += int(b)
            self.either[k] += int(t) + int(f)

    def dice(self) -> Mapping[str, float]:
        """Region name -> pseudo Dice: nan where a region is in neither truth nor prediction, 0.0 where it is missed."""
        pairs = zip(REGIONS[self.step], self.both, self.either, strict=True)
        return {name: 2 * both / either if either else math.nan for name, both, either in pairs}


def mean_dice(dice: Mapping[str, float]) -> float:
    """Mean over the regions that occur; nan when none does."""
    values = [value for value in dice.values() if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def learning_rate(iteration: int, *, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to ``FULL_SHARE`` of the peak.

    Args:
        iteration: From 0.
        total: Iterations of the whole run.
        warmup: Iterations until the peak.
        peak: The highest rate.
    """
    if iteration < warmup:
        return peak * (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, total - warmup)
    return peak * (FULL_SHARE + (1 - FULL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
