"""A server's part of one ASGI exchange, time that stands still, and figures that are kept."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from serve_app.http.request_info import RequestInfo

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]


@dataclass
class Clock:
    """Seconds that pass when they are told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Exchange:
    """One request and what was sent in answer.

    Attributes:
        incoming: the messages that the server hands over; then nothing comes any more.
        read: how many of them were taken.
    """

    path: str = "/v1/segment"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    incoming: list[Message] = field(default_factory=lambda: [{"type": "http.request"}])
    info: RequestInfo | None = None
    client: tuple[str, int] | None = ("192.0.2.7", 4711)
    read: int = 0
    sent: list[Message] = field(default_factory=list)
    on_receive: Callable[[], None] = lambda: None

    async def run(self, app: App) -> Exchange:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in self.headers.items()],
            "client": self.client,
            "server": ("s", 80),
        }
        if self.info is not None:
            scope["state"] = {"request_info": self.info}
        await app(scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        self.on_receive()
        if self.read == len(self.incoming):
            await asyncio.Event().wait()
        self.read += 1
        return self.incoming[self.read - 1]

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def answered(self) -> dict[str, str]:
        """The answer's headers."""
        return {k.decode().lower(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        return dict(orjson.loads(body)["error"])


async def fine(scope: Any, receive: Any, send: Any) -> None:
    """Answers 200 to everything, without reading a body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Figures:
    """Keeps what is counted, by instrument and label values."""

    def __init__(self) -> None:
        self.counts: Counts[tuple[str, ...]] = Counts()
        self.observed: list[tuple[str, ...]] = []
        self.gauges: dict[str, list[float]] = {}

    def count(self, counter: Any, amount: float, labels: Mapping[str, str]) -> None:
        self.counts[(counter.name, *labels.values())] += int(amount)

    def set(self, gauge: Any, value: float, labels: Mapping[str, str]) -> None:
        self.gauges.setdefault(gauge.name, []).append(value)

    def observe(self, histogram: Any, value: float, labels: Mapping[str, str]) -> None:
        assert value >= 0
        self.observed.append((histogram.name, *labels.values()))

    def refused(self, reason: str) -> int:
        return self.counts["sam_refusals_total", reason]
