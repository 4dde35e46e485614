"""TCP ports for the servers of the tests."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

_FIRST, _COUNT = 20_000, 12_000
"""Below the range from which the kernel takes the ports of outgoing connections."""


def _numbers() -> Iterator[int]:
    """Each number once a round; where to begin depends on the process, for those beside it."""
    begin = os.getpid() * 37
    return (_FIRST + (begin + turn) % _COUNT for turn in itertools.count())


_NUMBERS = _numbers()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, and that no connection is given meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = next(_NUMBERS)
        if _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: ports whose last connections have just ended are free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
