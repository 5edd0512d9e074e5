"""The settings of a training as clients send them: texts and choices, defaults for everything left out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lib.errors import TrainingError
from lib.nnunet.finetune_settings import MAX_ACCEPTED_SHARE, MAX_REPLAY_SHARE, OPTIMIZERS, FinetuneSettings
from lib.trainers.settings import RetrainSettings

DEVICES: Final = ("auto", "cuda", "cpu")
MAX_ITERATIONS: Final = 250_000
"""What nnU-Net trains from scratch; more is a typing error."""
NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "iterations": (1, MAX_ITERATIONS),
    "batch_size": (1, 64),
    "learning_rate": (1e-7, 1),
    "replay_share": (0, MAX_REPLAY_SHARE),
    "accepted_share": (0, MAX_ACCEPTED_SHARE),
    "replay_cases": (0, 200),
    "seed": (0, 2**31 - 1),
}
"""Setting -> least and largest value."""
AUTO: Final = "auto"
"""A learning rate that fits the network."""
WHOLE: Final = ("iterations", "batch_size", "replay_cases", "seed")


def client_config() -> dict[str, Any]:
    """The settings as clients show them: a list is a choice with its default first, a bool a box, a text is free."""
    settings = RetrainSettings()
    finetune = settings.finetune
    shown: dict[str, Any] = {
        "iterations": finetune.iterations,
        "batch_size": finetune.batch_size,
        "learning_rate": finetune.learning_rate,
        "replay_share": finetune.replay_share,
        "accepted_share": finetune.accepted_share,
        "replay_cases": settings.replay_cases,
        "seed": finetune.seed,
    }
    texts = {name: AUTO if value is None else f"{value:g}" for name, value in shown.items()}
    return {**texts, "optimizer": list(OPTIMIZERS), "device": list(DEVICES), "resume": True}


def read_settings(request: Mapping[str, Any], steps: tuple[int, ...]) -> RetrainSettings:
    """The settings of a request.

    Args:
        request: As a client sent it; unknown keys are the host's own.
        steps: Which networks.

    Raises:
        TrainingError: A value that a setting cannot have.
    """
    untouched = {name: (None, "", AUTO) if name == "learning_rate" else (None, "") for name in NUMBERS}
    given = {name: _number(name, request[name]) for name in NUMBERS if request.get(name) not in untouched[name]}
    replay_cases = given.pop("replay_cases", RetrainSettings().replay_cases)
    values: dict[str, Any] = {name: int(value) if name in WHOLE else value for name, value in given.items()}
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
        raise TrainingError(f"the setting {name!r} must be {kind} from {low:g} to {high:g}, got {value!r}; correct it")
    return number


def _chosen(value: object, choices: Sequence[str]) -> object:
    """Return a choice; a client that never touched the setting sends nothing, or the whole list."""
    value = value[0] if isinstance(value, list) and value else value
    return choices[0] if value in (None, "") else value


def _device(value: object) -> str:
    value = _chosen(value, DEVICES)
    if value not in DEVICES and not (isinstance(value, str) and value.startswith("cuda:") and value[5:].isdigit()):
        raise TrainingError(f"the setting 'device' must be one of {', '.join(DEVICES)}, got {value!r}; choose one")
    return str(value)
