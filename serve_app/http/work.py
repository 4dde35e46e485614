"""What an ingress replica works on, and whether it takes more: so that it can go in good order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.core.errors import ShuttingDown


class Work:
    """Counts requests under way, and knows whether the service is to stop.

    The sign for that is a file: whoever runs the service can make one without a credential or a
    port, and no client can.

    Args:
        sign: while a file of this path exists, nothing new is begun; None: there is none.

    Attributes:
        in_flight: requests under way.
    """

    def __init__(self, sign: Path | None = None) -> None:
        self._sign = sign
        self.in_flight = 0

    @property
    def draining(self) -> bool:
        """Whether the service is to stop."""
        return self._sign is not None and self._sign.exists()

    @property
    def refusal(self) -> ShuttingDown:
        """What who comes meanwhile is told."""
        return ShuttingDown("the service is about to stop; send the request elsewhere or later")

    @contextmanager
    def one(self) -> Iterator[None]:
        """A request is under way inside."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
