"""Bodies that are too large or whose size is wrong or missing: none costs the edge memory."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from .conftest import MAX_BODY_BYTES
from .running import HANG_GUARD_S, Backend, RawClient, RunningEdge

MIB = 2**20
GROWTH_BYTES = 16 * MIB
HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def post(edge: RunningEdge, content: bytes, **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json", **headers}
    return httpx.post(
        f"{edge.url}/v1/segment",
        content=content,
        headers=headers,
        trust_env=False,
        timeout=HANG_GUARD_S,
    )


def test_a_declared_300_mb_body_is_rejected_before_it_is_sent(
    edge: RunningEdge, backend: Backend
) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 300000000\r\n\r\n")
        status, headers, body = client.response()
    assert (status, body["error"]["code"]) == (413, "payload_too_large")
    assert str(MAX_BODY_BYTES) in body["error"]["message"]
    assert body["error"]["request_id"] == headers["x-request-id"]
    assert headers["connection"] == "close"
    assert len(backend.received) == before


@pytest.mark.parametrize("length", [2**31, 3 * 10**9, 2**32 + 1, 10**18])
def test_a_length_beyond_32_bits_does_not_overflow_to_a_small_one(
    edge: RunningEdge, backend: Backend, length: int
) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n{}" % length)
        status, _, body = client.response()
    assert (status, body["error"]["code"]) == (413, "payload_too_large")
    assert len(backend.received) == before


def test_a_length_beyond_64_bits_is_rejected(edge: RunningEdge, backend: Backend) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n{}" % 10**30)
        assert client.read_all().startswith(b"HTTP/1.1 400")
    assert len(backend.received) == before


def test_leading_zeros_of_a_length_are_not_forwarded(edge: RunningEdge, backend: Backend) -> None:
    """HAProxy writes the number itself, so that the service cannot read another one."""
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Content-Length: 00000000000000000005\r\n\r\n{}   ")
        assert client.response()[0] == 422
    assert backend.headers()["content-length"] == "5"


@pytest.mark.parametrize("excess", [0, 1])
def test_the_size_limit_is_the_services(edge: RunningEdge, backend: Backend, excess: int) -> None:
    response = post(edge, b" " * (MAX_BODY_BYTES + excess))
    assert response.status_code == (413 if excess else 422)  # spaces are not JSON


@pytest.mark.parametrize("chunk", [1, MIB], ids=["a million chunks", "300 MB"])
def test_chunked_bodies_are_rejected_early(edge: RunningEdge, backend: Backend, chunk: int) -> None:
    """A million chunks of one byte, or 300 of a MiB: neither buffered nor forwarded."""
    before, memory = len(backend.received), edge.memory_bytes()
    piece = b"%x\r\n" % chunk + b"a" * chunk + b"\r\n"
    # In writes of 64 KiB, or of one large chunk.
    many = max(1, 65_536 // len(piece))
    rounds = 1_000_000 // many if chunk == 1 else 300
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(rounds):
            if not client.send(piece * many):
                break
        received = client.read_all()
    assert received == b"" or b"length_required" in received
    assert edge.memory_bytes() - memory <= GROWTH_BYTES
    assert len(backend.received) == before


@pytest.mark.parametrize("size", [0, 2, 0x2800])
@pytest.mark.parametrize("padding", [0, 9_000, 13_000])
def test_chunked_bodies_are_rejected_whatever_fits_in_the_buffer(
    edge: RunningEdge, backend: Backend, size: int, padding: int
) -> None:
    before = len(backend.received)
    chunks = (b"%x\r\n" % size + b"a" * size + b"\r\n" if size else b"") + b"0\r\n\r\n"
    with RawClient(edge.port) as client:
        padded = HEAD + b"X-Padding: " + b"a" * padding + b"\r\n"
        client.send(padded + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        status, _, body = client.response()
    assert (status, body["error"]["code"]) == (411, "length_required")
    assert len(backend.received) == before


def test_a_post_without_a_body_is_served(edge: RunningEdge, backend: Backend) -> None:
    with RawClient(edge.port) as client:
        client.send(HEAD + b"\r\n")
        assert client.response()[0] == 422


@pytest.mark.slow
def test_a_body_shorter_than_declared_times_out(
    impatient_edge: RunningEdge, backend: Backend
) -> None:
    before = len(backend.received)
    with RawClient(impatient_edge.port) as client:
        client.send(HEAD + b"Content-Length: 100\r\n\r\n{}")
        status, _, body = client.response()
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert len(backend.received) == before


def test_a_body_that_ends_before_its_declared_length_is_not_forwarded(
    edge: RunningEdge, backend: Backend
) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Content-Length: 100\r\n\r\n{}")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read_all() == b""
    assert len(backend.received) == before


def test_data_after_the_declared_length_is_not_a_request(
    edge: RunningEdge, backend: Backend
) -> None:
    before = len(backend.received)
    with RawClient(edge.port) as client:
        client.send(HEAD + b"Content-Length: 2\r\n\r\n{}{}{}\r\n\r\n")
        received = client.read_all()
    assert received.count(b"HTTP/1.1 422") == 1
    assert b"400" in received.rpartition(b"HTTP/1")[2].split(b"\r\n")[0]
    assert len(backend.received) == before + 1


def test_a_compressed_body_is_rejected_by_the_service(edge: RunningEdge) -> None:
    import gzip

    response = post(edge, gzip.compress(b"{}" + b" " * MIB), **{"content-encoding": "gzip"})
    assert response.status_code == 422
    assert "compressed" in response.json()["error"]["message"]


def test_deep_json_is_rejected_by_the_service(edge: RunningEdge) -> None:
    deep = json.dumps({"prompts": 0}).replace("0", "[" * 120 + "]" * 120)
    response = post(edge, deep.encode())
    assert response.status_code == 422
    assert len(response.content) < 2_048
