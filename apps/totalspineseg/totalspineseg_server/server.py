"""Start the server: MONAI Label's application behind our own front."""

import argparse
import errno
import logging
import math
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from totalspineseg_server import places
from totalspineseg_server.corrections.ids import HISTORY_DIR
from totalspineseg_server.errors import AddressError, StorageError
from totalspineseg_server.files import storage_errors, write_text
from totalspineseg_server.front.guard import LOOPBACK, own_names
from totalspineseg_server.front.sockets import listening
from totalspineseg_server.nnunet.runtimes import RUNTIMES
from totalspineseg_server.processes import become_parent, end_within

logger = logging.getLogger(__name__)

MAIN_FILE: Final = "main.py"
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
MAX_UPLOAD_MB: Final = 4096
"""Default size limit. A whole spine at 0.5 mm in 32-bit floats is 1.2 GB; a series in many DICOM files is not larger.
"""
REQUEST_SECONDS: Final = 15
"""Grace period for requests in progress when the server stops; then their connections are closed."""
SUBMISSION_SECONDS: Final = 30.0
"""Additional grace period for submissions, which a full disk, another process or a PACS may slow down."""
REST_SECONDS: Final = 10.0
"""Grace period for the rest, even if threads hang. Together they stay below ``processes.STOP_SECONDS``."""
DEFAULT_STUDIES: Final = "studies"
"""Default folder of images, below the current one; ``make serve`` uses it as well."""
DEMO_STUDIES: Final = 3
DEMO_SEED: Final = 7
ADDRESS: Final = ("http://", "https://")
"""Beginning of the address of studies on a DICOMweb server."""


def create_app(
    *, max_upload_mb: float = MAX_UPLOAD_MB, names: Collection[str] = LOOPBACK, address: str = ""
) -> FastAPI:
    """Return the front with MONAI Label's application behind it.

    MONAI Label's settings (studies, app folder) must be set before; ``serve`` does that.

    Args:
        max_upload_mb: Largest request body, and limit for an unpacked archive in it, MiB.
        names: Names of the server, besides its IP addresses.
        address: Address on which it listens, for the log.
    """
    from totalspineseg_server.front import (
        auth,
        background_routes,
        description,
        host,
        infer,
        logs,
        ohif,
        proxy,
        samples,
        saved,
        studies,
        versions,
    )
    from totalspineseg_server.front import failures as errors
    from totalspineseg_server.front import scan_routes as scans
    from totalspineseg_server.front import start_page as start
    from totalspineseg_server.front.guard import Guard

    behind = host.host_application()
    limit = int(max_upload_mb * 2**20)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="infer")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with behind.router.lifespan_context(behind):
            host.warm_up()
            logger.info("The server is running at %s (press Ctrl-C to stop it).", address)
            yield
            host.stop_background_tasks()
            await host.finish_submissions(SUBMISSION_SECONDS)
        executor.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(lifespan=lifespan, openapi_url=description.URL, docs_url=None, redoc_url=None)
    description.install(app, host.known)
    errors.install(app)
    auth.install(app, behind)
    own = (
        infer.router(executor),
        studies.router(limit),
        saved.router(),
        background_routes.router(),
        samples.router(),
        scans.router(),
        versions.router(),
        ohif.router(),
        proxy.router(),
        logs.router(),
        start.router(),
    )
    # Our routes come before those of MONAI Label.
    shared = host.router([route for routes in own for route in routes.routes])
    for routes in (*own, shared):
        app.include_router(routes)
    app.mount("/", behind)
    origins = host.allowed_origins()
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(Guard, known=host.known, origins=origins, max_upload_bytes=limit, names=names)
    return app


def configure(studies: str, *, host: str, port: int, conf: dict[str, str], app_dir: Path) -> None:
    """Set MONAI Label's settings, in this process and in those it starts."""
    become_parent()
    # The app must share the front's classes, but MONAI Label would import a second copy of ``totalspineseg_server``.
    os.environ["MONAI_LABEL_RELOAD_APP_LIB"] = "false"
    # Background tasks import ``totalspineseg_server`` from there; dcmqi's programs are beside the interpreter.
    os.environ["PYTHONPATH"] = places.python_path()
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    from monailabel.config import settings
    from monailabel.main import Main

    from totalspineseg_server.pacs.address import set_default_filter

    set_default_filter()
    if not settings.MONAI_LABEL_SESSION_PATH and not studies.startswith(ADDRESS):
        history = Path(conf["work"]) if conf.get("work") else Path(studies) / HISTORY_DIR
        settings.MONAI_LABEL_SESSION_PATH = str(history / "sessions")
    options = Namespace(
        app=str(app_dir), studies=studies, port=port, conf=[list(item) for item in conf.items()], dryrun=False
    )
    Main().start_server_init_settings(options)


def serve(
    studies: str,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    names: Collection[str] = (),
    weights: str = "",
    device: str = "",
    runtime: str = "",
    whole_image: bool = False,
    doubtful_names: str = "",
    work: str = "",
    cache_gb: float | None = None,
    max_upload_mb: float = MAX_UPLOAD_MB,
    log_level: str = "INFO",
    demo: bool = True,
    app_dir: Path | None = None,
    request_seconds: int = REQUEST_SECONDS,
) -> None:
    """Run the server until it is stopped; a signal ends it within a minute, even if something hangs.

    Args:
        studies: Folder of images, or a DICOMweb address. ``DEFAULT_STUDIES`` is made if it is missing.
        host: Address to listen on; the default is for this machine only.
        port: Port to listen on.
        names: Names that readers use for the server besides this machine's names and addresses.
        weights: Weights to use: "" for the active model, "starter", "official", a version, or a folder.
        device: "" for a GPU if there is one, "cpu", "cuda", "cuda:1".
        runtime: One of ``RUNTIMES``; "" for the first.
        whole_image: Whether step 1 always gets the whole image.
        doubtful_names: "" or "marked" for names such as "L4 ?", "plain" for names without a mark; a request may say
            otherwise.
        work: Folder for everything the server writes: corrections, labels, fetched series. "" for the folder of images,
            which otherwise is only read; for a DICOMweb server, the user's data folder.
        cache_gb: Disk space for the fetched series of a DICOMweb server, GB; None for ``pacs.cache.MAX_GB``.
        max_upload_mb: Largest request body, MiB.
        log_level: "DEBUG", "INFO", "WARNING" or "ERROR".
        demo: Whether to fill ``DEFAULT_STUDIES`` with synthetic demo studies when it is empty, and to refuse another
            empty folder.
        app_dir: The app to serve; None for that of this installation.
        request_seconds: Grace period for requests in progress when the server stops.

    Raises:
        TotalSpineSegError: The host, the port, the device, the runtime, the weights or a folder cannot be used; nothing
            was written.
    """
    import uvicorn

    from totalspineseg_server.nnunet.discovery import files_in_use
    from totalspineseg_server.nnunet.fast_ways import INT8
    from totalspineseg_server.nnunet.runtimes import chosen_for_all, require, runtime_of
    from totalspineseg_server.registry.model_store import ModelStore

    app_dir = app_dir or places.app_dir()
    # Find everything that can be wrong before anything is written.
    with listening(host, port) as sockets:
        asked_runtime = runtime_of(runtime)
        require(device or "auto", asked_runtime)
        require_weights(weights, app_dir=app_dir)
        if asked_runtime == INT8:
            store = ModelStore(app_dir / "model", weights=weights)
            chosen_for_all(asked_runtime, device or "auto", [files_in_use(store, step) for step in (1, 2)])
        if "://" in studies:
            require_dicomweb(studies)
        else:
            studies = str(studies_folder(_folder(studies, "--studies"), demo=demo, read_only=bool(work)))
        work = str(_writable(_folder(work, "--work"))) if work else ""
        asked = {"weights": weights, "device": device, "runtime": runtime, "work": work}
        asked["whole_image"] = "true" if whole_image else ""
        asked["doubtful_names"] = doubtful_names
        asked["cache_gb"] = "" if cache_gb is None else str(cache_gb)
        conf = {name: value for name, value in asked.items() if value}
        _complete_app_folder(app_dir)
        configure(studies, host=host, port=port, conf=conf, app_dir=app_dir)
        from monailabel.config import settings
        from monailabel.utils.others.generic import init_log_config

        log_config = init_log_config(None, str(app_dir), "app.log", log_level)
        if host not in LOOPBACK and not settings.MONAI_LABEL_AUTH_ENABLE:
            logger.warning(
                "The server listens on %s without sign-in: everybody who can reach it can read the studies", host
            )
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        app = create_app(max_upload_mb=max_upload_mb, names=own_names(host, names), address=address)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=log_config,
            access_log=False,
            timeout_graceful_shutdown=request_seconds,
        )
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets)
        finally:
            end_within(REST_SECONDS)


def _complete_app_folder(folder: Path) -> None:
    """Write the file that MONAI Label loads into an app folder that has none: that of a wheel is the user's.

    Raises:
        StorageError: It cannot be written.
    """
    file = folder / MAIN_FILE
    if not file.exists():
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(file, (places.SHIPPED / MAIN_FILE).read_text(encoding="utf-8"))


def studies_folder(folder: Path, *, demo: bool, read_only: bool) -> Path:
    """Return the folder of images; make the default one and fill it with demo studies if it is empty.

    Raises:
        StorageError: Another folder does not exist or is empty (perhaps not mounted), or the folder cannot be read
            or written.
    """
    may_fill = not read_only and folder == Path(DEFAULT_STUDIES).resolve()
    if not may_fill:
        _existing(folder)
    if not read_only:
        _writable(folder)
    if demo and not any(folder.iterdir()):
        if not may_fill:
            raise StorageError(
                f"The folder of images {str(folder)!r} is empty. Mount it, copy images into it, or serve it "
                "empty with --no-demo."
            )
        from totalspineseg_server.synthesis import demo_studies

        demo_studies(folder, DEMO_STUDIES, DEMO_SEED)
    return folder


def _writable(folder: Path) -> Path:
    """Return a folder for labels and corrections; it is made if it is missing.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise StorageError(
            f"The folder {str(folder)!r} cannot be written ({error.strerror}). Choose another one for labels "
            "and corrections with --work."
        ) from error


def _existing(folder: Path) -> Path:
    """Return a folder of images that exists and can be read.

    Raises:
        StorageError: It does not exist, or cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
        if not os.access(folder, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileNotFoundError as error:
        raise StorageError(
            f"The folder of images {str(folder)!r} does not exist. Correct --studies, mount the folder, or create it "
            "first."
        ) from error
    except OSError as error:
        raise StorageError(
            f"The folder {str(folder)!r} cannot be read ({error.strerror}). Correct --studies or its permissions."
        ) from error
    return folder


def require_dicomweb(address: str) -> None:
    """Check that a text can be the address of a DICOMweb server, without connecting.

    Raises:
        AddressError: It cannot be one.
    """
    try:
        parts = urlsplit(address)
        usable = address.startswith(ADDRESS) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise AddressError(
            f"{address!r} is not the address of a DICOMweb server. Give one such as http://pacs:8042/dicom-web."
        )


def _folder(text: str, option: str) -> Path:
    """Return the folder that an option names, without links.

    Raises:
        StorageError: The text cannot be a folder, for example the home of an unknown user, or links in a circle; or it
            is empty.
    """
    if not text.strip():
        # To pathlib, an empty name means the folder in which the command was started.
        raise StorageError(f"{option} is empty. Name a folder.")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{text!r} cannot be a folder ({error}). Correct {option}.") from error


def require_weights(weights: str, *, app_dir: Path) -> None:
    """Check the weights that the owner chose; with "", the server reports later if it has no weights to use.

    Raises:
        WeightsError: They do not exist, or are not usable.
    """
    if not weights:
        return
    from totalspineseg_server.nnunet.discovery import read_trust
    from totalspineseg_server.nnunet.networks import Networks
    from totalspineseg_server.registry.model_store import ModelStore

    networks = Networks(ModelStore(app_dir / "model", weights=weights))
    for step in (1, 2):
        read_trust(networks.folder(step).path)


def _positive(text: str) -> float:
    """Read a number above 0.

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``serve``."""
    parser.add_argument(
        "--studies",
        default=DEFAULT_STUDIES,
        metavar="FOLDER",
        help="folder of images, or a DICOMweb address (default: %(default)s)",
    )
    parser.add_argument(
        "--host", default=DEFAULT_HOST, metavar="ADDRESS", help="address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, metavar="N", help="port to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--name",
        dest="names",
        action="append",
        default=[],
        metavar="NAME",
        help="name that readers use for the server besides this machine's name and address; may be repeated",
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="NAME",
        help="weights to use: starter, official, an installed version, or a folder (default: those in use)",
    )
    parser.add_argument(
        "--device",
        default="",
        metavar="cuda|cpu",
        help="device of the networks: cpu, cuda or cuda:1 (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--runtime",
        default="",
        choices=RUNTIMES,
        help="software that runs the networks: auto (default), torch, openvino or openvino-int8; see run --help",
    )
    parser.add_argument(
        "--whole-image",
        action="store_true",
        help="give step 1 the whole image, even if 'weights quantize' found that a box around the spine is enough",
    )
    parser.add_argument(
        "--doubtful-names",
        default="",
        choices=("marked", "plain"),
        help="how results name doubtful levels: 'L4 ?' or 'L4' (default: marked)",
    )
    parser.add_argument(
        "--work",
        default="",
        metavar="FOLDER",
        help="folder for everything that the server writes (default: inside the studies folder)",
    )
    parser.add_argument(
        "--cache-gb",
        type=_positive,
        metavar="N",
        help="for a DICOMweb address: disk space for fetched series (default: 50)",
    )
    parser.add_argument(
        "--max-upload-mb",
        type=_positive,
        default=MAX_UPLOAD_MB,
        metavar="N",
        help="largest request, MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="detail of the log (default: INFO)",
    )
    parser.add_argument(
        "--no-demo", dest="demo", action="store_false", help="serve an empty folder without demo studies"
    )
