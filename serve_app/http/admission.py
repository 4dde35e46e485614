"""How many requests one ingress replica works on at once: the others hear so at once."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.core.errors import Overloaded
from serve_app.core.limits import Limits
from serve_app.http.refusals import refuse
from serve_app.http.work import Work
from serve_app.telemetry.catalogue import REFUSALS

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
        if not waiting:
            seconds = 0.0  # only bodies are on their way, which come or are cut soon
        elif not self._ends:
            # None ended yet: at best they do after as long again as they have taken.
            seconds = now - self._since
        else:
            seconds = waiting * (now - self._since) / len(self._ends)
        return min(_LONGEST_WAIT_S, max(_LEAST_WAIT_S, math.ceil(seconds - 1e-6)))


class Admission:
    """Works on so many POST requests at once and refuses the others unread.

    A request takes its place when its body has arrived: those who send slowly, or never finish,
    take none from those who wait for masks.  All that changes nothing, probes, metrics and
    documents, passes.  A refusal is `Overloaded` and says after how long the requests in work
    will have ended, or `ShuttingDown`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        work: Work | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._most = limits.max_concurrent_requests
        self._most_arriving = limits.max_arriving_requests
        self._work = work or Work()
        self._clock = clock
        self._working = self._arriving = 0
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._working >= self._most or self._arriving >= self._most_arriving:
            await refuse(self._full(), "capacity", scope, receive, send)
            return
        if self._work.draining:
            await refuse(self._work.refusal, "stopping", scope, receive, send)
            return
        working = False

        async def arriving() -> Message:
            nonlocal working
            message = await receive()
            whole = message["type"] == "http.request" and not message.get("more_body", False)
            if whole and not working:
                if self._working >= self._most:
                    REFUSALS.inc(reason="capacity")
                    raise self._full()
                working = True
                self._begin()
            return message

        self._arriving += 1
        try:
            with self._work.one():
                await self._app(scope, arriving, send)
        finally:
            if working:
                self._working -= 1
                self._pace.end(self._clock())
            else:
                self._arriving -= 1

    def _begin(self) -> None:
        if self._working == 0:
            self._pace.begin(self._clock())
        self._arriving -= 1
        self._working += 1

    def _full(self) -> Overloaded:
        error = Overloaded(
            "as many requests as may be are in work or on their way; try again later"
        )
        error.retry_after_s = self._pace.wait_s(self._working, self._clock())
        return error
