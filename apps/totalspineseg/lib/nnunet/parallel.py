"""One fine-tuning shared by several processes of this machine, a GPU each; the caller's process only watches them.

Cases and settings reach them as plain files in the run's folder. The first process tells its progress through a pipe
and is answered through its standard input, whose end also tells every process that the watching one is gone.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np

from lib import errors
from lib.errors import StorageError, TotalSpineSegError, TrainingError
from lib.nnunet.cases import Origin, TrainingCase
from lib.nnunet.finetune_run import Finetuned, Progress, Run, Stopped, finetuning_key
from lib.nnunet.finetune_settings import FinetuneSettings, Strength
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.runtimes import resolve_devices
from lib.nnunet.team import join
from lib.nnunet.training_state import load_state
from lib.registry.files import storage_errors

APP_DIR: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = "from lib.nnunet.parallel import work; work()"
"""What a process runs. Not multiprocessing's spawn: it would run the caller's main program, the host's, again."""
SHARED_DIR: Final = "parallel"
JOB_FILE, STORE_FILE = "job.json", "store"
ARRAYS: Final = ("image", "codes", "shares", "found")
"""Of a case, those it has."""
OUTPUT_FILE: Final = "processes.txt"
"""What the processes print, for the rare case that one ends without a word."""
POLL_S: Final = 0.5
GRACE_S: Final = 2.0
"""After a failure the others have so long to say why, seconds: the first to speak may only miss a dead one."""
LONGEST: Final = 800
"""Characters of an error that are passed on: a line of a pipe below 4096 bytes is written whole."""
STOP, GO = b"stop", b"go"

Message = dict[str, Any]
Messages = SimpleQueue[Message | None]
"""None once all processes have ended."""
Processes = list[subprocess.Popen[bytes]]


def fine_tune_together(
    folder: ModelFolder,
    cases: Sequence[TrainingCase],
    work: Path,
    settings: FinetuneSettings,
    *,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Finetuned:
    """``finetune.fine_tune`` on ``settings.gpus`` devices: the same arguments, state, logs and errors.

    Raises:
        TrainingError: Also when there are too few GPUs, or one of the processes ended; the next call goes on.
    """
    try:
        resolve_devices(settings.device, settings.gpus)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    shared = work / SHARED_DIR
    shutil.rmtree(shared, ignore_errors=True)
    try:
        with storage_errors(work):
            shared.mkdir(parents=True)
            _hand_over(shared, folder, cases, settings)
        with _started(shared, settings.gpus) as (processes, messages):
            first = _watch(processes, messages, work, on_progress, should_stop)
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    state = load_state(work, finetuning_key(folder, cases, settings))
    if state is None:
        raise StorageError(f"the trained weights are required in {str(work)!r}, got none; check the disk")
    weights = {name: value.clone() for name, value in state.weights.items()}
    return Finetuned(weights, float("nan") if state.best is None else state.best, state.batch_size, first)


def _hand_over(shared: Path, folder: ModelFolder, cases: Sequence[TrainingCase], settings: FinetuneSettings) -> None:
    for number, case in enumerate(cases):
        for name in ARRAYS:
            if (array := getattr(case, name)) is not None:
                np.save(shared / f"{number}-{name}.npy", array, allow_pickle=False)
    known = [{"name": c.name, "origin": c.origin.value, "unreviewed": sorted(c.unreviewed)} for c in cases]
    model = {"path": str(folder.path.resolve()), "step": folder.step, "name": folder.name}
    job = {"model": model, "settings": asdict(settings), "cases": known}
    (shared / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")


@contextmanager
def _started(shared: Path, count: int) -> Iterator[tuple[Processes, Messages]]:
    """The processes and what they say; whatever happens, none is left behind."""
    messages: Messages = SimpleQueue()
    processes: Processes = []
    reading, writing = os.pipe()
    threading.Thread(target=_collect, args=(reading, messages), daemon=True).start()
    try:
        with os.fdopen(writing, "wb"), (shared.parent / OUTPUT_FILE).open("wb") as output:
            for rank in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(shared.resolve()), str(rank), str(writing)],
                    cwd=APP_DIR,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(count),
                    pass_fds=(writing,),
                    bufsize=0,
                    # Ctrl-C is for the watching process alone.
                    start_new_session=True,
                )
                processes.append(process)
        yield processes, messages
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _environment(count: int) -> dict[str, str]:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    ours = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(APP_DIR), os.environ.get("PYTHONPATH", "")]))
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    return {**threads, **os.environ, **ours}


def _collect(reading: int, messages: Messages) -> None:
    with os.fdopen(reading, encoding="utf-8") as stream:
        for line in stream:
            messages.put(json.loads(line))
    messages.put(None)


def _watch(
    processes: Processes,
    messages: Messages,
    work: Path,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> int:
    """Pass on what the first process tells until it has ended; returns the iteration it took over at."""
    while True:
        try:
            message = messages.get(timeout=POLL_S)
        except Empty:
            if any(process.poll() for process in processes):
                raise _failure(processes, messages, work, []) from None
            continue
        if message is None or "error" in message:
            raise _failure(processes, messages, work, [message] if message else [])
        if "ended" in message:
            return int(message["ended"])
        if "stopped" in message:
            raise Stopped(message["stopped"])
        on_progress(Progress(**message["progress"]))
        answer = STOP if should_stop() else GO
        stream = processes[0].stdin
        with suppress(BrokenPipeError):
            if stream is not None:
                stream.write(answer + b"\n")


def _failure(processes: Processes, messages: Messages, work: Path, first: Sequence[Message]) -> TotalSpineSegError:
    """The error that says best why the processes failed."""
    said = []
    for message in chain(first, _late_errors(messages)):
        kind = getattr(errors, message["error"], None)
        if isinstance(kind, type) and issubclass(kind, TotalSpineSegError):
            return kind(message["message"])
        said.append(message)
    codes = [process.poll() or 0 for process in processes]
    if min(codes) < 0:
        reason = f"was killed by signal {-min(codes)} (often for lack of main memory)"
    elif said:
        reason = f"failed ({said[0]['error']}: {said[0]['message']}); its output is in {work / OUTPUT_FILE}"
    else:
        reason = f"ended with exit code {max(codes)}; its output is in {work / OUTPUT_FILE}"
    return TrainingError(
        f"all {len(processes)} processes of a training are required, got one that {reason}; start it again, and it "
        "goes on from its last stored state"
    )


def _late_errors(messages: Messages) -> Iterator[Message]:
    """What the processes say of errors in the next moments."""
    deadline = time.monotonic() + GRACE_S
    while (rest := deadline - time.monotonic()) > 0:
        with suppress(Empty):
            message = messages.get(timeout=rest)
            if message is None:
                return
            if "error" in message:
                yield message


def work() -> None:
    """One of the processes: trains until the end, a stop, an error, or the end of the process that watches it.

    Its arguments are the shared folder, its number from 0, and the descriptor of the pipe it speaks into.
    """
    shared, rank, pipe = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    answers: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(answers,), daemon=True).start()

    def tell(message: Message) -> None:
        os.write(pipe, json.dumps(message, ensure_ascii=False).encode() + b"\n")

    def tell_progress(progress: Progress) -> None:
        tell({"progress": asdict(progress)})

    code = 0
    try:
        run = _joined(shared, rank)
        if rank == 0:
            # All have mapped them by now: a kill leaves nothing large behind.
            for file in shared.glob("*.npy"):
                file.unlink()
            tell({"ended": run.go(tell_progress, lambda: answers.get() == STOP).resumed_at})
        else:
            run.go(lambda _: None, lambda: False)
    except Stopped as stop:
        if rank == 0:
            tell({"stopped": str(stop)})
    except Exception as error:
        traceback.print_exc()
        tell({"error": type(error).__name__, "message": str(error)[:LONGEST]})
        code = 1
    sys.stdout.flush()
    # At once: a connection that is taken down while another process has failed may wait for it.
    os._exit(code)


def _listen(answers: SimpleQueue[bytes]) -> None:
    rest = b""
    while received := os.read(0, 1024):
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            answers.put(line)
    os._exit(1)


def _joined(shared: Path, rank: int) -> Run:
    job = json.loads((shared / JOB_FILE).read_text(encoding="utf-8"))
    given = job["settings"]
    settings = FinetuneSettings(**given | {"strength": Strength(**given["strength"])})
    folder = ModelFolder.open(job["model"]["path"], step=job["model"]["step"], name=job["model"]["name"])
    cases = [_case(shared, number, known) for number, known in enumerate(job["cases"])]
    device = resolve_devices(settings.device, settings.gpus)[rank]
    return Run(folder, cases, shared.parent, settings, join(shared / STORE_FILE, rank, settings.gpus, device))


def _case(shared: Path, number: int, known: Message) -> TrainingCase:
    """A case whose arrays stay in the files: the processes share them in the machine's memory."""
    files = {name: shared / f"{number}-{name}.npy" for name in ARRAYS}
    arrays = {n: np.load(f, mmap_mode="r", allow_pickle=False) for n, f in files.items() if f.exists()}
    return TrainingCase(known["name"], Origin(known["origin"]), unreviewed=frozenset(known["unreviewed"]), **arrays)
