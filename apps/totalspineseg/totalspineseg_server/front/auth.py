"""Check tokens of users; MONAI Label's own check rejects every token because it names no algorithm.

Tokens are checked off the event loop, because the check may have to ask the realm for its key and may hang.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import jwt
import requests
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints.user import auth as host

from totalspineseg_server.front import front_messages
from totalspineseg_server.front.host import in_a_thread

logger = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Accepted algorithms, all asymmetric: with a symmetric one anybody could sign with the public key."""
REQUIRED_CLAIMS: Final = ("exp", "iss")
ISSUER_VARIABLE: Final = "MONAI_LABEL_AUTH_ISSUER"
"""Environment variable with the issuer that tokens must name; by default the realm's address."""
AUDIENCE_VARIABLE: Final = "MONAI_LABEL_AUTH_AUDIENCE"
"""Environment variable with the audience that tokens must be for; by default MONAI Label's client id."""
RENEW_SECONDS: Final = 30.0
"""Shortest time between two requests for the realm's key: anybody can send tokens that do not fit the key."""
RETRY_SECONDS: Final = 5.0
"""Shortest time between two requests while no key is known."""
ASKING_SECONDS: Final = 1.0
"""Longest time that a token that does not fit waits while another request asks the realm, which usually answers at
once."""


def install(*apps: FastAPI) -> None:
    """Let MONAI Label, and applications that ask it for users, check tokens with ``user_of_token``.

    Without sign-in there are no tokens: every user is MONAI Label's default one.
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return
    host.from_token = partial(user_of_token, key=RealmKey(fetch_key))
    for app in apps:
        app.dependency_overrides[host.get_current_user] = in_a_thread(host.get_current_user)


class RealmKey:
    """The realm's public key, fetched again when a token does not fit it, because realms change their keys.

    Args:
        fetch: Asks the realm. Raises ``requests.RequestException`` if it does not answer or sends an unusable answer.
        clock: Seconds; never runs backward.
    """

    def __init__(self, fetch: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._known = ""
        self._asked: float | None = None
        self._failure: requests.RequestException | None = None

    def known(self) -> str:
        """Return the key that was fetched last, in PEM form.

        Raises:
            requests.RequestException: No key is known, and the realm does not send one.
        """
        if self._known:
            # Do not wait for the lock: another request may be asking a realm that hangs.
            return self._known
        with self._lock:
            if not self._known:
                if not self._asked_within(RETRY_SECONDS):
                    self._ask()
                if self._failure is not None:
                    raise self._failure
            return self._known

    def instead_of(self, old: str) -> str:
        """Ask the realm for a newer key, unless it was asked a moment ago; return ``old`` if it does not answer."""
        # Another request may be asking a realm that hangs: invalid tokens must not fill the server with waiting
        # requests.
        if not self._lock.acquire(timeout=ASKING_SECONDS):
            return self._known
        try:
            if self._known == old and not self._asked_within(RENEW_SECONDS):
                self._ask()
                if self._failure is not None:
                    logger.warning("The realm's key could not be renewed: %s", type(self._failure).__name__)
        finally:
            self._lock.release()
        return self._known

    def _asked_within(self, seconds: float) -> bool:
        return self._asked is not None and self._clock() - self._asked < seconds

    def _ask(self) -> None:
        self._asked, self._failure = self._clock(), None
        try:
            self._known = self._fetch()
        except requests.RequestException as error:
            self._failure = error


def fetch_key() -> str:
    """Return the public key that the configured realm publishes now, in PEM form.

    Raises:
        requests.RequestException: The realm does not answer, or answers without a key.
    """
    answer = requests.get(settings.MONAI_LABEL_AUTH_REALM_URI, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
    answer.raise_for_status()
    content = answer.json()
    key = content.get("public_key") if isinstance(content, dict) else None
    if not isinstance(key, str):
        raise requests.exceptions.InvalidJSONError(front_messages.NO_PUBLIC_KEY)
    return f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----"


def user_of_token(token: str, key: RealmKey) -> host.User:
    """Return the user of a token.

    Args:
        token: JSON Web Token, signed by the realm's key.
        key: The realm's key.

    Returns:
        The user with roles.

    Raises:
        jwt.InvalidTokenError: The token is not signed by the realm, expired, without expiry, of another issuer, for
            another audience, or without a user name.
        requests.RequestException: The realm's key is not known, and the realm does not send it.
    """
    known = key.known()
    try:
        claims = _claims(token, known)
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
        try:
            claims = _claims(token, key.instead_of(known))
        except jwt.InvalidKeyError as error:
            raise jwt.InvalidTokenError(front_messages.OTHER_KEY) from error
    name = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
    if not isinstance(name, str) or not name:
        raise jwt.InvalidTokenError(front_messages.NO_USER_NAME)
    return host.User(
        username=name,
        email=_text(claims, settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=_text(claims, settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=_roles(claims),
    )


def _claims(token: str, key: str) -> dict[str, Any]:
    options: Any = {"verify_aud": False, "require": list(REQUIRED_CLAIMS)}
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=list(ALGORITHMS), options=options)
    issuer = os.environ.get(ISSUER_VARIABLE) or settings.MONAI_LABEL_AUTH_REALM_URI
    if str(claims["iss"]).rstrip("/") != issuer.rstrip("/"):
        raise jwt.InvalidIssuerError(front_messages.OTHER_ISSUER.format(stated=claims["iss"], expected=issuer))
    audience = os.environ.get(AUDIENCE_VARIABLE) or settings.MONAI_LABEL_AUTH_CLIENT_ID
    if audience not in _audiences(claims):
        raise jwt.InvalidAudienceError(
            front_messages.OTHER_AUDIENCE.format(stated=_audiences(claims), expected=audience)
        )
    return claims


def _audiences(claims: Mapping[str, Any]) -> list[Any]:
    """Return the audiences of a token, and the program it was issued to, as in Keycloak's tokens."""
    stated = claims.get("aud", [])
    return [*(stated if isinstance(stated, list) else [stated]), claims.get("azp")]


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) else None


def _roles(claims: Mapping[str, Any]) -> list[str]:
    """Return the roles at the configured place, such as ``realm_access#roles``; none if it does not exist."""
    value: Any = claims
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return [role for role in value if isinstance(role, str)] if isinstance(value, list) else []
