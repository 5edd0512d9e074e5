"""Start a real server process on a free loopback port, for tests."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server_process import ROOT, server_process

from phantom import RAS, image_of, lumbar_codes, sagittal_image
from totalspineseg_server.io.volumes import write_volume

MAX_UPLOAD_MB = 8
"""A limit so small that a test can exceed it."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        studies: Its studies folder, where they lie in one.
        app: App folder.
        signals: Files here make its predictors fail ("no-weights") or slow ("slow" holds seconds; "slow-free" when
            they are freed), ``/info/`` ("slow-folder") or the showing of labels ("slow-label"). With "gate" a training
            is as short as can be, and the gate finds this Dice. "freed" has a line for each time they were.
        log: What it printed.
        process: The process.
    """

    url: str
    studies: Path
    app: Path
    signals: Path
    log: Path
    process: "subprocess.Popen[bytes]"


@contextmanager
def running_server(folder: Path, environment: Mapping[str, str] | None = None, **options: object) -> Iterator[Server]:
    """Run a server with the real app and predictors that read the phantom's codes, perhaps in an earlier folder."""
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    with phantom_server(folder, folder / "studies", MAX_UPLOAD_MB, environment=environment, **options) as running:
        yield running


@contextmanager
def phantom_server(
    folder: Path,
    studies: str | Path,
    max_upload_mb: int,
    *,
    work: str = "",
    environment: Mapping[str, str] | None = None,
    main: str = "serving_app",
    **more: object,
) -> Iterator[Server]:
    """Run the real app with predictors that read the phantom's codes (or another app of these tests), below an existing
    folder; ``more`` are options of ``server.serve``."""
    signals, app, log = folder / "signals", folder / "app", folder / "server.log"
    signals.mkdir(exist_ok=True)
    app.mkdir(exist_ok=True)
    if not (app / "main.py").is_symlink():
        (app / "main.py").symlink_to(ROOT / "tests" / main / "main.py")
    own = {"OMP_NUM_THREADS": "1", **(environment or {})}
    options = {"work": work, "max_upload_mb": max_upload_mb, **more}
    with server_process(studies, app, log, modules=[ROOT / "tests"], environment=own, **options) as (url, process):
        yield Server(url, folder / "studies", app, signals, log, process)


@contextmanager
def studies_server(folder: Path) -> Iterator[Server]:
    """Run a server with three phantoms to label, one beside the studies that nobody may reach, and temporary files of
    its own in ``temporary`` beside them.
    """
    (folder / "studies").mkdir(parents=True)
    for name in ("a-sagittal", "b-next"):
        write_volume(folder / "studies" / f"{name}.nii.gz", *sagittal_image())
    write_volume(folder / "studies" / "z-last.nrrd", image_of(lumbar_codes()), RAS)
    write_volume(folder / "secret.nii.gz", image_of(lumbar_codes()), RAS)
    temporary = folder / "temporary"
    temporary.mkdir()
    with running_server(folder, environment={"TMPDIR": str(temporary)}, names=["Spine.Example"]) as running:
        yield running
