"""The harness of the hops benchmark, against a server that only says what it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import orjson
import pytest

from serve_tools.bench.hops import BARE, HTTP, OVER, PARTS, HopsEffort, parts_of, run
from serve_tools.bench.photos import Photo

STAGES = {
    "parse": 0.1, "predict": 0.9, "embed": 0.1, "decode_masks": 0.6, "model": 0.4, "total": 1.2,
}  # fmt: skip
PHOTO = Photo("black", np.zeros((4, 6, 3), np.uint8), b"a file")


class _Server(ThreadingHTTPServer):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: list[str] = []
        self.bodies: list[bytes] = []
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/embed":
            answer = {"image_id": "6x4-abc"}
        else:
            self.server.events.append("http")
            self.server.bodies.append(body)
            answer = {"timings_ms": STAGES}
        content = orjson.dumps(answer)
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_parts_make_up_the_whole() -> None:
    parts = parts_of(1.5, STAGES)
    assert parts.keys() == PARTS.keys()
    assert sum(parts.values()) == pytest.approx(1.5 - STAGES["embed"])
    assert parts == pytest.approx(
        {"front": 0.3, "ingress": 0.3, "handle": 0.2, "queue": 0.2, "model": 0.4}
    )


def test_both_take_their_turn_in_every_round(server: _Server) -> None:
    def decode(prompts: int) -> None:
        server.events.append(f"bare {prompts}")

    url = f"http://127.0.0.1:{server.server_port}"
    effort = HopsEffort(rounds=2, calls=3, callers=(1, 2))
    rows = run(url, decode, PHOTO, effort=effort)

    warm, turn = ["http"] * 2 + ["bare 1"] * 2, ["bare 1"] * 3 + ["http"] * 3
    assert server.events[:16] == warm + turn * 2
    assert server.events[16:] == ["http"] * 4 + ["bare 2"] * 2 + (["bare 2"] * 3 + ["http"] * 6) * 2
    asked = orjson.loads(server.bodies[0])
    assert asked["image_id"] == "6x4-abc"
    assert asked["point_coords"] == [[3.0, 2.0]]

    by_case: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in rows:
        by_case.setdefault(row.case, {})[row.system] = row.rounds
    assert len(by_case) == 2
    for systems in by_case.values():
        assert systems.keys() == {HTTP, BARE, OVER, *PARTS}
        assert all(len(rounds) == 2 for rounds in systems.values())
        assert np.subtract(systems[HTTP], systems[BARE]) == pytest.approx(systems[OVER])
        assert systems["model"] == pytest.approx((0.4, 0.4))


def test_a_server_that_fails_is_no_result(server: _Server) -> None:
    def decode(prompts: int) -> None:
        server.status = 503

    with pytest.raises(RuntimeError, match="503"):
        run(f"http://127.0.0.1:{server.server_port}", decode, PHOTO)
