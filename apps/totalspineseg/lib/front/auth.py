"""Token authentication that accepts a valid token; the host's own rejects every one for want of an algorithm."""

from collections.abc import Mapping
from typing import Any, Final

import jwt
from monailabel.config import settings
from monailabel.endpoints.user import auth as host

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Asymmetric ones alone: with a symmetric one anybody could sign with the public key."""
REQUIRED_CLAIMS: Final = ("exp",)


def install() -> None:
    """Let the host check tokens with ``user_of_token``."""
    host.from_token = user_of_token


def user_of_token(token: str) -> host.User:
    """The user a token stands for.

    Args:
        token: JSON Web Token, signed by the realm's key.

    Returns:
        The user with roles; the host's default user when authentication is off.

    Raises:
        jwt.InvalidTokenError: Not signed by the realm, expired, without expiry, or without a user name.
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return host.DEFAULT_USER
    key = host.get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    claims = jwt.decode(
        token, key, algorithms=list(ALGORITHMS), options={"verify_aud": False, "require": list(REQUIRED_CLAIMS)}
    )
    name = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
    if not isinstance(name, str) or not name:
        raise jwt.InvalidTokenError("a token with a user name is required, got one without")
    return host.User(
        username=name,
        email=_text(claims, settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=_text(claims, settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=_roles(claims),
    )


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) else None


def _roles(claims: Mapping[str, Any]) -> list[str]:
    """Roles at the configured place, such as ``realm_access#roles``; none where the place is missing."""
    value: Any = claims
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return [role for role in value if isinstance(role, str)] if isinstance(value, list) else []
