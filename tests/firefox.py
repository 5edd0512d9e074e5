"""Start Firefox, and tell it what to do over Marionette, the protocol that it speaks itself."""

import base64
import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.processes import free_port, stop

WAIT_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 0.2
ENTER: Final = "\ue007"
COMMAND: Final = 0
PREFERENCES: Final = """
user_pref("marionette.port", {port});
user_pref("webgl.force-enabled", true);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("app.update.enabled", false);
"""


class Firefox:
    """One tab.

    Args:
        connection: To the port at which Firefox listens.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._stream, self._ids = connection.makefile("rwb"), itertools.count(1)
        self._read()
        self._ask("WebDriver:NewSession", {})

    def open(self, url: str) -> None:
        """Open an address and wait until it has loaded."""
        self._ask("WebDriver:Navigate", {"url": url})

    def resize(self, width: int, height: int) -> None:
        """Give the page about this size."""
        self._ask("WebDriver:SetWindowRect", {"x": 0, "y": 0, "width": width, "height": height})

    def value(self, script: str) -> Any:
        """Return the value of an expression of JavaScript."""
        return self._ask("WebDriver:ExecuteScript", {"script": f"return {script};", "args": []})["value"]

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < deadline, script
            time.sleep(LOOK_SECONDS)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as on a keyboard."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("WebDriver:PerformActions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def picture(self) -> bytes:
        """Return what the page shows, PNG."""
        return base64.b64decode(self._ask("WebDriver:TakeScreenshot", {"full": False})["value"])

    def _ask(self, command: str, parameters: dict[str, Any]) -> Any:
        text = json.dumps([COMMAND, next(self._ids), command, parameters]).encode()
        self._stream.write(b"%d:%s" % (len(text), text))
        self._stream.flush()
        _, _, error, result = self._read()
        assert error is None, error
        return result

    def _read(self) -> Any:
        """Return the next message: its length, a colon, and JSON."""
        length = b""
        while (byte := self._stream.read(1)) != b":":
            assert byte, "Firefox has ended"
            length += byte
        return json.loads(self._stream.read(int(length)))


@contextmanager
def firefox(folder: Path) -> Iterator[Firefox]:
    """Start Firefox with a profile and a screen of its own: without a screen it does not draw in three dimensions.

    Args:
        folder: Where the profile and the log are written.
    """
    profile, port = folder / "profile", free_port()
    profile.mkdir()
    (profile / "user.js").write_text(PREFERENCES.format(port=port), encoding="utf-8")
    words = [found("firefox-esr", "firefox"), "--no-remote", "--marionette", "--profile", str(profile), "about:blank"]
    with (folder / "firefox.log").open("wb") as output, _screen() as screen:
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "DISPLAY": screen}
        )
        try:
            with _connected(port) as connection:
                yield Firefox(connection)
        finally:
            stop(process)


def found(*programs: str) -> str:
    """Return the path of the first of these programs that is installed; empty for none."""
    return next((path for name in programs if (path := shutil.which(name))), "")


@contextmanager
def _screen() -> Iterator[str]:
    """Start a screen in memory, and yield its name."""
    ready, number = os.pipe()
    size = ["-screen", "0", "1400x1000x24"]
    process = subprocess.Popen(
        [found("Xvfb"), "-displayfd", str(number), *size], stderr=subprocess.DEVNULL, pass_fds=(number,)
    )
    os.close(number)
    try:
        with os.fdopen(ready, encoding="ascii") as stream:
            yield f":{stream.readline().strip()}"
    finally:
        stop(process)


def _connected(port: int) -> socket.socket:
    """Return a connection to Firefox once it listens."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        except OSError:
            assert time.monotonic() < deadline, "Firefox does not start"
            time.sleep(LOOK_SECONDS)
