"""Tests that with sign-in a valid token opens the server, and nothing else does."""

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import psutil
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import Depends, FastAPI
from monailabel.config import settings
from monailabel.endpoints.user import auth as host_auth
from starlette.testclient import TestClient

from totalspineseg_server.front import auth

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


EC_KEY = ec.generate_private_key(ec.SECP256R1())


def published(key: Any) -> str:
    """Return a key as Keycloak shows it."""
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


class Realm:
    """What a realm on loopback answers, and how often it was asked."""

    def __init__(self) -> None:
        self.answer: dict[str, str] = {"public_key": published(KEY)}
        self.status = 200
        self.asked = 0


@pytest.fixture(autouse=True)
def realm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Realm]:
    """A realm on loopback that publishes the key, as Keycloak does."""
    state = Realm()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            self.send_response(state.status)
            self.end_headers()
            self.wfile.write(json.dumps(state.answer).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_REALM_URI", f"http://127.0.0.1:{served.server_port}")
        yield state
        served.shutdown()
        thread.join()


class Desk:
    """The check of tokens with its own clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._key = auth.RealmKey(auth.fetch_key, lambda: self.seconds)

    def user(self, token: str) -> str:
        return str(auth.user_of_token(token, self._key).username)


def claims(**changes: Any) -> dict[str, Any]:
    fields = {
        "preferred_username": "ada",
        "email": "ada@example.org",
        "realm_access": {"roles": ["monailabel-annotator"]},
        "exp": time.time() + 60,
        "iss": settings.MONAI_LABEL_AUTH_REALM_URI,
        "azp": "monailabel-app",
        "aud": "account",
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def signed(key: Any = KEY, algorithm: str = "RS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def with_public_key_as_secret() -> str:
    """This is the classic forgery: HMAC with the public key, which everybody can fetch."""
    header, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims())
    )
    import hmac

    pem = f"-----BEGIN PUBLIC KEY-----\n{published(KEY)}\n-----END PUBLIC KEY-----".encode()
    mac = base64.urlsafe_b64encode(hmac.digest(pem, header + b"." + body, "sha256")).rstrip(b"=")
    return b".".join((header, body, mac)).decode()


def user_of(token: str) -> host_auth.User:
    return auth.user_of_token(token, auth.RealmKey(auth.fetch_key))


def guarded(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An app with our check. MONAI Label decides at import how a token arrives; here it is a parameter."""
    monkeypatch.setattr(host_auth, "from_token", host_auth.from_token)
    app = FastAPI()
    auth.install(app)

    @app.get("/annotators")
    async def annotators(user: host_auth.User = Depends(host_auth.RBAC("monailabel-annotator"))) -> str:  # noqa: B008
        return str(user.username)

    @app.get("/admins")
    async def admins(user: host_auth.User = Depends(host_auth.RBAC("monailabel-admin"))) -> str:  # noqa: B008
        return str(user.username)

    @app.get("/open")
    async def anybody() -> str:
        return "open"

    return app


def test_a_valid_token_is_its_user() -> None:
    """Every valid token was rejected, because the decoder had no algorithm."""
    user = user_of(signed())
    assert (user.username, user.email, user.roles) == ("ada", "ada@example.org", ["monailabel-annotator"])
    assert user_of(signed(algorithm="PS256")).username == "ada"
    assert user_of(signed(realm_access=None)).roles == []


def test_issuer_and_audience_can_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for any other program of the realm opened the server."""
    realm = settings.MONAI_LABEL_AUTH_REALM_URI
    assert user_of(signed(azp=None, aud="monailabel-app")).username == "ada"
    assert user_of(signed(azp=None, aud=["account", "monailabel-app"], iss=f"{realm}/")).username == "ada"
    monkeypatch.setenv(auth.ISSUER_VARIABLE, "https://id.example/realms/spine")
    monkeypatch.setenv(auth.AUDIENCE_VARIABLE, "spine-server")
    good = {"iss": "https://id.example/realms/spine", "aud": "spine-server"}
    assert user_of(signed(**good)).username == "ada"
    for wrong in ({**good, "iss": realm}, {**good, "aud": "monailabel-app"}):
        with pytest.raises(jwt.InvalidTokenError):
            user_of(signed(**wrong))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda: signed(OTHER), id="another key"),
        # Answered as the server's own fault.
        pytest.param(lambda: signed(EC_KEY, "ES256"), id="another kind of key"),
        pytest.param(lambda: signed(exp=time.time() - 60), id="expired"),
        pytest.param(lambda: signed(exp=None), id="no expiry"),
        pytest.param(lambda: signed(preferred_username=None), id="no user"),
        pytest.param(lambda: signed(iss=None), id="no issuer"),
        pytest.param(lambda: signed(iss="https://id.example/realms/other"), id="another issuer"),
        pytest.param(lambda: signed(azp="another-app"), id="issued to another program"),
        pytest.param(lambda: signed(azp=None, aud=["account", "another-app"]), id="for another program"),
        pytest.param(lambda: signed(azp=None, aud=None), id="for nobody"),
        pytest.param(lambda: jwt.encode(claims(), None, algorithm="none"), id="unsigned"),
        pytest.param(with_public_key_as_secret, id="public key as secret"),
        pytest.param(lambda: signed()[:-4] + "AAAA", id="tampered"),
        pytest.param(lambda: "", id="empty"),
        pytest.param(lambda: "a.b.c", id="garbage"),
    ],
)
def test_any_other_token_is_rejected(token: Any) -> None:
    with pytest.raises(jwt.InvalidTokenError):
        user_of(token())


@pytest.mark.parametrize(("new", "algorithm"), [(OTHER, "RS256"), (EC_KEY, "ES256")], ids=["same kind", "other kind"])
def test_a_realm_may_change_its_key(realm: Realm, new: Any, algorithm: str) -> None:
    """After the identity provider changed its key, nobody could sign in until the server was restarted."""
    desk = Desk()
    assert desk.user(signed()) == "ada"
    realm.answer = {"public_key": published(new)}
    assert desk.user(signed()) == "ada", "nothing says that the key is not valid any more"
    assert realm.asked == 1
    desk.seconds += auth.RENEW_SECONDS
    assert desk.user(signed(new, algorithm)) == "ada"
    assert desk.user(signed(new, algorithm)) == "ada"
    with pytest.raises(jwt.InvalidTokenError):
        desk.user(signed())
    assert realm.asked == 2


def test_tokens_that_do_not_fit_cannot_keep_a_realm_busy(realm: Realm) -> None:
    desk = Desk()
    for _ in range(5):
        for token in (signed(OTHER), signed(exp=time.time() - 60), "a.b.c"):
            with pytest.raises(jwt.InvalidTokenError):
                desk.user(token)
        desk.seconds += auth.RENEW_SECONDS / 4
    assert realm.asked == 2


@pytest.mark.parametrize(("status", "answer"), [(503, {}), (200, {}), (200, {"public_key": 7})])
def test_a_realm_that_is_away_locks_nobody_out(realm: Realm, status: int, answer: dict[str, Any]) -> None:
    desk, good = Desk(), realm.answer
    realm.status, realm.answer = status, answer
    for _ in range(2):
        with pytest.raises(requests.RequestException):
            desk.user(signed())
    assert realm.asked == 1
    desk.seconds += auth.RETRY_SECONDS
    realm.status, realm.answer = 200, good
    assert desk.user(signed()) == "ada"
    realm.status, realm.answer = status, answer
    desk.seconds += auth.RENEW_SECONDS
    with pytest.raises(jwt.InvalidTokenError):
        desk.user(signed(OTHER))
    assert desk.user(signed()) == "ada"
    assert realm.asked == 3


def test_a_realm_that_hangs_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole server waited while the key was fetched."""
    asked, go_on = threading.Event(), threading.Event()

    def fetch() -> str:
        asked.set()
        return str(go_on.wait(20))

    monkeypatch.setattr(auth, "fetch_key", fetch)
    with TestClient(guarded(monkeypatch), raise_server_exceptions=False) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.get, "/annotators", params={"token": signed()})
        try:
            assert asked.wait(20)
            assert client.get("/open").json() == "open"
            assert not waiting.done()
        finally:
            go_on.set()


@pytest.mark.slow
def test_a_realm_that_hangs_while_it_is_asked_again_holds_up_no_valid_token() -> None:
    """A token with another key kept everybody else waiting for the realm."""
    asked, go_on = threading.Event(), threading.Event()

    def fetch() -> str:
        if again:
            asked.set()
            go_on.wait(20)
        return "key"

    again: list[bool] = []
    key = auth.RealmKey(fetch, lambda: auth.RENEW_SECONDS * len(again))
    assert key.known() == "key"
    again.append(True)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(key.instead_of, "key")
        assert asked.wait(20)
        try:
            assert pool.submit(key.known).result(5) == "key"
            assert pool.submit(key.instead_of, "key").result(5) == "key", "nor many wrong tokens"
            assert not asking.done()
        finally:
            go_on.set()


def test_monai_label_uses_our_check_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(guarded(monkeypatch)) as client:
        assert client.get("/annotators", params={"token": signed()}).json() == "ada"
        assert client.get("/admins", params={"token": signed()}).status_code == 403
        assert client.get("/annotators", params={"token": signed(OTHER)}).status_code == 401


@pytest.mark.slow
def test_a_server_with_authentication(tmp_path: Path) -> None:
    from serving import running_server

    environment = {
        "MONAI_LABEL_AUTH_ENABLE": "true",
        "MONAI_LABEL_AUTH_REALM_URI": settings.MONAI_LABEL_AUTH_REALM_URI,
    }
    with running_server(tmp_path, environment) as server:
        bearer = {"Authorization": f"Bearer {signed(realm_access={'roles': ['monailabel-user']})}"}
        assert requests.get(f"{server.url}/auth/", timeout=10).json()["enabled"] is True
        assert requests.get(f"{server.url}/info/", headers=bearer, timeout=10).status_code == 200
        assert requests.get(f"{server.url}/info/", timeout=10).status_code == 401
        wrong = {"Authorization": f"Bearer {signed(OTHER)}"}
        assert requests.get(f"{server.url}/info/", headers=wrong, timeout=10).status_code == 401
        for method, path in (("PUT", "/datastore/label?image=x"), ("PUT", "/datastore/image"), ("PUT", "/session/")):
            assert requests.request(method, server.url + path, timeout=10).status_code == 401
        assert requests.post(f"{server.url}/infer/totalspineseg?image=x", timeout=10).status_code == 401
        files = {"label": ("l.nii.gz", b"x")}
        answer = requests.put(f"{server.url}/datastore/label?image=x", headers=bearer, files=files, timeout=10)
        assert answer.status_code == 403
        # A user may look at results, but write none among the labels.
        saving = {"params": json.dumps({"save_label": True, "label_tag": "draft"})}
        url = f"{server.url}/infer/totalspineseg?image=x"
        assert requests.post(url, headers=bearer, data=saving, timeout=10).status_code == 403
        assert requests.post(url, headers=bearer, timeout=10).status_code == 404
        (server.signals / "slow").write_text("600", encoding="utf-8")
        admin = {"Authorization": f"Bearer {signed(realm_access={'roles': ['monailabel-admin']})}"}
        start = requests.post(f"{server.url}/batch/infer/totalspineseg", headers=admin, json={}, timeout=10)
        assert start.status_code == 200
        deadline = time.monotonic() + 60
        while not (started := psutil.Process(server.process.pid).children()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert started
    # MONAI Label left its background processes behind.
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
