"""Read the settings of a training as clients send them: texts and choices, with defaults for those left out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lib.errors import TrainingError
from lib.nnunet.finetune_settings import MAX_REPLAY_SHARE, OPTIMIZERS, FinetuneSettings
from lib.trainers.settings import RetrainSettings

DEVICES: Final = ("auto", "cuda", "cpu")
MAX_ITERATIONS: Final = 250_000
"""Iterations of nnU-Net's training from scratch; a larger number is a typing error."""
NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "iterations": (1, MAX_ITERATIONS),
    "batch_size": (1, 64),
    "learning_rate": (1e-7, 1),
    "replay_share": (0, MAX_REPLAY_SHARE),
    "replay_cases": (0, 200),
    "seed": (0, 2**31 - 1),
}
"""Setting -> smallest and largest value."""
AUTO: Final = "auto"
"""Learning rate that fits the network."""
WHOLE: Final = ("iterations", "batch_size", "replay_cases", "seed")


def client_config() -> dict[str, Any]:
    """Return the settings for clients: a list is a choice with its default first, a bool a box, a text is free."""
    settings = RetrainSettings()
    finetune = settings.finetune
    defaults: dict[str, Any] = {
        "iterations": finetune.iterations,
        "batch_size": finetune.batch_size,
        "learning_rate": finetune.learning_rate,
        "replay_share": finetune.replay_share,
        "replay_cases": settings.replay_cases,
        "seed": finetune.seed,
    }
    texts = {name: AUTO if value is None else f"{value:g}" for name, value in defaults.items()}
    return {**texts, "optimizer": list(OPTIMIZERS), "device": list(DEVICES), "resume": True}


def read_settings(request: Mapping[str, Any], steps: tuple[int, ...]) -> RetrainSettings:
    """Return the settings of a request.

    Args:
        request: The request of a client; unknown keys belong to the host.
        steps: The networks to train.

    Raises:
        TrainingError: A setting has a value that it cannot have.
    """
    untouched = {name: (None, "", AUTO) if name == "learning_rate" else (None, "") for name in NUMBERS}
    numbers = {name: _number(name, request[name]) for name in NUMBERS if request.get(name) not in untouched[name]}
    replay_cases = numbers.pop("replay_cases", RetrainSettings().replay_cases)
    values: dict[str, Any] = {name: int(value) if name in WHOLE else value for name, value in numbers.items()}
    try:
        finetune = replace(
            FinetuneSettings(),
            **values,
            optimizer=str(_chosen(request.get("optimizer"), OPTIMIZERS)),
            device=_device(request.get("device")),
        )
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if finetune.iterations < finetune.warmup * 2:
        finetune = replace(finetune, warmup=max(1, finetune.iterations // 2))
    resume = request.get("resume", True) not in (False, "false", "False", 0)
    return RetrainSettings(steps, finetune, int(replay_cases), resume=resume)


def _number(name: str, value: object) -> float:
    low, high = NUMBERS[name]
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not low <= number <= high or (name in WHOLE and number != int(number)):
        kind = "a whole number" if name in WHOLE else "a number"
        raise TrainingError(f"The setting {name!r} must be {kind} from {low:g} to {high:g}, got {value!r}. Correct it.")
    return number


def _chosen(value: object, choices: Sequence[str]) -> object:
    """Return a choice; a client that never changed the setting sends nothing, or the whole list."""
    value = value[0] if isinstance(value, list) and value else value
    return choices[0] if value in (None, "") else value


def _device(value: object) -> str:
    value = _chosen(value, DEVICES)
    if value not in DEVICES and not (isinstance(value, str) and value.startswith("cuda:") and value[5:].isdigit()):
        raise TrainingError(f"The setting 'device' must be one of {', '.join(DEVICES)}, got {value!r}. Choose one.")
    return str(value)
