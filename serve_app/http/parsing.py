"""Strict, bounded JSON, and the caller's timeout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from serve_app.core.errors import InvalidRequest
from serve_app.core.limits import Limits

TIMEOUT_HEADER = "x-request-timeout-seconds"


def load_json(text: bytes | bytearray | str, limits: Limits, field: str | None = None) -> Any:
    """Parse strict JSON: no NaN, no infinity, no number beyond a double, bounded in depth.

    Raises:
        InvalidRequest: the text is not such JSON; the error has ``field``.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    check_values([raw], limits, field)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequest(
            "malformed JSON (NaN, Infinity and text that is not UTF-8 are not JSON)", field
        ) from None
    level = list(_containers([value]))
    for _ in range(limits.max_json_depth):
        if not level:
            return value
        if any(isinstance(node, dict) and len(node) > limits.max_json_members for node in level):
            raise InvalidRequest(
                f"an object has more than {limits.max_json_members} members", field
            )
        level = [child for node in level for child in _containers(node)]
    raise InvalidRequest(f"the JSON is nested deeper than {limits.max_json_depth} levels", field)


def check_values(
    texts: Iterable[bytes | bytearray | str], limits: Limits, field: str | None = None
) -> None:
    """Check upper bounds of the number of values in JSON texts, before they are parsed.

    Raises:
        InvalidRequest: the texts together have too many; the error has ``field``.
    """
    containers = commas = 0
    for text in texts:
        containers += _count(text, "[") + _count(text, "{")
        commas += _count(text, ",")
    if containers > limits.max_json_containers:
        raise InvalidRequest(
            f"the JSON has more than {limits.max_json_containers} lists and objects", field
        )
    if containers + commas > limits.max_json_values:
        raise InvalidRequest(
            f"the JSON has more than {limits.max_json_values} values; send masks as base64",
            field,
        )


def _count(text: bytes | bytearray | str, mark: str) -> int:
    return text.count(mark) if isinstance(text, str) else text.count(mark.encode())


def _containers(node: Any) -> Iterable[Any]:
    """The lists and objects directly inside a list or object."""
    children = node.values() if isinstance(node, dict) else node
    return (child for child in children if isinstance(child, dict | list))


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """The caller's timeout in seconds; None: none.

    The header is that of Ray Serve's proxy, and invalid values are ignored as there.
    """
    try:
        seconds = float(headers.get(TIMEOUT_HEADER, ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
