"""What a training of the starter weights may be told."""

from dataclasses import asdict, dataclass
from typing import Any

from lib.nnunet.starter_plans import FEATURES, GRIDS


@dataclass(frozen=True)
class StarterSettings:
    """Settings of one training run; the defaults suit one CPU core.

    Attributes:
        iterations: Where the learning rate reaches zero.
        minutes: Training time in all after which it does so at the latest, the rate falling with it; None: no limit.
        piece_minutes: This call ends after so long and leaves its state for the next; None: it goes on to the end.
        seed: Of the weights and of the stream of spines.
        device: "cpu", "cuda" ..
        threads: CPU threads of the network.
        workers: Processes that draw spines beside the training; 0 draws in between. A GPU wants one per core.
        batch_size: Patches per iteration.
        learning_rate: AdamW's at the start; falls to nearly zero by nnU-Net's polynomial.
        warm_up: Iterations over which the rate rises.
        ema_decay: Of the running mean of the weights, which is what is shipped.
        early_phase: Share of the training on smaller patches: twice the iterations while shapes are learned.
        uses_per_spine: Patches taken of one drawn spine; drawing costs about as much as three patches.
        pool_size: Spines at hand at a time: neighbors in the stream should differ; each holds some 20 MB.
        features: Features by stage.
        patch: Patch on the network's grid, (Z, Y, X); None: the step's own.
        real_share: Share of the patches that are taken of scans of people, where there are any.
    """

    iterations: int = 3000
    minutes: float | None = None
    piece_minutes: float | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    workers: int = 0
    batch_size: int = 1
    learning_rate: float = 1.5e-3
    warm_up: int = 50
    ema_decay: float = 0.998
    early_phase: float = 0.3
    uses_per_spine: int = 20
    pool_size: int = 8
    features: tuple[int, ...] = FEATURES
    patch: tuple[int, ...] | None = None
    real_share: float = 0.35

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A count or rate is out of its range.
        """
        for name in ("iterations", "threads", "batch_size", "uses_per_spine", "pool_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)!r}; leave it out for the default")
        for name in ("minutes", "piece_minutes"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} must be a positive time, got {getattr(self, name)!r}; leave it out for no limit"
                )
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, got {self.workers!r}; 0 draws in the training's own process")
        if not 0 <= self.real_share <= 1:
            raise ValueError(f"real_share must lie between 0 and 1, got {self.real_share!r}; 0.35 is usual")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must lie between 0 and 1, got {self.learning_rate!r}; 0.0015 is usual")

    def patch_of(self, step: int) -> tuple[int, ...]:
        """The patch a step is trained on."""
        return self.patch or GRIDS[step].patch

    def record(self, step: int) -> dict[str, Any]:
        """The settings of a step's training as JSON holds them."""
        used = asdict(self) | {"patch": self.patch_of(step)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in used.items()}
