"""The step of training both kinds of runs share: loss over regions, pseudo Dice by name, learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import torch
from torch import nn

from lib.nnunet.targets import REGIONS, Step

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


def region_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the regions in view.

    Args:
        logits: (N, R, ...) of the network.
        target: (N, R, R + 1 or 2 R, ...) share of each region in each voxel, then the share that nobody has looked at,
            of all regions together or of each: a voxel where it is not 0 counts for nothing.

    Returns:
        A scalar, at best -1: cross-entropy 0 less a mean Dice of 1.

    Source:
        nnU-Net's loss for region labels (BCE and batch-wise soft Dice), at full resolution. ``SMOOTH`` differs, and the
        Dice is that for soft labels of Wang et al., Dice Semimetric Losses, MICCAI 2023, equal to the usual one where
        a share is 0 or 1: the usual one is best at 0 and 1 whatever the share, so that a cord of 3.7 voxels comes out
        as 3. A region out of view is left to the cross-entropy: its Dice would drive a rare landmark to nothing. Of
        parts of other regions (landmark discs, odd and even vertebrae) the cross-entropy counts once more within
        structures alone: spread over the whole patch, a landmark that was taken for another one cost next to nothing.
        In view is what fills half of a voxel somewhere: a ``Teacher``'s faint doubt everywhere is no structure.
    """
    truth, known = (part.to(logits.dtype) for part in truth_and_known(target, logits.shape[1]))
    every = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
    entropy = every.sum() / known.sum().clamp(min=1)
    if parts := inner_regions(logits.shape[1]):
        within = ((truth.amax(1, keepdim=True) >= HALF) * known)[:, parts]
        entropy = entropy + (every[:, parts] * within).sum() / within.sum().clamp(min=1)
    share, truth = torch.sigmoid(logits) * known, truth * known
    axes = (0, *range(2, logits.ndim))
    size, error = (share + truth).sum(axes), (share - truth).abs().sum(axes)
    dice = (size - error + SMOOTH) / (size + SMOOTH)
    shown = (truth.amax(axes) >= HALF).to(dice.dtype)
    return entropy - (dice * shown).sum() / shown.sum().clamp(min=1)


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
        """Count a batch; see ``region_loss``. A voxel is of a region that fills half of it."""
        shares, known = truth_and_known(target, logits.shape[1])
        truth, found = (shares >= HALF) & known, (logits > 0) & known
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
