"""Write the progress of a training into logs: lines for people, lines for programs, curves, TensorBoard events."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.files import append_line, read_json_lines

LINES_FILE: Final = "log.jsonl"
TEXT_FILE: Final = "log.txt"
CURVES_FILE: Final = "curves.png"
EVENTS_DIR: Final = "tensorboard"
MARGIN: Final = 0.03
"""How far the Dice axis extends beyond 0 and 1, so that missed regions are visible."""
NOTHING, MISSED = "-", "0.00 (missed)"
"""Texts for a region that is in neither truth nor prediction, and for one that was present and not found."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training.

    Attributes:
        step: 1 or 2.
        iteration: Number of finished iterations.
        iterations: Iterations of the whole run.
        seconds: Time that this process has spent.
        best: Best mean pseudo Dice so far; nan before the first report.
        waited: Share of these seconds in which the training waited for patches.
    """

    step: int
    iteration: int
    iterations: int
    seconds: float
    best: float
    waited: float = 0.0


def dice_text(dice: Mapping[str, float]) -> str:
    """Return the pseudo Dice by name for people: nan is "-" (nothing to find), 0 is "0.00 (missed)"."""
    return ", ".join(f"{name} {_number(value)}" for name, value in dice.items())


def _number(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return MISSED if value == 0 else f"{value:.2f}"


class TrainingLog:
    """Appends to the logs of one step's training. Every line is written to disk at once, so that a kill loses nothing.

    Args:
        folder: Folder of the logs; it is made if it is missing. A resumed training continues them.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def say(self, text: str, **values: Any) -> None:
        """Write one event, for people and for programs.

        Args:
            text: One sentence without patient data.
            **values: Plain values for the JSON line; nan is written as null.
        """
        now = datetime.now(timezone.utc)
        append_line(self._folder / TEXT_FILE, f"{now:%Y-%m-%d %H:%M:%S} {text}")
        line = {"time": now.isoformat(timespec="milliseconds"), "text": text} | values
        append_line(self._folder / LINES_FILE, json.dumps(_plain(line)))

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far; a line that a kill or a full disk cut short is left out."""
        return read_json_lines(self._folder / LINES_FILE)

    def draw(self) -> None:
        """Write the curves as a PNG and as TensorBoard events; nothing if there is no epoch yet."""
        # If an iteration was repeated after an interruption, its last values count.
        by_iteration = {event["iteration"]: event for event in self.events() if "dice" in event}
        epochs = [by_iteration[iteration] for iteration in sorted(by_iteration)]
        if epochs:
            _draw_curves(epochs, self._folder / CURVES_FILE)
            _write_events(epochs, self._folder / EVENTS_DIR)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _draw_curves(epochs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    # Other libraries may have set styles in this process, which this picture must not use.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        _draw_figure(epochs, path)


def _draw_figure(epochs: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    at = [event["iteration"] for event in epochs]
    # Dots are drawn, because a run with one report, or a region that is rarely in view, has no line.
    dots: dict[str, Any] = {"marker": "o", "markersize": 3}
    losses = [event["loss"] for event in epochs]
    upper.plot(at, [math.nan if loss is None else loss for loss in losses], color="black", **dots)
    upper.set_ylabel("loss")
    for name in epochs[-1]["dice"]:
        values = [event["dice"].get(name) for event in epochs]
        lower.plot(at, [math.nan if value is None else value for value in values], label=name, **dots)
    lower.set_ylim(-MARGIN, 1 + MARGIN)
    lower.set_xlabel("iteration")
    lower.set_ylabel("pseudo Dice")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=100)


def _write_events(epochs: list[dict[str, Any]], folder: Path) -> None:
    """Write TensorBoard's format, if its package is installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return
    for old in folder.glob("events.*") if folder.is_dir() else ():
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for event in epochs:
            if event["loss"] is not None:
                writer.add_scalar("loss", event["loss"], event["iteration"])
            for name, value in event["dice"].items():
                if value is not None:
                    writer.add_scalar(f"pseudo Dice/{name}", value, event["iteration"])
