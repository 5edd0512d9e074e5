"""Define the settings of a fine-tuning. They are plain values, so that PyTorch is not needed to read them."""

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Strength:
    """Strength of the augmentation: probabilities of the groups, 0..1.

    Attributes:
        spatial: Rotation and zoom, each; half of these patches are also sheared and shifted.
        elastic: Elastic deformation; rare, because it is slow.
        intensity: Each of brightness, contrast and gamma.
        remap: Each of new gray values by structure and a bent gray scale.
        artifacts: Each of bias field, noise, blur, low resolution, motion, spikes.
        inversion: Dark becomes bright.
        flip: Left and right exchanged.
    """

    spatial: float = 0.2
    elastic: float = 0.03
    intensity: float = 0.15
    remap: float = 0.1
    artifacts: float = 0.1
    inversion: float = 0.05
    flip: float = 0.5


MAX_REPLAY_SHARE: Final = 0.95
"""Largest share of replay: with more, hardly anything would be learned from corrections."""
MAX_ACCEPTED_SHARE: Final = 0.5
"""Largest share of accepted results: results that readers only looked at must not outweigh those that they corrected.
"""
OPTIMIZERS: Final = ("adamw", "sgd")
"""AdamW with a warm-up and half a cosine, or nnU-Net's own: SGD with momentum and a polynomial."""
NONE: Final = Strength(0, 0, 0, 0, 0, 0, 0)
"""No variation at all."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings for the fine-tuning of one step.

    Attributes:
        iterations: Iterations of the whole run; few, because it starts from good weights.
        batch_size: Patches in a pass; halved, with summed gradients, if there is too little memory.
        optimizer: One of ``OPTIMIZERS``.
        learning_rate: Peak of the learning rate. None for one that fits the network (see ``training.usual_rate``), or,
            with nnU-Net's optimizer, 0.01.
        warmup: Iterations from 0 to the peak; nnU-Net's optimizer has none.
        replay_share: Share of patches from earlier and uncorrected cases, which prevent forgetting.
        accepted_share: Share of patches from results that readers accepted unchanged. They teach nothing new, and there
            may be many of them: they must not outweigh corrections.
        teacher_share: Share of the parent's output in the targets of uncorrected cases; the rest is their label.
        epoch: Iterations between two reports and stored states; the last epoch may be shorter.
        validation_patches: Patches without augmentation on which a report is measured.
        seed: Seed of all random choices.
        device: "auto", "cuda", "cuda:1", "cpu".
        strength: Strength of the augmentation.
    """

    iterations: int = 500
    batch_size: int = 2
    optimizer: str = OPTIMIZERS[0]
    learning_rate: float | None = None
    warmup: int = 25
    replay_share: float = 0.5
    accepted_share: float = 0.1
    teacher_share: float = 0.9
    epoch: int = 25
    validation_patches: int = 8
    seed: int = 0
    device: str = "auto"
    strength: Strength = field(default_factory=Strength)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A count is below 1, the optimizer is unknown, or a share or rate is outside its range.
        """
        for name in ("iterations", "batch_size", "warmup", "epoch", "validation_patches"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected optimizer {' or '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        shares = {"replay_share": MAX_REPLAY_SHARE, "accepted_share": MAX_ACCEPTED_SHARE, "teacher_share": 1}
        for name, most in shares.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"expected {name} from 0 to {most}, got {getattr(self, name)!r}")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise ValueError(f"expected learning_rate above 0 and at most 1, got {self.learning_rate!r}")
