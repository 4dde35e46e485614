"""How many requests one ingress replica works on at once: the others hear so at once."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.refusals import refuse
from serve_app.api.work import Work
from serve_app.domain.errors import Overloaded

_LEAST_WAIT_S, _LONGEST_WAIT_S = 1, 30
_MEMORY_S = 10.0


class Pace:
    """How fast requests end at present, of the last ten busy seconds."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=256)
        self._since = 0.0

    def begin(self, now: float) -> None:
        """The service was idle until now: what was before says nothing."""
        self._ends.clear()
        self._since = now

    def end(self, now: float) -> None:
        """A request has ended."""
        if len(self._ends) == self._ends.maxlen:
            self._since = self._ends[0]
        self._ends.append(now)

    def wait_s(self, waiting: int, now: float) -> int:
        """Whole seconds in which so many requests end, within 1 to 30."""
        while self._ends and self._ends[0] < now - _MEMORY_S:
            self._since = self._ends.popleft()
        if not self._ends:
            # None ended yet: at best they do after as long again as they have taken.
            seconds = now - self._since
        else:
            seconds = waiting * (now - self._since) / len(self._ends)
        return min(_LONGEST_WAIT_S, max(_LEAST_WAIT_S, math.ceil(seconds - 1e-6)))


class Admission:
    """Works on at most ``most`` POST requests at once and refuses the others unread.

    All that changes nothing, probes, metrics and documents, passes.  A refusal is `Overloaded`
    and says after how long the requests in work will have ended, or `ShuttingDown`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        most: int,
        work: Work | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._most = most
        self._work = work or Work()
        self._clock = clock
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        in_flight = self._work.in_flight
        if in_flight >= self._most:
            wait_s = self._pace.wait_s(in_flight, self._clock())
            error = Overloaded(
                f"{self._most} requests are in work, which is all; try again in {wait_s} s"
            )
            await refuse(error, "capacity", scope, receive, send, {"retry-after": str(wait_s)})
            return
        if self._work.draining:
            await refuse(self._work.refusal, "stopping", scope, receive, send)
            return
        if in_flight == 0:
            self._pace.begin(self._clock())
        with self._work.one():
            try:
                await self._app(scope, receive, send)
            finally:
                self._pace.end(self._clock())
