"""Open the address and port before anything is written, so that a wrong address or busy port leaves nothing behind."""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from totalspineseg_server.errors import AddressError
from totalspineseg_server.front import front_messages

PORTS: Final = range(1, 65536)
"""Ports that a client can use."""
BACKLOG: Final = 2048
"""Largest number of connections that wait while the server starts; uvicorn's own number."""
MISSING: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors to skip: a name may stand for an IPv6 address on a machine without IPv6."""


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Take the port on every address that a host name stands for; close them at the end.

    Args:
        host: Name or IP address of this machine; "0.0.0.0" for all of its IPv4 addresses.
        port: Port number.

    Yields:
        Listening sockets. Connections wait until somebody answers them.

    Raises:
        AddressError: The port is out of range, taken or reserved, or the host is not this machine's.
    """
    if port not in PORTS:
        raise AddressError(front_messages.NO_PORT.format(port=port, lowest=PORTS[0], highest=PORTS[-1]))
    with ExitStack() as opened:
        sockets = []
        for family, address in _addresses(host, port):
            try:
                sockets.append(opened.enter_context(_bound(family, address)))
            except OSError as error:
                if error.errno not in MISSING:
                    raise _refused(host, port, error) from error
        if not sockets:
            raise _unknown(host)
        yield sockets


def _addresses(host: str, port: int) -> Sequence[tuple[int, Any]]:
    if not host:
        # An empty name would stand for all addresses, which nobody asked for.
        raise _unknown(host)
    try:
        # Use a set, because a name may be listed twice.
        return sorted({(entry[0], entry[4]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError) as error:
        raise _unknown(host) from error


def _bound(family: int, address: Any) -> socket.socket:
    with ExitStack() as opened:
        entry = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # Without this the port of a server that was just stopped cannot be taken for a minute.
        entry.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            entry.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        entry.bind(address)
        # Listen at once: until then another program could take the port as well.
        entry.listen(BACKLOG)
        opened.pop_all()
        return entry


def _unknown(host: str) -> AddressError:
    return AddressError(front_messages.FOREIGN_ADDRESS.format(host=host))


def _refused(host: str, port: int, error: OSError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        return AddressError(front_messages.TAKEN_PORT.format(port=port, host=host))
    return AddressError(front_messages.UNUSABLE_PORT.format(port=port, host=host, reason=error.strerror))
