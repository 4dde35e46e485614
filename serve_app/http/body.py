"""Reads a request's body, JSON or a form, into JSON-like values and files.

A form is equivalent to a JSON body: its field ``request`` may contain the whole body, and other
fields contain single members, so ``curl -F file=@dog.jpg -F text=dog`` is a request.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import orjson
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve_app.core.capability import Capability
from serve_app.core.errors import InvalidRequest, TooManyPrompts
from serve_app.core.limits import Limits
from serve_app.core.wire import form_of, unknown_field
from serve_app.http.request_info import KEPT_TIMEOUT_HEADER, TIMEOUT_HEADER

_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")
_JSON_FILES = ("request", "requests")
"""Fields with JSON text; clients may also send them as files."""


_NO_TIME_S = 1e-6
"""The time left of a timeout that has passed: whatever waits for something then ends."""


class _InMemory(MultiPartParser):
    """Keeps files in memory instead of spooling them to disk: they are read completely anyway.

    `BodyLimit` bounds their total size.
    """

    spool_max_size = sys.maxsize

    def on_part_end(self) -> None:
        # The parser would read other bytes as Latin-1: another text than was meant.
        if self._current_part.file is None:
            self._current_part.data.decode("utf-8")
        super().on_part_end()


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form: values of its plain fields and contents of its files, by name."""

    fields: Mapping[str, list[str]]
    files: Mapping[str, list[bytes]]


@dataclass(frozen=True, slots=True)
class Received:
    """A request before validation: JSON-like members, and files.

    Attributes:
        requests: the members for each file; None: the same members for all files.
    """

    members: dict[str, Any]
    files: list[bytes]
    requests: list[Any] | None = None


def _content_type(request: Request) -> str:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("a compressed body (content-encoding) is not accepted")
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _check_charset(request: Request) -> None:
    """Raise `InvalidRequest` unless a form's texts are UTF-8.

    The form parser would use any Python codec that the header names, and some take time quadratic
    in the text's length.  It parses the header with the same function.
    """
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", _CHARSETS[0]).lower() not in _CHARSETS:
        raise InvalidRequest("a form must be UTF-8; its content-type names another charset")


async def read_form(request: Request, limits: Limits, texts: Collection[str] = ()) -> Form:
    """Read a multipart form, bounded in files, fields and their sizes.

    Args:
        texts: fields that programs may send as files, as a browser's form does with a JSON Blob.

    Raises:
        InvalidRequest: not a multipart form in UTF-8, malformed, or its JSON texts have too many
            values in total.
        TooManyPrompts: more files than a batch may hold.
    """
    if _content_type(request) != "multipart/form-data":
        raise InvalidRequest("send multipart/form-data")
    _check_charset(request)
    fields: dict[str, list[str]] = {}
    files: dict[str, list[bytes]] = {}
    try:
        # More files than allowed: the field "request" and texts may be sent as files.
        form = await _InMemory(
            request.headers,
            request.stream(),
            max_files=limits.max_batch_images + 1 + len(texts),
            max_fields=limits.max_form_fields,
            max_part_size=limits.max_field_bytes,
        ).parse()
    except UnicodeDecodeError:
        raise InvalidRequest("a form's fields must be UTF-8") from None
    except (MultiPartException, ValueError) as exc:
        if isinstance(exc, MultiPartException) and exc.message.startswith("Too many files"):
            raise TooManyPrompts(f"at most {limits.max_batch_images} files") from None
        raise InvalidRequest(
            f"broken multipart/form-data, more than {limits.max_form_fields} fields, "
            f"or a field of more than {limits.max_field_bytes} bytes"
        ) from None
    try:
        for name, value in form.multi_items():
            # Browsers send an empty field, and a file without a name, for what is left out.
            if isinstance(value, UploadFile):
                content = await value.read()
                if name in texts:
                    if text := _text(content, name, limits):
                        fields.setdefault(name, []).append(text)
                elif content or value.filename:
                    files.setdefault(name, []).append(content)
            elif value.strip():
                fields.setdefault(name, []).append(value)
    finally:
        await form.close()
    json_files = [files.get(name, []) for name in _JSON_FILES]
    check_values(chain(*fields.values(), *json_files), limits)
    return Form(fields, files)


def _text(content: bytes, field: str, limits: Limits) -> str:
    """A field's text that was sent as a file; it has the limits of a field."""
    if len(content) > limits.max_field_bytes:
        raise InvalidRequest(f"{field} has more than {limits.max_field_bytes} bytes", field)
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field} must be a UTF-8 text, not a file", field) from None


def the_only(values: list[Any], field: str) -> Any:
    """The only value of a field; `InvalidRequest` if it is repeated or missing."""
    if len(values) != 1:
        raise InvalidRequest(f"{field} is given {len(values)} times; give it once", field)
    return values[0]


@cache
def form_fields(body: type[BaseModel]) -> Mapping[str, frozenset[str]]:
    """The members of a JSON body that a form may have as fields, each with its JSON types."""
    schema = body.model_json_schema()
    definitions = schema.get("$defs", {})
    return {
        name: _types(member, definitions)
        for name, member in schema["properties"].items()
        if name != "image"  # in a form the image is a file
    }


def _types(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> frozenset[str]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    inner = [_types(one, definitions) for one in schema.get("anyOf", ())]
    own = {schema["type"]} if "type" in schema else {"string"} if "enum" in schema else set()
    return frozenset(own).union(*inner) - {"null"}


def _member(values: list[str], field: str, types: frozenset[str], form: str, limits: Limits) -> Any:
    """The JSON-like value of a form field, for a member of these JSON types and this form.

    A flag is `true` or `false`; texts are one text, several fields with one each, or a JSON list.
    """
    if types == {"string"}:
        return the_only(values, field)
    if "boolean" in types:
        flag = the_only(values, field).strip().lower()
        if flag in ("true", "false"):
            return flag == "true"
        if types == {"boolean"}:
            raise InvalidRequest(f"{field} must be true or false", field)
    elif "string" in types:
        if len(values) > 1:
            return values
        if not values[0].lstrip().startswith("["):
            return values[0]
    return load_json(the_only(values, field), limits, field, _right_form(field, types, form))


def _right_form(field: str, types: frozenset[str], form: str) -> str:
    """The sentence about a field whose text is not JSON."""
    if types <= {"number", "integer"}:
        return f"{field} must be a number"
    if "object" in types and "boolean" in types:
        return f"{field} must be true, false or a JSON object"
    return f"{field} must be JSON" + (f", such as {field}={form}" if form else "")


async def receive(
    request: Request,
    limits: Limits,
    file_field: str,
    body: type[BaseModel],
    capabilities: Sequence[Capability] = (),
) -> Received:
    """Read a JSON body, or a form with its files in ``file_field``.

    Args:
        body: model of the JSON body; a form may have each of its members as a field.
        capabilities: complete the members that a form omits.

    Raises:
        InvalidRequest: another content type, malformed JSON or form, an unknown form field.
    """
    kind = _content_type(request)
    if kind == "application/json":
        # One buffer: a list of many small chunks would need much more memory.
        text = bytearray()
        async for piece in request.stream():
            text += piece
        members = load_json(text, limits)
        if not isinstance(members, dict):
            raise InvalidRequest("the request must be a JSON object")
        return Received(members, [])
    if kind != "multipart/form-data":
        raise InvalidRequest("send application/json or multipart/form-data as content-type")
    types = form_fields(body)
    form = await read_form(request, limits, types.keys())
    known = {file_field, *_JSON_FILES}
    unknown = form.fields.keys() - types.keys() - known
    if unknown or not form.files.keys() <= known:
        fault = unknown_field(unknown, [*types, *known]) if unknown else "unknown file"
        raise InvalidRequest(
            f"{fault} (the image is the file {file_field!r}, the other form fields are request, "
            f"{', '.join(types)})"
        )
    if file_field in form.fields:
        raise InvalidRequest(
            f"{file_field} must be a file (with a filename), such as {file_field}=@x.jpg in curl",
            file_field,
        )
    members = _request_field(form, "request", {}, limits)
    if not isinstance(members, dict):
        raise InvalidRequest("request must be a JSON object", "request")
    requests = _request_field(form, "requests", None, limits)
    if requests is not None and not isinstance(requests, list):
        raise InvalidRequest("requests must be a JSON list", "requests")
    plain: dict[str, Any] = {}
    for name, kinds in types.items():
        if name in form.fields:
            if name in members:
                raise InvalidRequest(f"{name} is given both inside and outside `request`", name)
            looks = form_of(body, name)
            plain[name] = _member(form.fields[name], name, kinds, looks, limits)
    for capability in capabilities:
        plain = capability.task.complete_form(plain, members)
    members = {**members, **plain}
    if requests is not None and members:
        raise InvalidRequest("requests cannot be combined with other fields", "requests")
    return Received(members, form.files.get(file_field, []), requests)


def _request_field(form: Form, name: str, default: Any, limits: Limits) -> Any:
    """The JSON of the field ``name``, one of `_JSON_FILES`."""
    parts: list[Any] = [*form.fields.get(name, []), *form.files.get(name, [])]
    return load_json(the_only(parts, name), limits, name) if parts else default


def load_json(
    text: bytes | bytearray | str,
    limits: Limits,
    field: str | None = None,
    otherwise: str = "",
) -> Any:
    """Parse strict JSON: no NaN, no infinity, no number beyond a double, bounded in depth.

    Args:
        otherwise: the message if it is not JSON, instead of one that says where.

    Raises:
        InvalidRequest: the text is not such JSON; the error has ``field``.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    check_values([raw], limits, field)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(_malformed(raw, exc.pos, otherwise), field) from None
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


def _malformed(raw: bytes | bytearray, place: int, otherwise: str) -> str:
    """The message about a text that is no JSON from its character ``place`` on."""
    text = raw.decode("utf-8", "replace")
    if text[place : place + 1] == "'":
        return "malformed JSON: names and texts need double quotes, not single ones"
    if otherwise:
        return otherwise
    if not text[place:].strip():
        return "malformed JSON: it ends too early"
    return (
        f"malformed JSON at its character {place + 1} "
        "(NaN, Infinity and text that is not UTF-8 are not JSON)"
    )


def check_values(
    texts: Iterable[bytes | bytearray | str], limits: Limits, field: str | None = None
) -> None:
    """Raise `InvalidRequest` if JSON texts together have too many values; they are not parsed."""
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
            f"the JSON has more than {limits.max_json_values} values; send masks as base64", field
        )


def _count(text: bytes | bytearray | str, mark: str) -> int:
    return text.count(mark) if isinstance(text, str) else text.count(mark.encode())


def _containers(node: Any) -> Iterable[Any]:
    """The lists and objects directly inside a list or object."""
    children = node.values() if isinstance(node, dict) else node
    return (child for child in children if isinstance(child, dict | list))


def time_left_s(headers: Mapping[str, str], arrived: float) -> float | None:
    """What is left of the caller's timeout, in seconds; None: the caller sets none.

    Args:
        arrived: the instant of ``time.perf_counter`` at which the request began.
    """
    timeout_s = timeout_of(headers)
    if timeout_s is None:
        return None
    return max(timeout_s - (time.perf_counter() - arrived), _NO_TIME_S)


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """The caller's timeout in seconds, or None; the header and its reading are Ray Serve's."""
    try:
        seconds = float(headers.get(KEPT_TIMEOUT_HEADER) or headers.get(TIMEOUT_HEADER, ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
