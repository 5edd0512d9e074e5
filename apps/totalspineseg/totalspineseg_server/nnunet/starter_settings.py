"""Settings for the training of the starter weights."""

from dataclasses import asdict, dataclass
from typing import Any

from totalspineseg_server.nnunet.starter_plans import FEATURES, GRIDS


@dataclass(frozen=True)
class StarterSettings:
    """Settings of one training run; the defaults suit one CPU core.

    Attributes:
        iterations: Iterations until the learning rate reaches zero.
        minutes: Total training time until it reaches zero at the latest; None for no limit.
        piece_minutes: Time until this call ends and leaves its state to the next; None for no limit.
        seed: Seed of the weights and of the stream of spines.
        device: "cpu", "cuda" ..
        threads: CPU threads of the network.
        workers: Processes that make spines during the training; with 0 the training makes them itself. With a GPU, use
            one for each core.
        batch_size: Patches in an iteration.
        learning_rate: Initial rate of AdamW; it falls to nearly zero by nnU-Net's polynomial.
        warm_up: Iterations over which the rate rises.
        ema_decay: Decay of the running mean of the weights, which is exported.
        early_phase: Share of the training on smaller patches: twice as many iterations while shapes are learned.
        uses_per_spine: Patches from one synthetic spine; making a spine takes as long as about three patches.
        pool_size: Spines in memory at a time, so that neighbors in the stream differ; each takes about 20 MB.
        features: Features by stage.
        patch: Patch on the network's grid, (Z, Y, X); None for the step's default.
        real_share: Share of the patches from scans of people, if there are any.
        outlines_only: Whether only the layers in ``OUTLINE_PARTS`` change.
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
    outlines_only: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A count or rate is out of its range.
        """
        for name in ("iterations", "threads", "batch_size", "uses_per_spine", "pool_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"expected {name} of 1 or more, got {getattr(self, name)!r}. Leave it out for the default."
                )
        for name in ("minutes", "piece_minutes"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(
                    f"expected a positive time for {name}, got {getattr(self, name)!r}. Leave it out for no limit."
                )
        if self.workers < 0:
            raise ValueError(f"expected 0 or more workers, got {self.workers!r}")
        if not 0 <= self.real_share <= 1:
            raise ValueError(f"expected real_share from 0 to 1, such as 0.35, got {self.real_share!r}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"expected learning_rate between 0 and 1, such as 0.0015, got {self.learning_rate!r}")

    def patch_of(self, step: int) -> tuple[int, ...]:
        """Return the size of a step's training patches."""
        return self.patch or GRIDS[step].patch

    def record(self, step: int) -> dict[str, Any]:
        """Return the settings of a step's training for JSON."""
        used = asdict(self) | {"patch": self.patch_of(step)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in used.items()}
