"""Run OHIF with one command: a PACS with synthetic MR series, the server, and the address of the viewer.

Ctrl-C ends all of it. With --dicomweb it uses your PACS, and writes nothing to it except what annotators export.
"""

import argparse
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from orthanc import Orthanc, fill, running_orthanc  # noqa: E402

from totalspineseg_server.cli import EXIT_USAGE  # noqa: E402
from totalspineseg_server.errors import TotalSpineSegError  # noqa: E402
from totalspineseg_server.front.sockets import listening  # noqa: E402
from totalspineseg_server.places import app_dir  # noqa: E402
from totalspineseg_server.processes import free_port, unwind_on_signals  # noqa: E402
from totalspineseg_server.server import DEFAULT_HOST, DEFAULT_PORT, require_dicomweb, require_weights, serve  # noqa: E402

DEMO_STUDIES, DEMO_SEED = 3, 7
ASK_SECONDS = 0.5


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("studies-ohif"), help="storage of the PACS and corrections")
    parser.add_argument("--dicomweb", default="", help="address of a PACS; without it Orthanc is started")
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--name", dest="names", action="append", default=[], help="as for 'totalspineseg serve'")
    parser.add_argument("--weights", default="", help="as for 'totalspineseg serve'")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    pacs: AbstractContextManager[Orthanc | None] = nullcontext()
    if not arguments.dicomweb:
        pacs = running_orthanc(folder / "orthanc", free_port())
    try:
        # Check this before a PACS is started and filled; ``serve`` checks it again.
        if arguments.dicomweb:
            require_dicomweb(arguments.dicomweb)
        require_weights(arguments.weights, app_dir=app_dir())
        with listening(arguments.host, arguments.port):
            pass
        with pacs as orthanc:
            if orthanc is not None:
                prepare(orthanc)
            address = arguments.dicomweb or (orthanc.dicomweb if orthanc else "")
            threading.Thread(target=announce, args=(arguments.host, arguments.port), daemon=True).start()
            work = "" if arguments.dicomweb else str(folder / "work")
            where = {"host": arguments.host, "port": arguments.port, "names": arguments.names}
            serve(address, **where, weights=arguments.weights, work=work)
    except TotalSpineSegError as error:
        print(f"serve-ohif: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def prepare(orthanc: Orthanc) -> None:
    """Store demo studies in a PACS that has none."""
    from demo_series import demo_pacs

    if requests.get(f"{orthanc.rest}/studies", timeout=60).json():
        return
    print(f"The PACS is empty. Making and storing {DEMO_STUDIES} synthetic studies.", flush=True)
    with tempfile.TemporaryDirectory(prefix="totalspineseg-demo-") as made:
        demo_pacs(Path(made), DEMO_STUDIES, DEMO_SEED)
        fill(orthanc, Path(made))


def announce(host: str, port: int) -> None:
    """Print the viewer's address when the server answers."""
    while True:
        try:
            requests.get(f"http://{host}:{port}/info/", timeout=60).raise_for_status()
        except requests.RequestException:
            time.sleep(ASK_SECONDS)
        else:
            print(f"\nOHIF: http://{host}:{port}/ohif/   (Ctrl-C ends the server and its PACS)\n", flush=True)
            return


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
