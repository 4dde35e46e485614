"""A circuit breaker: stops calls to a failing backend, and probes it periodically."""

from __future__ import annotations


class Breaker:
    """Opens after some consecutive failures; closes when a probe succeeds.

    Pure: times are arguments, in seconds of one monotonic clock.  Not thread-safe.

    ::

        closed ── consecutive failures ──▶ open ── retry_s ──▶ half open: one probe at a time
          ▲                                 ▲                    │ fails
          └────────────── succeeds ─────────┼────────────────────┤
                                            └────────────────────┘
    """

    def __init__(self, failures: int, retry_s: float) -> None:
        self._max_failures = failures
        self._retry_s = retry_s
        self._failures = 0
        self._probe_at: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether only a probe may call the backend."""
        return self._probe_at is not None

    def succeeded(self) -> None:
        """Record a success.  One that began before the breaker opened does not close it."""
        self._failures = 0

    def failed(self, now: float) -> bool:
        """Record a failure; returns whether it opened the breaker."""
        if self._probe_at is not None:
            return False
        self._failures += 1
        if self._failures < self._max_failures:
            return False
        self._probe_at = now + self._retry_s
        return True

    def seconds_until_probe(self, now: float) -> float:
        """Return the seconds until the next probe; 0 if it is due or the breaker is closed."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - now)

    def try_probe(self, now: float) -> bool:
        """Return whether the caller is to probe now; if so it must call `probed`."""
        if self._probe_at is None or self._probing or now < self._probe_at:
            return False
        self._probing = True
        return True

    def probed(self, succeeded: bool, now: float) -> None:
        """Record the outcome of the probe."""
        self._probing = False
        if succeeded:
            self._probe_at, self._failures = None, 0
        else:
            self._probe_at = now + self._retry_s
