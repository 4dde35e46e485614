"""The switches of a Ray that serves this project on one machine."""

from __future__ import annotations

import asyncio
import http.client
import json
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from serve_app.deployments.compat.environment import (
    SWITCHES,
    free_ports,
    ray_environment,
    users_token,
    whole_environment,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_ray_knows_every_switch_and_takes_its_value(tmp_path: Path) -> None:
    """A switch that a new Ray renames would do nothing, silently."""
    switches = ray_environment(tmp_path)
    told = subprocess.run(
        [
            sys.executable, "-c",
            "from ray.serve._private import constants as c; import json; print(json.dumps("
            "{k: getattr(c, k) for k in dir(c) if k.startswith('RAY_SERVE_')}, default=str))",
        ],
        env=switches, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    known = json.loads(told)
    for name, value in switches.items():
        if name.startswith("RAY_SERVE_"):
            taken = int(known[name]) if isinstance(known[name], bool) else known[name]
            assert str(taken) == value, name


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_the_table_has_every_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    private = {**ray_environment(tmp_path), **users_token()}
    assert private.keys() == SWITCHES.keys()


def test_two_rays_do_not_share_ports_or_files(tmp_path: Path) -> None:
    one, two = ray_environment(tmp_path / "one"), ray_environment(tmp_path / "two")
    own = {k for k in one if k.endswith(("_PORT", "_LOC", "_PATH", "_BASE", "_FILE"))}
    own.remove("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
    assert own
    assert all(one[name] != two[name] for name in own)
    assert len({one[name] for name in own if name.endswith("_PORT")}) == 4


def test_the_documents_explain_every_switch(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    explained = {name.removeprefix("RAY_SERVE_HAPROXY") for name in ray_environment(tmp_path)}
    unexplained = {name for name in explained if name not in text}
    assert unexplained <= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV"}


def test_each_run_has_a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    one, two = ray_environment(tmp_path), ray_environment(tmp_path)
    assert {one["RAY_AUTH_MODE"], two["RAY_AUTH_MODE"]} == {"token"}
    assert len({one["RAY_AUTH_TOKEN"], two["RAY_AUTH_TOKEN"]}) == 2
    assert len(one["RAY_AUTH_TOKEN"]) >= 32


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_is_there_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "own")
    assert "RAY_AUTH_TOKEN" not in ray_environment(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_haproxy_reads_what_ray_wrote_with_its_pages_on_loopback(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        f"global\n    stats socket {tmp_path}/h.sock mode 666 level admin\n"
        "defaults\n    mode http\n    timeout client 1s\n    timeout connect 1s\n"
        "    timeout server 1s\n"
        "frontend prometheus\n    bind :9101\n"
        "frontend http_frontend\n    bind 0.0.0.0:8000\n"
        "listen stats\n  bind *:8404\n  stats enable\n"
    )
    program = ray_environment(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    for _ in range(2):  # Ray lets it check a file before it runs it
        subprocess.run([program, "-c", "-f", str(config)], check=True, capture_output=True)
    told = config.read_text()
    lines = told.splitlines()
    assert lines[lines.index("frontend http_frontend") + 1].split()[:3] == [
        "http-request", "del-header", "x-request-id"
    ]  # fmt: skip
    assert told.count("http-request del-header x-request-id") == 1, "one rule"
    assert told.count("http-error status 503") == 1
    assert "    bind 127.0.0.1:9101\n" in told
    assert "  bind 127.0.0.1:8404\n" in told
    assert "    bind 0.0.0.0:8000\n" in told, "where the service listens is the operator's choice"
    assert "mode 600 level admin" in told


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_a_request_id_that_is_not_plain_does_not_reach_serve(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout client 99s\n    timeout connect 99s\n"
        f"    timeout server 99s\nfrontend http_frontend\n    bind 127.0.0.1:{port}\n"
        "    http-request return status 200 content-type text/plain "
        "lf-string '%[req.fhdr_cnt(x-request-id)] %[req.fhdr(x-request-id)]'\n"
    )
    program = ray_environment(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]

    def arrived(*ids: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.putrequest("GET", "/")
            for sent in ids:
                connection.putheader("x-request-id", sent)
            connection.endheaders()
            return connection.getresponse().read()
        finally:
            connection.close()

    with subprocess.Popen([program, "-db", "-f", str(config)]) as haproxy:
        try:
            for _ in range(600):
                try:
                    arrived()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            for plain in (b"A-1.b:c_2", b"x" * 64):
                assert arrived(plain) == b"1 " + plain
            for odd in (b"a b", b"x" * 65, b"a\xff", b"a,b", b""):
                assert arrived(odd).startswith(b"0 "), odd
            assert arrived(b"a", b"b").startswith(b"0 ")
        finally:
            haproxy.terminate()


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_haproxys_own_errors_are_the_services(tmp_path: Path) -> None:
    """The lines that Ray writes for them, with a server where nobody listens."""
    page = tmp_path / "500.http"
    page.write_text(
        "HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain\r\n\r\nInternal\n"
    )
    (port, nobody) = free_ports(2)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout client 99s\n    timeout connect 1s\n"
        f"    timeout server 99s\n    errorfile 502 {page}\n    errorfile 503 {page}\n"
        f"    errorfile 504 {page}\nfrontend http_frontend\n    bind 127.0.0.1:{port}\n"
        "    acl is_a path_beg /a\n    use_backend a if is_a\n    default_backend default_backend\n"
        "backend default_backend\n    http-request return status 404 content-type text/plain "
        "lf-string \"Path \\'%[path]\\' not found. Ping http://.../-/routes\"\n"
        f"backend a\n    server s 127.0.0.1:{nobody}\n"
    )
    program = ray_environment(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]

    def told(path: str, headers: dict[str, str]) -> tuple[int, str | None, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            error = json.loads(response.read())["error"]
            assert response.headers["x-request-id"] == error["request_id"]
            return response.status, response.headers["retry-after"], error
        finally:
            connection.close()

    with subprocess.Popen([program, "-db", "-f", str(config)]) as haproxy:
        try:
            asyncio.run(_listens(port))
            status, _, error = told("/elsewhere", {})
            assert (status, error["code"]) == (404, "not_found")
            assert error["request_id"]
            status, wait, error = told("/a", {"x-request-id": "mine"})
            assert (status, wait, error["code"]) == (503, "1", "overloaded")
            assert error["request_id"] == "mine"
        finally:
            haproxy.terminate()


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
async def test_who_leaves_is_noticed_whatever_was_sent_before(tmp_path: Path) -> None:
    """With `splice`, as Ray asks for it, HAProxy misses who leaves after more than a buffer."""
    front, back = free_ports(2)
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode http\n    timeout client 600s\n    timeout connect 60s\n"
        "    timeout server 600s\n    option abortonclose\n    option splice-request\n"
        f"frontend http_frontend\n    bind 127.0.0.1:{front}\n    default_backend b\n"
        f"backend b\n    http-reuse always\n    server s 127.0.0.1:{back}\n"
    )
    size, again = 40_000, asyncio.Queue[bool]()
    gone = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer who asks for /quick; who asks for /slow waits until the connection ends."""
        for turn in count():
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(size)
            if b"/slow" in head:
                again.put_nowait(turn > 0)
                with suppress(ConnectionResetError):
                    await reader.read()
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        gone.release()
        writer.close()

    async def send(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", front)
        head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {size}\r\n\r\n"
        writer.write(head.encode() + bytes(size))
        await writer.drain()
        return reader, writer

    program = ray_environment(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    haproxy = await asyncio.create_subprocess_exec(program, "-db", "-f", str(config))
    try:
        async with asyncio.timeout(240), await asyncio.start_server(serve, "127.0.0.1", back):
            await _listens(front)
            for reader, writer in [await send("/quick") for _ in range(4)]:
                await reader.readuntil(b"ok")
                writer.close()
            clients = [await send("/slow") for _ in range(4)]
            assert any([await again.get() for _ in clients]), "no connection was used again"
            for _, writer in clients:
                writer.transport.abort()
            async with asyncio.timeout(120):  # long before HAProxy itself would end them
                for _ in clients:
                    await gone.acquire()
    finally:
        haproxy.kill()
        await haproxy.wait()


async def _listens(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")
def test_a_haproxy_of_ones_own_is_mended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own haproxy"
    own.write_text("#!/bin/sh\necho own\n")
    own.chmod(0o700)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(own))
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "7")
    switches = whole_environment(tmp_path / "rays")
    program = Path(switches["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert program != own
    assert shlex.quote(str(own)) in program.read_text()
    assert subprocess.run([str(program)], check=True, capture_output=True).stdout == b"own\n"
    assert switches["RAY_SERVE_HAPROXY_NBTHREAD"] == "7", "what is set already is kept"


def test_who_serves_can_call_and_nobody_else_reads_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    one, two = (whole_environment(tmp_path / name) for name in ("one", "two"))
    file = Path(one["RAY_AUTH_TOKEN_PATH"])
    assert file == tmp_path / ".ray" / "auth_token" == Path(two["RAY_AUTH_TOKEN_PATH"])
    assert len(file.read_text()) >= 32
    assert file.stat().st_mode & 0o077 == 0
    assert "RAY_AUTH_TOKEN" not in one
    # One that Ray's own command made, for all to read, is kept and closed.
    file.chmod(0o644)
    file.write_text("t" * 32)
    whole_environment(tmp_path / "three")
    assert (file.read_text(), file.stat().st_mode & 0o077) == ("t" * 32, 0)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    mine = whole_environment(tmp_path / "four")
    assert mine["RAY_AUTH_TOKEN"] == "mine"
    assert "RAY_AUTH_TOKEN_PATH" not in mine
