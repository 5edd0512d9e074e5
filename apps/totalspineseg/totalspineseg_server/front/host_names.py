"""Names of this server: a web page whose own name points to this machine would otherwise pass for one of its pages."""

import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""


def own_names(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """Return the names by which readers call the server.

    Args:
        host: Address it listens on. Clients on a network call it by the machine's name.
        more: Other names that its owner knows, such as that of a proxy before it.
    """
    network = () if host in LOOPBACK else (host, socket.gethostname(), socket.getfqdn())
    return frozenset(name.lower() for name in (*LOOPBACK, *network, *more) if name)


def is_own(name: str | None, names: Collection[str]) -> bool:
    """Return whether a host name is this server's; an IP address always is, because nobody can point it elsewhere."""
    if name is None:
        return False
    try:
        ip_address(name)
    except ValueError:
        return name in names
    return True
