"""How a network is fine-tuned: numbers only, importable without PyTorch."""

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Strength:
    """How much is varied: probabilities of the groups, 0..1.

    Attributes:
        spatial: Rotation and zoom, each; half of what they move is sheared and shifted, too.
        elastic: Elastic deformation; seldom, since it is slow.
        intensity: Each of brightness, contrast and gamma.
        remap: New gray values by structure; a bent gray scale.
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
"""With nothing but replay no correction would be learned from."""
MAX_ACCEPTED_SHARE: Final = 0.5
"""Results that readers only looked at must not outweigh what they corrected."""
OPTIMIZERS: Final = ("adamw", "sgd")
"""AdamW with a warm-up and half a cosine; nnU-Net's own, SGD with momentum and a polynomial."""
NONE: Final = Strength(0, 0, 0, 0, 0, 0, 0)
"""No variation at all."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How one step is fine-tuned.

    Attributes:
        iterations: Of the whole run; short, since it starts from good weights.
        batch_size: Patches in a pass; halved, with the gradient summed, when memory does not suffice.
        optimizer: One of ``OPTIMIZERS``.
        learning_rate: Peak; None for the optimizer's own: one that fits the network, see ``training.usual_rate``, or
            nnU-Net's 0.01.
        warmup: Iterations from nothing to the peak; nnU-Net's optimizer has none.
        replay_share: Share of patches from earlier and synthetic cases, against forgetting.
        accepted_share: Share of patches from results that readers accepted unchanged: they teach nothing that the
            weights did not answer, and many of them must not outweigh corrections.
        teacher_share: Of the targets of synthetic replay, how much is what the weights answered before the training;
            the rest is the truth.
        epoch: Iterations between two reports and stored states; the last epoch may be shorter.
        validation_patches: Unvaried patches a report is measured on.
        seed: Of all random draws.
        device: "auto", "cuda", "cuda:1", "cpu".
        strength: Of the augmentation.
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
            ValueError: A count below 1, an unknown optimizer, a share or a rate outside its range.
        """
        for name in ("iterations", "batch_size", "warmup", "epoch", "validation_patches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        shares = {"replay_share": MAX_REPLAY_SHARE, "accepted_share": MAX_ACCEPTED_SHARE, "teacher_share": 1}
        for name, most in shares.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 0 to {most}, got {getattr(self, name)!r}")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate must be above 0 and at most 1, got {self.learning_rate!r}")
