"""Count how far one request, one submission and one training walk through the rooms of the app.

A request and a submission are made once before they are counted, so that what is loaded at first use does not count.
The application of the server runs in this process, with the starter weights. The training is one of the tests, with
tiny networks.
"""

import argparse
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("apps/totalspineseg", "tests", "tools")]
os.environ.setdefault("OMP_NUM_THREADS", "2")

from rooms import APP, LIB, layers, room_of  # noqa: E402

from totalspineseg_server.processes import unwind_on_signals  # noqa: E402

Function = tuple[str, str, int]
"""File, name and first line."""


@dataclass
class Walk:
    """Files, rooms and functions that one request enters.

    Attributes:
        files: Files in which something was called.
        rooms: Their rooms.
        functions: Functions that were called.
        climbs: Calls from a room to one of a higher layer: caller and called; many calls of one kind are one.
    """

    files: set[str] = field(default_factory=set)
    rooms: set[str] = field(default_factory=set)
    functions: set[Function] = field(default_factory=set)
    climbs: set[tuple[Function, Function]] = field(default_factory=set)


class Recorder:
    """Records the calls of all threads during a walk."""

    def __init__(self) -> None:
        self._layer = layers()
        self._room = {str(path): room_of(path) for path in LIB.rglob("*.py")}
        self._walk: Walk | None = None
        threading.setprofile(self._hear)
        sys.setprofile(self._hear)

    @contextmanager
    def recorded(self) -> Iterator[Walk]:
        """Record what is called in this block."""
        self._walk = Walk()
        try:
            yield self._walk
        finally:
            self._walk = None

    def _hear(self, frame: FrameType, event: str, _: object) -> None:
        walk = self._walk
        if walk is None or event != "call" or frame.f_code.co_name.startswith("<"):
            return
        called = self._function(frame)
        room = self._room.get(called[0])
        if room is None:
            return
        walk.files.add(called[0])
        walk.rooms.add(room)
        walk.functions.add(called)
        if (caller := self._caller(frame)) is not None:
            other = self._function(caller)
            if self._layer[self._room[other[0]]] < self._layer[room]:
                walk.climbs.add((other, called))

    def _caller(self, frame: FrameType) -> FrameType | None:
        """Return the next frame of our code that called this one; None if a library did."""
        waiting = frame.f_back
        while waiting is not None and self._function(waiting)[0] not in self._room:
            waiting = waiting.f_back
        return waiting

    def _function(self, frame: FrameType) -> Function:
        code = frame.f_code
        return code.co_filename, code.co_qualname, code.co_firstlineno


def walks(folder: Path) -> dict[str, Walk]:
    """Return the walks of a request, a submission and a training.

    Args:
        folder: An empty folder for studies and models.
    """
    recorder = Recorder()
    return {**_served(folder / "server", recorder), "training": _trained(folder / "training", recorder)}


def _served(folder: Path, recorder: Recorder) -> dict[str, Walk]:
    """Ask the whole application, as 3D Slicer does: for a result, and with a label that corrects it."""
    import json

    from local_server import own_app
    from starlette.testclient import TestClient

    from totalspineseg_server.anatomy import WIRE_LABELS
    from totalspineseg_server.io.volumes import write_volume
    from totalspineseg_server.segments import to_wire
    from totalspineseg_server.server import configure, create_app
    from training_site import tiny_scan

    studies, app_dir = folder / "studies", folder / "app"
    studies.mkdir(parents=True)
    own_app(app_dir)
    image, codes = tiny_scan(1)
    write_volume(studies / "sub-1.nii.gz", image.data, image.grid)
    label = folder / "label.nii.gz"
    write_volume(label, to_wire(codes.data), codes.grid)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    configure(str(studies), host="127.0.0.1", port=8000, conf={"device": "cpu"}, app_dir=app_dir)
    found: dict[str, Walk] = {}
    with TestClient(create_app(), base_url="http://127.0.0.1") as client:

        def infer() -> str:
            answer = client.post("/infer/totalspineseg", params={"image": "sub-1", "output": "json"})
            answer.raise_for_status()
            return str(answer.json()["prediction"])

        def submit(prediction: str) -> None:
            params = {"label_info": names, "prediction": prediction}
            files = {"label": (label.name, label.read_bytes())}
            answer = client.put(
                "/datastore/label", params={"image": "sub-1"}, data={"params": json.dumps(params)}, files=files
            )
            answer.raise_for_status()

        submit(infer())
        with recorder.recorded() as found["request"]:
            prediction = infer()
        with recorder.recorded() as found["submission"]:
            submit(prediction)
    return found


def _trained(folder: Path, recorder: Recorder) -> Walk:
    """Train once in this process; MONAI Label uses a process of its own."""
    from totalspineseg_server.training.retraining import retrain
    from training_site import make_site, tiny_reference, tiny_replay, tiny_settings

    site = make_site(folder)
    with recorder.recorded() as walk:
        retrain(site, tiny_settings(), replay=tiny_replay(), reference=tiny_reference)
    return walk


def _table(found: dict[str, Walk]) -> str:
    rows = [f"| {'walk':<11} | files | rooms | functions | climbs |", "|---|---|---|---|---|"]
    for name, walk in found.items():
        counts = (len(walk.files), len(walk.rooms), len(walk.functions), len(walk.climbs))
        rows.append(f"| {name:<11} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(rows)


def _details(walk: Walk) -> str:
    def place(function: Function) -> str:
        return f"{Path(function[0]).relative_to(APP)}:{function[2]} {function[1]}"

    files = sorted(str(Path(file).relative_to(APP)) for file in walk.files)
    climbs = sorted(f"{place(caller)} -> {place(called)}" for caller, called in walk.climbs)
    return "\n".join((*files, "climbs:", *climbs))


def _quietly(work: Callable[[], Any]) -> Any:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--details", choices=("request", "submission", "training"), help="list the files and climbs of this walk"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="walks-") as name:
        found = _quietly(lambda: walks(Path(name)))
    print(_table(found))
    if arguments.details:
        print(_details(found[arguments.details]))


if __name__ == "__main__":
    unwind_on_signals()
    main()
