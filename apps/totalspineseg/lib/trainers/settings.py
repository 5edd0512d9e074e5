"""What a retraining does: numbers only, importable without PyTorch."""

from dataclasses import dataclass, field
from typing import Final

from lib.nnunet.finetune_settings import FinetuneSettings

REPLAY_CASES: Final = 48
"""Synthetic scans against forgetting, used many times in varied patches: with fewer, what they show is learned by heart
and other old scans become worse."""
REFERENCE_CASES: Final = 12
"""Scans of the reference set: every measure applies to six or more, and a CPU scores the starter weights on them in
minutes. With half of them the bound would refuse what did no harm."""
NEW_WEIGHTS: Final = (1.0, 0.5)
"""What is judged, in order, until one passes: the trained weights, then their mean with those in use, which learns less
and forgets less. Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022."""


@dataclass(frozen=True)
class RetrainSettings:
    """What a retraining does.

    Attributes:
        steps: Which networks, in order.
        finetune: How each is fine-tuned.
        replay_cases: Synthetic scans against forgetting.
        reference_cases: Scans of the fixed reference set that judge.
        new_weights: Shares of the trained weights in what is judged, in order; the rest are those in use.
        resume: Go on with an unfinished run about the same material and settings.
    """

    steps: tuple[int, ...] = (1, 2)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    replay_cases: int = REPLAY_CASES
    reference_cases: int = REFERENCE_CASES
    new_weights: tuple[float, ...] = NEW_WEIGHTS
    resume: bool = True
