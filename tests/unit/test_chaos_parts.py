"""The judges of `tests.chaos` find what they are there for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_tools.bench.load import Outcome

from ..chaos import cancellation, slow_clients
from ..chaos.cancellation import PHASES, Done
from ..chaos.changes import in_effect
from ..chaos.client import Client, Ledger, answer_digest, quantile
from ..chaos.kills import Kill, judge_ingress, strays
from ..chaos.processes import open_files, pss_bytes, slope_per_min
from ..chaos.questions import Mix, batch, bmp, new_image
from ..chaos.report import Report
from ..chaos.slow_clients import KINDS, Drips, judge_drips
from ..chaos.soak import Watch, judge_leak, judge_steady

MIB_A_MINUTE = np.arange(0.0, 300.0, 2.0) / 60
GOOD = Outcome("a", "new", "q", 1.0, 1.5, 3.0, 200, digest="x")


def ledger(*outcomes: Outcome) -> Ledger:
    made = Ledger()
    for outcome in outcomes:
        made.opened(outcome.request_id)
        made.closed(outcome, outcome.request_id)
    return made


def test_each_id_has_one_outcome() -> None:
    made = ledger(GOOD)
    assert made.unanswered == 0
    with pytest.raises(AssertionError):
        made.opened("a")
    with pytest.raises(AssertionError):
        made.closed(GOOD, "a")
    with pytest.raises(AssertionError):
        made.closed(replace(GOOD, request_id="never sent"), None)
    made.opened("b")
    assert made.unanswered == 1
    made.closed(replace(GOOD, request_id="b"), "of another")
    assert made.unanswered == 1


def test_two_answers_to_one_question_are_found() -> None:
    same = replace(GOOD, request_id="b")
    other = replace(GOOD, request_id="c", digest="y")
    assert ledger(GOOD, same).contradictions() == 0
    assert ledger(GOOD, other).contradictions() == 1
    assert ledger(GOOD, replace(other, key="another question")).contradictions() == 0


def test_latency_counts_from_when_a_request_was_due() -> None:
    assert (GOOD.took_ms, GOOD.lag_ms) == (2000.0, 500.0)


def test_a_digest_is_of_masks_not_of_circumstances() -> None:
    one = answer_digest("/v1/segment", b'{"results": [1], "cache": "miss", "reason": "a"}')
    assert one == answer_digest("/v1/segment", b'{"results": [1], "cache": "memory"}')
    assert one != answer_digest("/v1/segment", b'{"results": [2], "cache": "miss"}')


async def test_no_answer_is_an_outcome() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}") as client:
        outcome = await client.ask(new_image())
    assert (outcome.status, outcome.code) == (0, "ServerDisconnectedError")
    assert client.ledger.unanswered == 0


def test_a_broken_bound_is_the_exit_status(tmp_path: Path) -> None:
    report = Report()
    report.at_most("5", "kept", 1.0, 2.0, "ms")
    assert report.finish(tmp_path / "table.md") == 0
    report.at_least("5", "missed", 1.0, 2.0)
    report.at_most("5", "unknown", float("nan"), 2.0)
    assert report.finish(tmp_path / "table.md") == 1
    assert [row.measure for row in report.broken] == ["missed", "unknown"]
    assert (tmp_path / "table.md").read_text().count("**NO**") == 2


def test_a_slope_is_found_in_noise() -> None:
    seconds = np.arange(0.0, 300.0, 2.0)
    noise = np.random.default_rng(0).normal(0, 0.5, len(seconds))
    assert slope_per_min(list(seconds), list(100 + noise)) == pytest.approx(0, abs=0.2)
    assert slope_per_min(list(seconds), list(100 + noise + seconds / 30)) == pytest.approx(
        2, abs=0.2
    )


def test_the_watch_leaves_the_warm_up_out() -> None:
    watch = Watch({"a 1": 1})
    watch.at_s = [float(s) for s in range(0, 120, 2)]
    watch.memory = {"a 1": [min(s, 60.0) for s in watch.at_s]}
    watch.files = {"a 1": [10 + (s > 90) * 7 for s in watch.at_s]}
    assert watch.slope("a 1", 0) > 10
    assert watch.slope("a 1", 60) == pytest.approx(0, abs=1e-9)
    assert watch.files_moved("a 1", 60) == 7


def test_this_process_has_memory_and_files() -> None:
    import os

    assert pss_bytes(os.getpid()) > 2**20
    assert open_files(os.getpid()) >= 3
    assert pss_bytes(2**22 + 1) == open_files(2**22 + 1) == 0


def test_quantiles_are_of_values_that_there_were() -> None:
    assert quantile([3, 1, 2], 0.99) == 3
    assert quantile(range(100), 0.5) == 50


def test_images_are_files_and_no_two_alike(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.bmp").write_bytes(bmp(number, (64, 48)))
    one, two = (np.asarray(Image.open(tmp_path / f"{n}.bmp")) for n in (1, 2))
    assert one.shape == (48, 64, 3)
    assert (one != two).any()


def test_a_mix_has_all_kinds() -> None:
    mix = Mix()
    asks = [mix() for _ in range(80)]
    assert {ask.kind for ask in asks} == {"new", "known", "text", "everything"}
    assert len({ask.key for ask in asks if ask.kind == "new"}) == 20
    assert batch(3).body.count(b"filename=") == 3


def watch(slopes: Mapping[str, float], files: Mapping[str, float] | None = None) -> Watch:
    """Five minutes of processes that grow by so many MiB, and open so many files, a minute."""
    made = Watch({who: turn for turn, who in enumerate(slopes)})
    made.at_s = list(MIB_A_MINUTE * 60)
    made.memory = {who: list(100 + slope * MIB_A_MINUTE) for who, slope in slopes.items()}
    opened = files or {}
    made.files = {who: [int(n) for n in 10 + opened.get(who, 0) * MIB_A_MINUTE] for who in slopes}
    return made


ENCODERS = ("fast-encoder 1", "fast-encoder 2")
PLANTED = dict.fromkeys(ENCODERS, 8.0)
QUIET = {"ingress 3": 0.1, "text 4": 0.0, "proposals 5": 0.2}


@pytest.mark.parametrize(
    ("slopes", "files", "broken"),
    [
        (dict.fromkeys(ENCODERS, 2.0), PLANTED, 0),
        # The ingress grows, and no encoder leaks: nothing was found.
        (dict.fromkeys(ENCODERS, 0.0) | {"ingress 3": 9.0}, PLANTED, 4),
        # One of two leaks.
        ({ENCODERS[0]: 2.0, ENCODERS[1]: 0.0}, PLANTED, 2),
        # Everybody grows alike.
        (dict.fromkeys(ENCODERS, 2.0) | dict.fromkeys(QUIET, 2.0), PLANTED, 2),
        # Descriptors of others.
        (dict.fromkeys(ENCODERS, 2.0), {"ingress 3": 8.0}, 2),
    ],
)
def test_a_planted_leak_is_found_where_it_was_planted(
    slopes: dict[str, float], files: dict[str, float], broken: int
) -> None:
    report = Report()
    judge_leak(report, watch(dict.fromkeys(ENCODERS, 0.0) | QUIET | slopes, files), 60)
    assert len(report.broken) == broken
    others = {row.measure.rpartition(" ")[2] for row in report.rows if "no leak" in row.measure}
    assert others == {"ingress", "text", "proposals"}


def test_without_an_encoder_no_leak_is_found() -> None:
    report = Report()
    judge_leak(report, watch(QUIET), 60)
    assert report.broken


def test_whoever_grows_breaks_the_soak() -> None:
    for growing, files, broken in ((0.0, 0.0, 0), (1.5, 0.0, 2), (0.0, 8.0, 1)):
        report = Report()
        judge_steady(report, "13", watch(QUIET | {"text 4": growing}, {"text 4": files}), 60)
        assert len(report.broken) == broken


BEFORE = {"text": {1, 2}, "ingress": {3}}
SCALED = {"name": "text", "autoscaling_config": {"min_replicas": 3}}
BOUNDED = {"name": "text", "max_ongoing_requests": 32}


@pytest.mark.parametrize(
    ("args", "override", "after", "told", "effect"),
    [
        ({"a": 2}, {}, {"text": {4, 5}, "ingress": {6}}, 64, True),
        ({"a": 2}, {}, {"text": {4, 2}, "ingress": {6}}, 64, False),
        ({"a": 2}, {}, BEFORE, 64, False),
        ({"a": 1}, SCALED, {"text": {1, 2, 4}, "ingress": {3}}, 64, True),
        ({"a": 1}, SCALED, BEFORE, 64, False),
        ({"a": 1}, SCALED, {"text": {1, 2, 4}, "ingress": {5}}, 64, False),
        ({"a": 1}, BOUNDED, BEFORE, 32, True),
        ({"a": 1}, BOUNDED, BEFORE, 64, False),
    ],
)
def test_a_change_has_an_effect(
    args: dict[str, int],
    override: dict[str, object],
    after: dict[str, set[int]],
    told: int,
    effect: bool,
) -> None:
    deployments = {"text": {"deployment_config": {"max_ongoing_requests": told}}}
    new = {"args": args, "deployments": [override]}
    old = {"args": {"a": 1}, "deployments": []}
    assert in_effect(old, new, BEFORE, after, deployments) is effect


KILL = Kill("ingress", at_s=10.0, gone_s=10.5, back_s=3.0)
LOST = Outcome("lost", "new", "q", 9.0, 9.0, 10.1, 0, code="ServerDisconnectedError")


def test_a_failure_must_span_a_kill() -> None:
    just_after = replace(LOST, request_id="b", sent_s=10.4, done_s=11.0)
    before = replace(LOST, request_id="c", done_s=9.9)
    later = replace(LOST, request_id="d", sent_s=10.6, done_s=11.0)
    answered = [replace(GOOD, request_id=str(n), sent_s=9.0, done_s=12.0) for n in range(50)]
    assert strays([LOST, just_after, *answered], [KILL]) == []
    assert strays([LOST, before, later, *answered], [KILL]) == [before, later]
    report = Report()
    judge_ingress(report, [LOST, *answered], [KILL])
    assert not report.broken
    # Many were under way and answered: that excuses nobody else.
    judge_ingress(report, [LOST, later, *answered], [KILL])
    assert len(report.broken) == 1


def test_kills_that_hit_nobody_show_nothing() -> None:
    report = Report()
    judge_ingress(report, [GOOD], [KILL])
    assert [row.value for row in report.broken] == ["0"]


def drips(headers: Drips, bodies: Drips) -> list[str]:
    report = Report()
    judge_drips(report, {"headers": headers, "bodies": bodies})
    return [row.measure.rpartition(": ")[2] for row in report.broken]


def test_slow_clients_of_each_kind_are_reaped() -> None:
    headers = Drips([5.0] * KINDS["headers"] * 3, [3.0] * KINDS["headers"])
    bodies = Drips([10.0] * KINDS["bodies"], [6.0] * KINDS["bodies"])
    assert drips(headers, bodies) == []
    # Bodies are never reaped; header drips enough for both.
    endless = Drips([], [40.0] * KINDS["bodies"])
    assert drips(headers, endless) == [
        "reaped so far, with 408",
        "oldest connection, open or closed",
    ]
    old = replace(bodies, living=[40.0])
    assert drips(headers, old) == ["oldest connection, open or closed"]
    assert drips(headers, Drips([], [], 50)) == [
        "reaped so far, with 408", "oldest connection, open or closed", "ended otherwise",
    ]  # fmt: skip


def test_who_is_refused_is_not_reaped() -> None:
    made = Drips()
    made.ended(b"HTTP/1.1 408 Request Timeout", 5.0)
    made.ended(b"HTTP/1.1 429 Too Many Requests", 0.1)
    made.ended(b"", 0.2)
    assert (made.reaped, made.otherwise) == ([5.0], 2)


class _Attacked:
    """A front that holds connections as long as they like."""

    def __init__(self, port: int) -> None:
        self.port = port

    def memory_bytes(self) -> int:
        return 0


async def test_who_is_never_reaped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setitem(KINDS, "headers", 2)
    monkeypatch.setitem(KINDS, "bodies", 1)
    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    async with server:
        attack = slow_clients._Attack(_Attacked(server.sockets[0].getsockname()[1]))
        attack.start()
        await asyncio.to_thread(attack.end)
    found = {kind: (len(of.reaped), len(of.living)) for kind, of in attack.drips.items()}
    assert found == {"headers": (0, 2), "bodies": (0, 1)}


def spent(**more: int) -> Done:
    """What is done where all leave in good time."""
    found = {name: Counter[str]() for name in PHASES}
    found["decoding"]["fast-decoder"] = more.get("decoding", 64)
    found["streaming"].update({"fast-encoder": 10, "fast-decoder": more.get("streaming", 10)})
    found["upload"]["fast-encoder"] = more.get("upload", 0)
    found["embedding"]["fast-encoder"] = more.get("embedding", 1)
    return found


@pytest.mark.parametrize(
    ("done", "amiss", "broken"),
    [
        (spent(), [], 0),
        (spent(decoding=0), [], 1),  # left before any prompt was decoded
        (spent(streaming=0), [], 1),
        (spent(embedding=0), [], 1),
        (spent(decoding=14400), [], 1),  # worked on to the end
        (spent(streaming=192), [], 1),
        (spent(upload=1), [], 1),
        (spent(), ["streaming: answered 503"], 1),
    ],
)
def test_leavers_left_in_the_middle_of_something(done: Done, amiss: list[str], broken: int) -> None:
    report = Report()
    cancellation.judge(report, done, 4, amiss)
    assert len(report.broken) == broken


LINE = b'{"index":0,"result":{}}\n'
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (HEAD + b"18\r\n" + LINE, ""),
        (HEAD + b"18\r\n", "streaming: no line, IncompleteReadError"),
        (HEAD, "streaming: no line, IncompleteReadError"),
        (HEAD + b'{"index":0,"error":{}}\n', "streaming: the first line is an error's"),
        (b"HTTP/1.1 503 Full\r\n\r\n", "streaming: answered 503"),
        (b"", "streaming: no line, IncompleteReadError"),
    ],
)
async def test_who_streams_leaves_after_a_line(answer: bytes, told: str) -> None:
    assert await _left("streaming", answer) == told


async def test_who_is_answered_before_has_not_left() -> None:
    assert "answered too early" in await _left("decoding", b"HTTP/1.1 503 Full\r\n\r\n")
    assert "answered too early" in await _left("decoding", HEAD, ends=False)
    assert "answered too early" in await _left("waiting", HEAD + b"18\r\n" + LINE, ends=False)
    assert "answered too early" in await _left("waiting", HEAD)
    assert await _left("waiting", HEAD, ends=False) == ""
    assert await _left("decoding", b"", ends=False) == ""


async def _left(phase: str, answer: bytes, ends: bool = True) -> str:
    """What a client of a phase tells of a server that answers so, and ends or waits."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(one.ask.body))
        writer.write(answer)
        if not ends:
            await reader.read()
        writer.close()

    one = replace(cancellation.canceller(phase, random.Random(0), 0.4), after_s=0.2)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await cancellation.leave(f"http://127.0.0.1:{port}", one)
