"""What this server may be called: a web page whose own name was pointed here would pass for one of its pages."""

import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Addresses that this machine alone can reach."""


def own_names(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """Names that readers call the server by.

    Args:
        host: Address it listens on. Whoever opens it to a network calls it by the machine's name.
        more: Others that its owner knows, such as that of a proxy before it.
    """
    network = () if host in LOOPBACK else (host, socket.gethostname(), socket.getfqdn())
    return frozenset(name.lower() for name in (*LOOPBACK, *network, *more) if name)


def is_own(name: str | None, names: Collection[str]) -> bool:
    """Whether a request that calls the server so is meant for it; nobody can point an IP address elsewhere."""
    if name is None:
        return False
    try:
        ip_address(name)
    except ValueError:
        return name in names
    return True
