"""How a Ray that serves this project on one machine is set up: environment of its processes.

docs/deploy.md says what each switch does and which to take over for a cluster.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

_PORT_SWITCHES = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def ray_environment(folder: Path) -> dict[str, str]:
    """Environment variables for ``ray start`` or ``serve run`` on a machine of its own.

    Args:
        folder: for HAProxy's own files; below it their paths must stay short (Unix sockets).
    """
    switches = {
        # Ray decides on its token authentication by itself unless it is told.
        "RAY_AUTH_MODE": "disabled",
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
            # Nobody balances load over this machine's replicas but this HAProxy.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1.0",
            # Two Rays may share a machine.
            **dict(zip(_PORT_SWITCHES, map(str, free_ports(len(_PORT_SWITCHES))), strict=True)),
        }
    return switches


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
