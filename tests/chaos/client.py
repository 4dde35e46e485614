"""An HTTP client for load, and the ledger with the one outcome of each of its requests."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp

from serve_tools.bench.load import Outcome, Send, closed_loop, evenly, open_loop

from .questions import Ask

_VOLATILE = ("cache", "reason", "timings_ms", "expected_ms", "degraded")
"""Members of an answer that may differ between two answers to one question."""


@dataclass
class Ledger:
    """Each request id with its one outcome."""

    sent: set[str] = field(default_factory=set)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)

    def opened(self, request_id: str) -> None:
        if request_id in self.sent:
            raise AssertionError("a request id was used twice")
        self.sent.add(request_id)

    def closed(self, outcome: Outcome, echoed: str | None) -> None:
        """Enter an outcome; ``echoed`` is the id in the answer."""
        if outcome.request_id in self.outcomes or outcome.request_id not in self.sent:
            raise AssertionError("a request id has two outcomes, or was never sent")
        if echoed is not None and echoed != outcome.request_id:
            self.foreign.append(outcome.request_id)
        self.outcomes[outcome.request_id] = outcome

    def all(self) -> list[Outcome]:
        return list(self.outcomes.values())

    @property
    def unanswered(self) -> int:
        """Ids without an outcome, or with another's answer."""
        return len(self.sent) - len(self.outcomes) + len(self.foreign)

    def statuses(self, kinds: Iterable[str] | None = None) -> Counter[int]:
        wanted = None if kinds is None else set(kinds)
        return Counter(o.status for o in self.all() if wanted is None or o.kind in wanted)

    def contradictions(self) -> int:
        """Questions with more than one answer."""
        answers: dict[str, set[str]] = defaultdict(set)
        for outcome in self.all():
            if outcome.digest:
                answers[outcome.key].add(outcome.digest)
        return sum(len(found) > 1 for found in answers.values())

    def table(self) -> str:
        """Counts by kind, status and code, for people."""
        counts = Counter((o.kind, o.status, o.code) for o in self.all())
        lines = ["| kind | status | code | requests |", "|--|--:|--|--:|"]
        lines += [f"| {k} | {s} | {c} | {n} |" for (k, s, c), n in sorted(counts.items())]
        return "\n".join(lines)


def quantile(values: Iterable[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else float("nan")


def answer_digest(path: str, content: bytes) -> str:
    """Of what a question must always be answered with."""
    try:
        answer = json.loads(content)
    except ValueError:
        return "" if not path.endswith("batch") else "stream"
    kept = {name: value for name, value in answer.items() if name not in _VOLATILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _code(content: bytes) -> str:
    """The code of an error of ours; whoever else answered is told by the first words."""
    try:
        return str(json.loads(content)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        words = content[:200].decode("utf-8", "replace").split()
        return "not ours: " + " ".join(words)[:60]


class Client:
    """Sends asks and keeps the ledger.

    Args:
        timeout_s: how long it waits; None: as long as the ask says.
    """

    def __init__(
        self, url: str, ledger: Ledger | None = None, timeout_s: float | None = None
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self.ledger = ledger or Ledger()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        # Not trust_env: a proxy of the environment is none of this.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5), auto_decompress=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, ask: Ask, due_s: float | None = None) -> Outcome:
        """Send one request and enter what becomes of it."""
        assert self._session is not None
        request_id, sent = uuid.uuid4().hex, time.monotonic()
        due = sent if due_s is None else due_s
        self.ledger.opened(request_id)
        headers = {"x-request-id": request_id, "content-type": ask.content_type, **ask.headers}
        status, code, retry_after, digest, echoed = 0, "", None, "", None
        try:
            async with self._session.post(
                self.url + ask.path,
                data=ask.body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._timeout_s or ask.timeout_s),
            ) as answer:
                content = await answer.read()
                status, echoed = answer.status, answer.headers.get("x-request-id")
                retry_after = answer.headers.get("retry-after")
                if status == 200:
                    digest = answer_digest(ask.path, content)
                else:
                    code = _code(content)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            status, code = 0, type(exc).__name__
        outcome = Outcome(
            request_id, ask.kind, ask.key, due, sent, time.monotonic(),
            status, code, retry_after, digest,
        )  # fmt: skip
        self.ledger.closed(outcome, echoed)
        return outcome

    async def closed_loop(self, make: Callable[[], Ask], callers: int, seconds: float) -> float:
        """Load by concurrent callers; successful requests a second."""
        send = self._sender(make)
        window = await closed_loop(send, callers, seconds, clock=time.monotonic)
        return window.requests_per_s

    async def open_loop(
        self, make: Callable[[], Ask], rate: float, seconds: float
    ) -> Sequence[Outcome]:
        """``rate`` requests a second, evenly spaced; returns when all have an outcome."""
        due = evenly(rate, seconds)
        return (await open_loop(self._sender(make), due, clock=time.monotonic)).outcomes

    def _sender(self, make: Callable[[], Ask]) -> Send:
        return lambda number, due_s: self.ask(make(), due_s)
