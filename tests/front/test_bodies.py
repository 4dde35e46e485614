"""Bodies that are too large, lie about their size, or hide it: none costs the front memory."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from serve_app.front.program import FrontError
from serve_app.front.render import render
from serve_app.front.settings import FrontSettings

from .conftest import MAX_BODY_BYTES
from .running import Backend, Raw, RunningFront

MIB = 2**20
GROWTH_BYTES = 16 * MIB
HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def post(front: RunningFront, content: bytes, **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json", **headers}
    return httpx.post(
        f"{front.url}/v1/segment", content=content, headers=headers, trust_env=False, timeout=120
    )


def test_a_declared_300_mb_body_is_refused_before_a_byte_of_it(
    front: RunningFront, backend: Backend
) -> None:
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 300000000\r\n\r\n")
        status, headers, body = client.answer()
    assert (status, body["error"]["code"]) == (413, "payload_too_large")
    assert str(MAX_BODY_BYTES) in body["error"]["message"]
    assert body["error"]["request_id"] == headers["x-request-id"]
    assert headers["connection"] == "close"
    assert len(backend.seen) == before


@pytest.mark.parametrize("length", [2**31, 3 * 10**9, 2**32 + 1, 10**18])
def test_a_length_beyond_32_bits_is_not_taken_for_a_small_one(
    front: RunningFront, backend: Backend, length: int
) -> None:
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n{}" % length)
        status, _, body = client.answer()
    assert (status, body["error"]["code"]) == (413, "payload_too_large")
    assert len(backend.seen) == before


def test_a_length_that_no_number_holds_is_refused(front: RunningFront, backend: Backend) -> None:
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n{}" % 10**30)
        assert client.read_all().startswith(b"HTTP/1.1 400")
    assert len(backend.seen) == before


def test_zeros_before_a_length_do_not_go_on(front: RunningFront, backend: Backend) -> None:
    """HAProxy writes the number anew: nobody behind it can read another."""
    with Raw(front.port) as client:
        client.send(HEAD + b"Content-Length: 00000000000000000005\r\n\r\n{}   ")
        assert client.answer()[0] == 422
    assert backend.headers()["content-length"] == "5"


def test_a_service_that_takes_bodies_beyond_what_haproxy_counts_gets_no_front() -> None:
    assert render(FrontSettings(), 10**9 - 1)
    with pytest.raises(FrontError, match="max_body_bytes is 1000000000"):
        render(FrontSettings(), 10**9)


@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_is_that_of_the_service(
    front: RunningFront, backend: Backend, excess: int
) -> None:
    answer = post(front, b" " * (MAX_BODY_BYTES + excess))
    assert answer.status_code == (413 if excess else 422)  # blanks are no JSON


@pytest.mark.parametrize("chunk", [1, MIB], ids=["a million chunks", "300 MB"])
def test_chunks_without_a_length_are_cut(front: RunningFront, backend: Backend, chunk: int) -> None:
    """One-byte chunks by the million, or few of a MiB: neither is kept, neither goes on."""
    before, memory = len(backend.seen), front.memory_bytes()
    piece = b"%x\r\n" % chunk + b"a" * chunk + b"\r\n"
    # The whole million in 64 KiB writes; of the large ones as many as make 300 MB.
    many = max(1, 65_536 // len(piece))
    rounds = 1_000_000 // many if chunk == 1 else 300
    with Raw(front.port) as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(rounds):
            if not client.send(piece * many):
                break
        received = client.read_all()
    assert received == b"" or b"length_required" in received
    assert front.memory_bytes() - memory <= GROWTH_BYTES
    assert len(backend.seen) == before


@pytest.mark.parametrize("size", [0, 2, 0x2800])
@pytest.mark.parametrize("padding", [0, 9_000, 13_000])
def test_chunks_are_refused_however_short_and_whatever_else_fills_the_buffer(
    front: RunningFront, backend: Backend, size: int, padding: int
) -> None:
    before = len(backend.seen)
    body = (b"%x\r\n" % size + b"a" * size + b"\r\n" if size else b"") + b"0\r\n\r\n"
    with Raw(front.port) as client:
        padded = HEAD + b"X-Padding: " + b"a" * padding + b"\r\n"
        client.send(padded + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        status, _, told = client.answer()
    assert (status, told["error"]["code"]) == (411, "length_required")
    assert len(backend.seen) == before


def test_a_post_without_any_body_is_served(front: RunningFront, backend: Backend) -> None:
    with Raw(front.port) as client:
        client.send(HEAD + b"\r\n")
        assert client.answer()[0] == 422


def test_a_body_shorter_than_it_says_is_ended_by_the_deadline(
    hasty_front: RunningFront, backend: Backend
) -> None:
    before = len(backend.seen)
    with Raw(hasty_front.port) as client:
        client.send(HEAD + b"Content-Length: 100\r\n\r\n{}")
        status, _, body = client.answer()
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert len(backend.seen) == before


def test_a_body_shorter_than_it_says_that_ends_is_not_served(
    front: RunningFront, backend: Backend
) -> None:
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(HEAD + b"Content-Length: 100\r\n\r\n{}")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read_all() == b""
    assert len(backend.seen) == before


def test_what_follows_a_body_longer_than_it_says_is_no_request(
    front: RunningFront, backend: Backend
) -> None:
    before = len(backend.seen)
    with Raw(front.port) as client:
        client.send(HEAD + b"Content-Length: 2\r\n\r\n{}{}{}\r\n\r\n")
        received = client.read_all()
    assert received.count(b"HTTP/1.1 422") == 1
    assert b"400" in received.rpartition(b"HTTP/1")[2].split(b"\r\n")[0]
    assert len(backend.seen) == before + 1


def test_a_compressed_body_is_refused_by_the_service(front: RunningFront) -> None:
    import gzip

    answer = post(front, gzip.compress(b"{}" + b" " * MIB), **{"content-encoding": "gzip"})
    assert answer.status_code == 422
    assert "compressed" in answer.json()["error"]["message"]


def test_deep_json_is_refused_by_the_service(front: RunningFront) -> None:
    deep = json.dumps({"prompts": 0}).replace("0", "[" * 120 + "]" * 120)
    answer = post(front, deep.encode())
    assert answer.status_code == 422
    assert len(answer.content) < 2_048
