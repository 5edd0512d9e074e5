"""Test of the lab's page in a real browser, on a server with sign-in."""

import http.server
import json
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest
from playwright.sync_api import Page

from phantom import RAS, image_of, lumbar_codes
from serving import running_server
from test_lab_browser import SIZE, record_version
from test_server_auth import KEY, published, signed
from tiny_models import write_models
from totalspineseg_server.io.volumes import write_volume
from viewer import window

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Realm(http.server.BaseHTTPRequestHandler):
    """A realm on loopback in which everybody has the same password."""

    ROLES: ClassVar = {"rita": ["monailabel-user"], "ada": ["monailabel-user", "monailabel-admin"]}

    def do_GET(self) -> None:
        address = f"http://{self.headers['host']}"
        self.answer({"public_key": published(KEY), "token_endpoint": f"{address}/token"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        arguments = {name: values[0] for name, values in parse_qs(body).items()}
        if arguments.get("password") != "spine":
            self.answer({"error": "invalid_grant"}, 401)
            return
        user, issuer = arguments["username"], f"http://{self.headers['host']}"
        token = signed(preferred_username=user, realm_access={"roles": self.ROLES[user]}, iss=issuer)
        self.answer({"access_token": token, "token_type": "bearer"})

    def answer(self, content: object, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def sign_in(page: Page, user: str, password: str) -> None:
    page.locator("input[name=user]").fill(user)
    page.locator("input[name=password]").fill(password)
    page.locator("#dialog-yes").click()


def test_with_sign_in_a_reader_may_look_and_not_change_the_version(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    write_volume(tmp_path / "studies" / "a-whole.nii.gz", image_of(lumbar_codes()), RAS)
    models = tmp_path / "app" / "model"
    write_models(models / "starter")
    write_models(models / "versions" / "trained-good")
    record_version(
        models, "trained-good", {"active": "starter", "candidate": "trained-good", "publish": True, "reason": "served"}
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Realm) as realm:
        Thread(target=realm.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{realm.server_port}"
        environment = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": address}
        with running_server(tmp_path, environment) as locked, window(SIZE) as page:
            page.set_default_timeout(120_000)
            page.goto(locked.url)
            page.locator("input[name=user]").wait_for()
            assert page.locator("tr[data-scan]").count() == 0
            sign_in(page, "rita", "wrong")
            page.get_by_text("was not accepted").wait_for()
            sign_in(page, "rita", "spine")
            page.locator("tr[data-scan='a-whole']").wait_for()
            page.goto(f"{locked.url}/#/learning")
            page.get_by_label("Activate trained-good").click()
            page.locator("#dialog-yes").click()
            page.locator("#message.wrong").wait_for()
            assert page.get_by_text("In use: step 1 starter").is_visible()
            page.locator("#sign-out").click()
            sign_in(page, "ada", "spine")
            page.get_by_label("Activate trained-good").click()
            page.locator("#dialog-yes").click()
            page.get_by_text("In use now: step 1 trained-good").wait_for()
        realm.shutdown()
