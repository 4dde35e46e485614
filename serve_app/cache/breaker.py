"""A circuit breaker: what fails again and again is left alone, and asked now and then."""

from __future__ import annotations


class Breaker:
    """Opens after some failures in a row; closes when a probe succeeds.

    Pure: times are handed in, in seconds of one monotonic clock.  Not thread-safe.

    ::

        closed ── failures in a row ──▶ open ── rest_s ──▶ half open: one probe at a time
          ▲                              ▲                     │ fails
          └────────── succeeds ──────────┼─────────────────────┤
                                         └─────────────────────┘

    Args:
        failures: in a row, until it opens.
        rest_s: between opening, or a failed probe, and the next probe.
    """

    def __init__(self, failures: int, rest_s: float) -> None:
        self._most = failures
        self._rest_s = rest_s
        self._in_a_row = 0
        self._probe_at: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether only a probe may ask, and nobody else."""
        return self._probe_at is not None

    def succeeded(self) -> None:
        """Somebody got an answer.  One from before it opened does not close it."""
        self._in_a_row = 0

    def failed(self, now: float) -> bool:
        """Somebody got none.  Whether it has opened by this."""
        if self._probe_at is not None:
            return False
        self._in_a_row += 1
        if self._in_a_row < self._most:
            return False
        self._probe_at = now + self._rest_s
        return True

    def rest_left(self, now: float) -> float:
        """Seconds until the next probe; 0 if it is due, or nothing is open."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - now)

    def probe(self, now: float) -> bool:
        """Whether the caller is to probe now; if so it owes the outcome to `probed`."""
        if self._probe_at is None or self._probing or now < self._probe_at:
            return False
        self._probing = True
        return True

    def probed(self, answered: bool, now: float) -> None:
        """The outcome of the probe."""
        self._probing = False
        if answered:
            self._probe_at, self._in_a_row = None, 0
        else:
            self._probe_at = now + self._rest_s
