"""Define the settings of a retraining. They are plain values, so that PyTorch is not needed to read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from totalspineseg_server.errors import TrainingError
from totalspineseg_server.nnunet.finetune_settings import (
    MAX_ACCEPTED_SHARE,
    MAX_REPLAY_SHARE,
    OPTIMIZERS,
    FinetuneSettings,
)
from totalspineseg_server.requested import choice, number

REPLAY_CASES: Final = 48
"""Number of synthetic scans that are replayed to prevent forgetting, each in many varied patches. With fewer, the
network learns them by heart and becomes worse on other old scans."""
REFERENCE_CASES: Final = 12
"""Number of scans of the reference set. Every measure applies to at least six of them, and a CPU scores the starter
weights on them in minutes. With half as many the gate would refuse harmless candidates."""
NEW_WEIGHTS: Final = (1.0, 0.75, 0.5)
"""Shares of the trained weights that are judged, in this order, until one passes: first all, then mixtures with the
weights in use, which have learned less and forgotten less. Each costs the time of one comparison. Source: Wortsman et
al., Robust fine-tuning of zero-shot models, CVPR 2022."""


@dataclass(frozen=True)
class RetrainSettings:
    """Settings of a retraining.

    Attributes:
        steps: Networks to train, in order.
        finetune: Settings of the fine-tuning.
        replay_cases: Number of synthetic scans to replay.
        reference_cases: Number of scans of the fixed reference set.
        new_weights: Shares of the trained weights that are judged, in order; the rest is from the weights in use.
        resume: Whether to continue an unfinished run with the same corrections and settings.
    """

    steps: tuple[int, ...] = (1, 2)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    replay_cases: int = REPLAY_CASES
    reference_cases: int = REFERENCE_CASES
    new_weights: tuple[float, ...] = NEW_WEIGHTS
    resume: bool = True


DEVICES: Final = ("auto", "cuda", "cpu")
MAX_ITERATIONS: Final = 250_000
"""Largest number of iterations: that of nnU-Net's training from scratch. A larger number is probably a typo."""
NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "iterations": (1, MAX_ITERATIONS),
    "batch_size": (1, 64),
    "learning_rate": (1e-7, 1),
    "replay_share": (0, MAX_REPLAY_SHARE),
    "accepted_share": (0, MAX_ACCEPTED_SHARE),
    "replay_cases": (0, 200),
    "seed": (0, 2**31 - 1),
}
"""Setting -> smallest and largest value."""
AUTO: Final = "auto"
"""Setting for a learning rate that fits the network."""
WHOLE: Final = ("iterations", "batch_size", "replay_cases", "seed")


def client_config() -> dict[str, Any]:
    """Return the settings for clients: a list is a choice (the first is the default), a bool a check box, and a text
    free input.
    """
    settings = RetrainSettings()
    finetune = settings.finetune
    defaults: dict[str, Any] = {
        "iterations": finetune.iterations,
        "batch_size": finetune.batch_size,
        "learning_rate": finetune.learning_rate,
        "replay_share": finetune.replay_share,
        "accepted_share": finetune.accepted_share,
        "replay_cases": settings.replay_cases,
        "seed": finetune.seed,
    }
    texts = {name: AUTO if value is None else f"{value:g}" for name, value in defaults.items()}
    return {**texts, "optimizer": list(OPTIMIZERS), "device": list(DEVICES), "resume": True}


def read_settings(request: Mapping[str, Any], steps: tuple[int, ...]) -> RetrainSettings:
    """Return the settings of a request.

    Args:
        request: The request of a client. Unknown keys are ignored: they belong to MONAI Label.
        steps: The networks to train.

    Raises:
        SettingError: A setting has a value that is not allowed.
        TrainingError: Two settings do not fit together.
    """
    auto = {"learning_rate": (AUTO,)}
    every = {
        name: number(request, name, *limits, is_whole=name in WHOLE, none=auto.get(name, ()))
        for name, limits in NUMBERS.items()
    }
    numbers = {name: value for name, value in every.items() if value is not None}
    replay_cases = numbers.pop("replay_cases", RetrainSettings().replay_cases)
    values: dict[str, Any] = {name: int(value) if name in WHOLE else value for name, value in numbers.items()}
    values |= {"optimizer": choice(request, "optimizer", OPTIMIZERS), "device": _device(request)}
    try:
        finetune = replace(FinetuneSettings(), **values)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if finetune.iterations < finetune.warmup * 2:
        finetune = replace(finetune, warmup=max(1, finetune.iterations // 2))
    resume = request.get("resume", True) not in (False, "false", "False", 0)
    return RetrainSettings(steps, finetune, int(replay_cases), resume=resume)


def _device(request: Mapping[str, Any]) -> str:
    value = request.get("device")
    if isinstance(value, str) and value.startswith("cuda:") and value[5:].isdigit():
        return value
    return choice(request, "device", DEVICES)
