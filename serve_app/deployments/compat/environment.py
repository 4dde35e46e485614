"""Ray's environment variables for a service on one machine, and corrections to its HAProxy.

docs/deploy.md explains each variable and says which to take over for a cluster.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from serve_app.edge.haproxy import EdgeError, find_haproxy
from serve_app.edge.settings import REQUEST_ID_PATTERN

_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "haproxy.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "haproxy-state",
}

# Variables with a fixed value, each with its purpose.
_CONSTANT = {
    # Ray's processes unpickle what they receive, so callers need a token.
    "RAY_AUTH_MODE": ("token", "token authentication of Ray's own processes"),
    # Despite its name: the node's address is 127.0.0.1, so all of Ray listens only there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": ("0", "Ray listens on 127.0.0.1 only"),
    "RAY_USAGE_STATS_ENABLED": ("0", "no usage statistics"),
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": ("0", "workers use the interpreter in use"),
    # Ray starts workers with the lowest priority: any other process would delay requests.
    "RAY_worker_niceness": ("0", "replicas with normal priority"),
    # Fewer threads per request, and gRPC instead of actor calls for small messages.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": ("0", "one event loop per replica"),
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": ("0", "one event loop per replica"),
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": ("1", "gRPC for small calls between replicas"),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
        "serve_app.deployments.compat.proxy:middlewares",
        "errors of Ray's proxies in the service's form",
    ),
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": (
        str(2**30),
        "the limit on messages over gRPC",
    ),
}
_HAPROXY_CONSTANT = {
    "RAY_SERVE_ENABLE_HA_PROXY": ("1", "HAProxy instead of the Python proxy"),
    "RAY_SERVE_HAPROXY_NBTHREAD": ("1", "one HAProxy thread"),
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": ("0", "no metrics page of HAProxy"),
    # Long enough for one HAProxy to learn that a replica is shutting down.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": ("5.0", "draining of an ingress replica"),
}

HAPROXY_SWITCHES: Mapping[str, str] = {
    **{name: purpose for name, (_, purpose) in _HAPROXY_CONSTANT.items()},
    **dict.fromkeys(_FILES, "files of HAProxy in a private folder"),
    **dict.fromkeys(_PORTS, "two Rays on one machine"),
    _BINARY: "corrections to HAProxy's configuration",
}
"""Those of Ray's HAProxy, which exists for Linux only."""

SWITCHES: Mapping[str, str] = {
    **{name: purpose for name, (_, purpose) in _CONSTANT.items()},
    **dict.fromkeys(_TOKENS, "the token of Ray's own processes"),
    **HAPROXY_SWITCHES,
}
"""Ray's environment variables in use, each with its purpose."""

_WRAPPER = r"""#!/bin/sh
for word; do
    if [ "$last" = -f ]; then
        sed -i -E -e 's/^( *bind )\*?:/\1127.0.0.1:/' \
            -e 's/^( *stats socket .*) mode 666 /\1 mode 600 /' "$word"
        grep -q -F '{id_rule}' "$word" || sed -i -E -f {corrections} "$word"
    fi
    last=$word
done
exec {haproxy} -dS "$@"
"""


# Serve would respond with a second header of such an id, or fail to decode it.
_ID = "x-request-id"
_ID_RULE = (
    f"http-request del-header {_ID} "
    f"unless {{ req.fhdr_cnt({_ID}) eq 1 }} {{ req.fhdr({_ID}) -m reg {REQUEST_ID_PATTERN} }}"
)

# HAProxy's own errors, which Ray's configuration turns into plain text or a page: code and message.
_ERRORS = {
    400: ("malformed_request", "the request is not valid HTTP/1.1"),
    404: ("not_found", "there is no such route, or the service is still starting"),
    408: ("request_timeout", "the request took too long to arrive"),
    502: ("bad_gateway", "the service closed the connection before its response was complete"),
    503: ("overloaded", "no replica of the service can be reached; retry later"),
    504: ("deadline_exceeded", "the service did not respond in time"),
}
_OWN_ID = "txn.own_request_id"


def _error_text(status: int) -> str:
    code, message = _ERRORS[status]
    given = f"%[var({_OWN_ID})]"
    body = f'{{"error":{{"code":"{code}","message":"{message}","request_id":"{given}"}}}}'
    more = " hdr retry-after 1" if status == 503 else ""
    return f"content-type application/json lf-string '{body}' hdr {_ID} {given}{more}"


def _corrections(folder: Path) -> str:
    """A script for ``sed -E``, and the files that it inserts."""
    rules = [
        _ID_RULE,
        f"http-request set-var({_OWN_ID}) req.fhdr({_ID}) if {{ req.fhdr({_ID}) -m found }}",
        f"http-request set-var({_OWN_ID}) uuid() unless {{ var({_OWN_ID}) -m found }}",
    ]
    errors = [f"http-error status {status} {_error_text(status)}" for status in _ERRORS]
    for name, lines in (("frontend", rules), ("defaults", errors)):
        text = "".join(f"    {line}\n" for line in lines)
        (folder / f"{name}.cfg").write_text(text, encoding="utf-8")
    not_found = f"http-request return status 404 {_error_text(404)}".replace("&", r"\&")
    return "\n".join(
        [
            f"/^frontend http_frontend *$/r {folder}/frontend.cfg",
            f"/^defaults *$/r {folder}/defaults.cfg",
            f"/^ *errorfile ({'|'.join(map(str, _ERRORS))}) /d",
            r"s|^( *)http-request return status 404 content-type text/plain .*$|\1"
            + f"{not_found}|",
            "",
        ]
    )


def whole_environment(folder: Path) -> dict[str, str]:
    """This process' environment with `ray_environment` and the user's own token.

    Variables that are already set are kept, except for another HAProxy: it is run by the wrapper
    that corrects its configuration.
    """
    switches = ray_environment(folder)
    if token := users_token():
        switches.pop("RAY_AUTH_TOKEN")
        switches |= token
    environment = {**switches, **os.environ}
    if _BINARY in switches:
        environment[_BINARY] = switches[_BINARY]
    return environment


def users_token() -> dict[str, str]:
    """The variable for Ray's token of this user, a file that is created if it is missing.

    Ray reads the same file, so only the user of the service's processes can call it from Python.
    Empty if the environment sets a token.
    """
    if os.environ.keys() & set(_TOKENS):
        return {}
    file = Path.home() / ".ray" / "auth_token"
    if file.exists():
        file.chmod(0o600)  # Ray's own command makes it readable for all
    else:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as created:
            created.write(secrets.token_hex(32))
    return {"RAY_AUTH_TOKEN_PATH": str(file)}


def ray_environment(folder: Path) -> dict[str, str]:
    """Environment variables for ``ray start`` or ``serve run`` on a machine of its own.

    Args:
        folder: Private folder for HAProxy's files; its path must be short (Unix sockets).
    """
    switches = {name: value for name, (value, _) in _CONSTANT.items()}
    if not os.environ.keys() & set(_TOKENS):
        # Only in the environment: neither written nor logged.
        switches["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if sys.platform == "linux":
        switches |= {name: value for name, (value, _) in _HAPROXY_CONSTANT.items()}
        switches |= {name: str(folder / file) for name, file in _FILES.items()}
        switches |= zip(_PORTS, map(str, free_ports(len(_PORTS))), strict=True)
        switches |= _haproxy_wrapper(folder)
    return switches


def _haproxy_wrapper(folder: Path) -> dict[str, str]:
    """A program that corrects Ray's HAProxy configuration and then runs HAProxy.

    Ray's has statistics and metrics pages on all interfaces and an admin socket that is open to
    all users, without switches for them, it passes on request ids of any form, and its own errors
    are plain text.

    HAProxy runs without ``splice`` (``-dS``), which Ray's configuration enables: HAProxy 2.8 does
    not notice that a client disconnects after it has spliced a body to a reused connection.
    """
    try:
        haproxy = find_haproxy()
    except EdgeError:
        return {}  # Ray reports it
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ray-haproxy"
    corrections = folder / "corrections.sed"
    corrections.write_text(_corrections(folder), encoding="utf-8")
    text = _WRAPPER.format(
        haproxy=shlex.quote(haproxy), id_rule=_ID_RULE, corrections=shlex.quote(str(corrections))
    )
    program.write_text(text, encoding="utf-8")
    program.chmod(0o700)
    return {_BINARY: str(program)}


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def ray_command(name: str) -> str:
    """Path of one of Ray's executables, ``serve`` or ``ray``, of this Python environment."""
    return str(Path(sysconfig.get_path("scripts")) / name)
