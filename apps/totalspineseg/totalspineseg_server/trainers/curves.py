"""Read the curves of the newest training from the files that it writes while it runs."""

from pathlib import Path
from typing import Any, Final

from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.trainers.runs import RunState, newest_run

MAX_POINTS: Final = 400
"""Largest number of points of a curve that are sent: more than a picture has pixels to show."""


def curves_of(training_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the curves of the newest training.

    Returns:
        Step -> ``iterations``, ``loss`` and ``dice`` (structure -> values; None if there was nothing to find).
    """
    run = newest_run(training_dir)
    found = {}
    for folder in sorted(run.glob("step*")) if run is not None else ():
        # If iterations were repeated after an interruption, the last values count.
        events = {event["iteration"]: event for event in TrainingLog(folder).events() if "dice" in event}
        points = [events[iteration] for iteration in sorted(events)]
        points = points[:: 1 + len(points) // MAX_POINTS]
        names = dict.fromkeys(name for point in points for name in point["dice"])
        found[folder.name.removeprefix("step")] = {
            "iterations": [point["iteration"] for point in points],
            "loss": [point.get("loss") for point in points],
            "dice": {name: [point["dice"].get(name) for point in points] for name in names},
        }
    return found


def seconds_left(state: RunState) -> float | None:
    """Return the seconds left in a running training, if every report takes equally long; None if unknown."""
    if state.status != "running" or not state.epoch:
        return None
    return round(state.seconds * (state.total_epochs - state.epoch) / state.epoch)
