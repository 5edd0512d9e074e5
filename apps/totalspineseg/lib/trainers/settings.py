"""Settings of a retraining: numbers only, importable without PyTorch."""

from dataclasses import dataclass, field
from typing import Final

from lib.nnunet.finetune_settings import FinetuneSettings

REPLAY_CASES: Final = 48
"""Synthetic scans against forgetting, used many times in varied patches. With fewer, the network learns them by heart
and becomes worse on other old scans."""
REFERENCE_CASES: Final = 12
"""Scans of the reference set: every measure applies to at least six of them, and a CPU scores the starter weights on
them in minutes. With half of them the gate would refuse harmless candidates."""
NEW_WEIGHTS: Final = (1.0, 0.5)
"""Shares of the trained weights that are judged, in order, until one passes: all, then the mean with the weights in
use, which learns less and forgets less. Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022."""


@dataclass(frozen=True)
class RetrainSettings:
    """Settings of a retraining.

    Attributes:
        steps: Networks to train, in order.
        finetune: Settings of the fine-tuning.
        replay_cases: Synthetic scans against forgetting.
        reference_cases: Scans of the fixed reference set that judge.
        new_weights: Shares of the trained weights that are judged, in order; the rest is from the weights in use.
        resume: Continue an unfinished run about the same material and settings.
    """

    steps: tuple[int, ...] = (1, 2)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    replay_cases: int = REPLAY_CASES
    reference_cases: int = REFERENCE_CASES
    new_weights: tuple[float, ...] = NEW_WEIGHTS
    resume: bool = True
