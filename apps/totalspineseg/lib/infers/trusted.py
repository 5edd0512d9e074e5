"""A path that the server itself made, as opposed to one from a client."""


class TrustedPath(str):
    """Path of a file that the front received or that belongs to a session; requests as JSON cannot hold one."""

    __slots__ = ()
