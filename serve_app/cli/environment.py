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

from serve_app.edge.haproxy import BINARY_VARIABLE, EdgeError, find_haproxy
from serve_app.edge.render import REQUEST_ID_PATTERN

_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

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
        grep -q -F '{id_rule}' "$word" ||
            sed -i -e '/^frontend http_frontend *$/a\    {id_rule}' "$word"
    fi
    last=$word
done
exec {haproxy} -dS "$@"
"""


# Serve would answer with such an id as a second one, or fail to decode it.
_ID = "x-request-id"
_ID_RULE = (
    f"http-request del-header {_ID} "
    f"unless {{ req.fhdr_cnt({_ID}) eq 1 }} {{ req.fhdr({_ID}) -m reg {REQUEST_ID_PATTERN} }}"
)


def whole_environment(folder: Path) -> dict[str, str]:
    """This process' environment with `ray_environment` and the user's own token.

    What is set already is kept, but for a HAProxy of one's own, which is run by the program that
    mends its configuration.
    """
    switches = ray_environment(folder)
    if token := users_token():
        switches.pop("RAY_AUTH_TOKEN")
        switches |= token
    ours = {name: switches[name] for name in switches.keys() & {BINARY_VARIABLE}}
    return {**switches, **os.environ, **ours}


def users_token() -> dict[str, str]:
    """Ray's token of this user, in the file where Ray itself looks for it; made if need be.

    So whoever runs the service can call it from Python, and nobody else on the machine.  What is
    set in the environment goes before it.
    """
    if os.environ.keys() & set(_TOKENS):
        return {}
    file = Path.home() / ".ray" / "auth_token"
    if file.exists():
        file.chmod(0o600)  # Ray's own command makes one that all can read
    else:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as made:
            made.write(secrets.token_hex(32))
    return {"RAY_AUTH_TOKEN_PATH": str(file)}


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
    if os.environ.keys() & set(_TOKENS):
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _haproxy_on_loopback(folder: Path) -> dict[str, str]:
    """Ray's HAProxy shows statistics and metrics on all interfaces, with no switch against it.

    And its admin socket is open to all users, and it passes on a request id of any form.  So Ray
    is given a program that mends the configuration it was written before HAProxy reads it.

    It also runs HAProxy without ``splice`` (``-dS``), for which Ray asks: once HAProxy 2.8 has
    spliced a body to a connection that served a request before, it does not see the client leave.
    """
    try:
        haproxy = find_haproxy()
    except EdgeError:
        return {}  # Ray will say so
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ray-haproxy"
    text = _MENDED.format(haproxy=shlex.quote(haproxy), id_rule=_ID_RULE)
    program.write_text(text, encoding="utf-8")
    program.chmod(0o700)
    return {BINARY_VARIABLE: str(program)}


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
