"""What a retraining does: numbers only, importable without PyTorch."""

from dataclasses import dataclass, field
from typing import Final

from lib.nnunet.finetune_settings import FinetuneSettings

REPLAY_CASES: Final = 16
"""Synthetic scans against forgetting, used many times in varied patches; with six, what they show was learned by heart
and other old scans became worse."""
REFERENCE_CASES: Final = 6
"""Scans of the reference set: enough for the bootstrap, few enough to score on a CPU in minutes."""


@dataclass(frozen=True)
class RetrainSettings:
    """What a retraining does.

    Attributes:
        steps: Which networks, in order.
        finetune: How each is fine-tuned.
        replay_cases: Synthetic scans against forgetting.
        reference_cases: Scans of the fixed reference set that judge.
        resume: Go on with an unfinished run about the same material and settings.
    """

    steps: tuple[int, ...] = (1, 2)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    replay_cases: int = REPLAY_CASES
    reference_cases: int = REFERENCE_CASES
    resume: bool = True
