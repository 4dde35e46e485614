"""Text from outside to checked values: strict JSON, and models that fail with typed errors."""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from serve_app.core.errors import (
    InvalidPrompt,
    InvalidRequest,
    SamServeError,
    TooManyPrompts,
    UnknownFormat,
)
from serve_app.core.limits import Limits
from serve_app.http.schemas import FIELD_NAMES

TIMEOUT_HEADER = "x-request-timeout-seconds"

_PROMPT_MEMBERS = {"prompts", "point_coords", "point_labels", "box", "mask_input"}

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_json(text: bytes | bytearray | str, limits: Limits, field: str | None = None) -> Any:
    """Parse strict JSON: no NaN, no infinity, no number beyond a double, bounded in depth.

    Raises:
        InvalidRequest: it is not that, told at ``field``.
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
    """Count the values of JSON texts before they are parsed; more than these cannot be in them.

    Raises:
        InvalidRequest: all together hold too many, told at ``field``.
    """
    containers = commas = 0
    for text in texts:
        containers += _count(text, "[") + _count(text, "{")
        commas += _count(text, ",")
    if containers > limits.max_json_containers:
        raise InvalidRequest(
            f"the JSON holds more than {limits.max_json_containers} lists and objects", field
        )
    if containers + commas > limits.max_json_values:
        raise InvalidRequest(
            f"the JSON holds more than {limits.max_json_values} values; send masks as base64",
            field,
        )


def _count(text: bytes | bytearray | str, mark: str) -> int:
    return text.count(mark) if isinstance(text, str) else text.count(mark.encode())


def _containers(node: Any) -> Iterable[Any]:
    """The lists and objects directly inside a list or object."""
    children = node.values() if isinstance(node, dict) else node
    return (child for child in children if isinstance(child, dict | list))


def decode_base64(text: str, field: str) -> bytes:
    """Decode standard base64, with or without line breaks.

    Raises:
        InvalidRequest: it is not base64, told at ``field``.
    """
    try:
        # Not split and join, which make an object of each piece of a hostile text.
        plain = text.encode("ascii").translate(None, b" \t\r\n")
        return binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        raise InvalidRequest(f"{field} is not valid base64", field) from None


def validated(model: type[ModelT], value: Any, limits: Limits) -> ModelT:
    """``value`` as ``model``, within the limits.

    Raises:
        SamServeError: of the kind and at the field of the first fault.
    """
    if not isinstance(value, dict):
        raise InvalidRequest("the request must be a JSON object")
    try:
        return model.model_validate(value, context=limits)
    except ValidationError as exc:
        # The input is left out here as it could come back with the text.
        faults = exc.errors(include_url=False, include_input=False, include_context=False)
    # A union has faults of each branch: most to the point is the one of the right type, deepest.
    fault = max(faults, key=lambda f: (not f["type"].endswith("_type"), len(_known(f["loc"]))))
    raise _typed(_known(fault["loc"]), fault["type"], fault["msg"])


def _known(loc: tuple[int | str, ...]) -> list[int | str]:
    """``loc`` without the names that the caller made up, and those of types in unions."""
    return [part for part in loc if isinstance(part, int) or part in FIELD_NAMES]


def _typed(loc: list[int | str], kind: str, text: str) -> SamServeError:
    """The error for one fault; ``text`` is pydantic's and does not hold the input."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    field = field.removeprefix(".")
    if kind == "too_many":
        return TooManyPrompts(text, field)
    if loc[:1] == ["format"]:
        return UnknownFormat("format must be rle, polygon, png, npz or geojson", field)
    if kind == "extra_forbidden":
        text = "the request holds an unknown field; see /docs for the known ones"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        text = f"{field or 'the request'} must be a JSON object"
    else:
        text = f"{field or 'the request'}: {text[:1].lower()}{text[1:]}"
    if loc and loc[0] in _PROMPT_MEMBERS:
        return InvalidPrompt(text, field)
    return InvalidRequest(text, field or None)


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """How long the caller waits, in seconds; None where it does not say.

    The header is the one that Ray Serve's proxy obeys, and what it takes for none is none here.
    """
    try:
        seconds = float(headers.get(TIMEOUT_HEADER, ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
