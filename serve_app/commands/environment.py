"""How a Ray that serves this project on one machine is set up: environment of its processes.

docs/deploy.md says what each switch does and which to take over for a cluster.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
from pathlib import Path

from serve_app.front.program import FrontError, find_haproxy

_PORT_SWITCHES = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)

_MENDED = r"""#!/bin/sh
for word; do
    if [ "$last" = -f ]; then
        sed -i -E -e 's/^( *bind )\*?:/\1127.0.0.1:/' \
            -e 's/^( *stats socket .*) mode 666 /\1 mode 600 /' "$word"
    fi
    last=$word
done
exec {haproxy} "$@"
"""


def ray_environment(folder: Path) -> dict[str, str]:
    """Environment variables for ``ray start`` or ``serve run`` on a machine of its own.

    Args:
        folder: private, for HAProxy's own files; below it their paths must stay short (Unix
            sockets).
    """
    switches = {
        # Ray's processes take calls from whoever has this token, and what they are sent they
        # unpickle.  It is in the environment alone: neither written nor logged.
        "RAY_AUTH_MODE": "token",
        **_token(),
        # In spite of its name: this node's address is 127.0.0.1, so all of Ray listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Ray runs workers with the least priority: whatever else runs comes before the masks.
        "RAY_worker_niceness": "0",
        # Fewer threads to pass a request on, and gRPC instead of actor calls for small ones.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
    }
    if sys.platform == "linux":  # Ray brings HAProxy for Linux alone
        switches |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "haproxy-state"),
            # Long enough that HAProxy, here alone, has heard that the replica goes.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5.0",
            # Two Rays may share a machine.
            **dict(zip(_PORT_SWITCHES, map(str, free_ports(len(_PORT_SWITCHES))), strict=True)),
            **_haproxy_on_loopback(folder),
        }
    return switches


def _token() -> dict[str, str]:
    """A new one, unless whoever calls has one that Ray would find."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _haproxy_on_loopback(folder: Path) -> dict[str, str]:
    """Ray's HAProxy shows statistics and metrics on all interfaces, with no switch against it.

    And its admin socket is open to all users.  So Ray is given a program that mends the
    configuration it was written before HAProxy reads it.
    """
    try:
        haproxy = find_haproxy()
    except FrontError:
        return {}  # Ray will say so
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ray-haproxy"
    program.write_text(_MENDED.format(haproxy=shlex.quote(haproxy)), encoding="utf-8")
    program.chmod(0o700)
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(program)}


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
