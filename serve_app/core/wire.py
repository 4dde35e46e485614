"""The base of all request types: one model is the Python type, the JSON, its checks and its limits.

A `Wire` is built from Python values (``Prompt(box=[1, 2, 3, 4])``) or from parsed JSON
(`Wire.parse`) by the same validators, so that HTTP, handles and the client accept and refuse the
same values, with the same error code at the same field.  Deployment limits are declared on the
fields (`AtMost`) and applied by `Wire.within`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from serve_app.core.errors import InvalidPrompt, InvalidRequest, SamServeError, TooManyPrompts
from serve_app.core.limits import Limits

_LARGEST = 1e9
"""Largest magnitude of a coordinate or logit: from about 1e30 on, finite input becomes NaN inside
the model."""

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")

_SMALL_ARRAY = 4096
"""Arrays up to this size are checked number by number, as JSON lists are."""

_MOST_GUESSES, _LONGEST_GUESS = 4, 32
"""How many unknown names, and characters of each, are compared with the known ones."""

_FIELD_NAMES: set[str] = set()

_ELSEWHERE = {
    "model": "variant", "model_type": "variant", "model_name": "variant", "query": "text",
    "prompt": "text", "phrase": "text", "caption": "text", "label": "text", "class": "text",
    "point": "point_coords", "points": "point_coords", "coords": "point_coords",
    "labels": "point_labels", "mask": "mask_input", "output": "format",
}  # fmt: skip
"""Fields of ours by their names in comparable interfaces."""

_PLAIN = {
    "missing": "is required",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "too_short": "must have {min_length} or more items, not {actual_length}",
    "too_long": "must have {max_length} or fewer items, not {actual_length}",
}
"""What is said instead of pydantic's messages, by the type of its error."""


def fault(kind: type[SamServeError], message: str, field: str = "") -> PydanticCustomError:
    """An error to raise in a validator; ``field`` is the one at fault inside of the value."""
    about = {"message": message, "field": field, "kind": kind}
    return PydanticCustomError(kind.code, "{message}", about)


class Wire(BaseModel):
    """A part of a request: frozen, strict (nothing is coerced), unknown fields are refused.

    Attributes:
        error: the error that a fault of this type is reported as.
        prefix: where the type stands in a request, for the field named in an error.
        unconverted: fields of which the Python values are checked as they are.

    Raises:
        SamServeError: of the kind ``error``, with the field at fault.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    error: ClassVar[type[SamServeError]] = InvalidRequest
    prefix: ClassVar[str] = ""
    unconverted: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, /, **values: Any) -> None:
        keep = self.unconverted
        given = {k: v if k in keep else as_json(v) for k, v in values.items()}
        try:
            self.__pydantic_validator__.validate_python(given, self_instance=self)
        except ValidationError as exc:
            raise type(self).typed_error(exc) from None

    # Nested models are validated in one pass by pydantic, not through this constructor.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        _FIELD_NAMES.update(cls.model_fields)

    @classmethod
    def parse(cls, value: Any, limits: Limits | None = None) -> Self:
        """Build from parsed JSON; with ``limits``, long lists are refused before their items.

        Raises:
            SamServeError: as the constructor.
        """
        try:
            return cls.model_validate(value, context=limits)
        except ValidationError as exc:
            raise cls.typed_error(exc) from None

    def within(self, limits: Limits) -> Self:
        """This value if it is within the limits; a default above a limit is lowered to it.

        Raises:
            TooManyPrompts: a list or number is above its limit.
        """
        lowered: dict[str, Any] = {}
        prefix = f"{self.prefix}." if self.prefix else ""
        for name, bound in _bounds(type(self)):
            value = getattr(self, name)
            if (message := bound.exceeded(value, limits, name)) is None:
                continue
            if name in self.model_fields_set:
                raise TooManyPrompts(message, f"{prefix}{name}")
            lowered[name] = getattr(limits, bound.limit)
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Wire) and (inner := value.within(limits)) is not value:
                lowered[name] = inner
            elif isinstance(value, tuple):
                for index, item in enumerate(value):
                    try:
                        if isinstance(item, Wire):
                            item.within(limits)
                    except SamServeError as exc:
                        raise exc.at(f"{prefix}{name}[{index}]") from None
        return self.model_copy(update=lowered) if lowered else self

    @classmethod
    def typed_error(cls, exc: ValidationError) -> SamServeError:
        """The first fault as an error of ours; it holds nothing of the input."""
        faults = exc.errors(include_url=False, include_input=False)
        found = max(faults, key=_telling)
        loc = _known(found["loc"])
        about = found.get("ctx", {})
        kind: type[SamServeError] | None = about.get("kind")
        if kind is not None and about["field"]:
            loc.append(about["field"])
        steps = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
        field = f"{cls.prefix}{steps}".removeprefix(".")
        if kind is not None:
            return kind(found["msg"], field or None)
        where = field or "the request"
        if found["type"] == "extra_forbidden":
            names = _type_at(cls, found["loc"]).model_fields
            text = unknown_field([str(found["loc"][-1])], names)
        elif found["type"] in ("model_type", "model_attributes_type", "dict_type"):
            text = f"{where} must be a JSON object"
        else:
            text = f"{where} {_in_words(found)}{_its_form(cls, found['loc'])}"
        return cls.error(text, field or None)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pydantic's own state is several times as large and slow; prompts travel by the thousand.
        return _restored, (type(self), self.__dict__, self.model_fields_set)


def _restored(cls: type[Wire], values: dict[str, Any], given: set[str]) -> Wire:
    """A pickled value as it was; it was validated when it was built."""
    value = cls.__new__(cls)
    for item in values.values():
        if isinstance(item, np.ndarray):
            item.flags.writeable = False
    object.__setattr__(value, "__dict__", values)
    for name, state in (("extra", None), ("private", None), ("fields_set", given)):
        object.__setattr__(value, f"__pydantic_{name}__", state)
    return value


def unknown_field(given: Iterable[str], known: Iterable[str]) -> str:
    """The message about names that are not known, with the known ones near to one of them.

    The names themselves are a caller's, and not repeated.
    """
    known = sorted(known)
    hint = ""
    for name in sorted(given, key=len)[:_MOST_GUESSES]:
        plain = name[:_LONGEST_GUESS].lower().replace("-", "_")
        elsewhere = _ELSEWHERE.get(plain, "")
        near = [elsewhere] if elsewhere in known else []
        near += difflib.get_close_matches(plain, known, 2)
        if near := near or [other for other in known if plain and other.startswith(plain)]:
            hint = f": did you mean {' or '.join(dict.fromkeys(near[:2]))}?"
            break
    return f"the request has an unknown field{hint or '; see /docs for the known ones'}"


def _telling(fault: ErrorDetails) -> tuple[bool, int, bool]:
    """How much a fault says: a union has those of each branch, and the best is of the right type
    and deepest; a misspelt field is missing under its own name, too."""
    kind, depth = fault["type"], len(_known(fault["loc"]))
    return not kind.endswith("_type"), depth - (kind == "missing"), kind == "extra_forbidden"


def _in_words(fault: ErrorDetails) -> str:
    """What a value must be, for people who send JSON."""
    if fault["type"] in _PLAIN:
        return _PLAIN[fault["type"]].format(**fault.get("ctx", {}))
    message = fault["msg"]
    _, separator, rest = message.partition(" should ")
    return f"must {rest}" if separator else f"is wrong: {message[:1].lower()}{message[1:]}"


def _its_form(cls: type[Wire], loc: tuple[int | str, ...]) -> str:
    """How the field at a place of a request looks, if its description says so."""
    names = [part for part in loc if isinstance(part, str)]
    for length in range(len(names), 0, -1):
        owner, name = _type_at(cls, tuple(names[: length - 1])), names[length - 1]
        if name in owner.model_fields:
            looks = form_of(owner, name)
            return f"; {name} is {looks}" if looks else ""
    return ""


@cache
def form_of(owner: type[BaseModel], name: str) -> str:
    """How a field's JSON looks, from its description or example; empty: they do not say."""
    field = owner.model_fields[name]
    if shape := re.search(r"`([\[{][^`]*)`", field.description or ""):
        return shape[1]
    return json.dumps(field.examples[0]) if field.examples else ""


def _type_at(cls: type[Wire], loc: tuple[int | str, ...]) -> type[Wire]:
    """The innermost of our types at a place of a request."""
    for part in loc:
        field = cls.model_fields.get(part) if isinstance(part, str) else None
        cls = (field and _wire_in(field.annotation)) or cls
    return cls


def _wire_in(annotation: Any) -> type[Wire] | None:
    if isinstance(annotation, type) and issubclass(annotation, Wire):
        return annotation
    return next(filter(None, map(_wire_in, get_args(annotation))), None)


def _known(loc: tuple[int | str, ...]) -> list[int | str]:
    """``loc`` without names that the caller invented and those of types in unions."""
    return [part for part in loc if isinstance(part, int) or part in _FIELD_NAMES]


def as_json(value: Any) -> Any:
    """Python and NumPy values in the form that JSON has; large arrays stay as they are."""
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except Exception:
            # It cannot be converted, such as a tensor on a GPU: the field's type refuses it.
            return value
        if array.size > _SMALL_ARRAY:
            return array
        return (array.astype(np.uint8) if array.dtype.kind == "b" else array).tolist()
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class AtMost:
    """Metadata of a field: one of `Limits` bounds its length, or its value if it is a number.

    Attributes:
        limit: the limit's name.
        what: what is counted; empty: the field is a number.
        each: the length of each item is bounded, not that of the list.
    """

    limit: str
    what: str = ""
    each: bool = False

    def exceeded(self, value: Any, limits: Limits, name: str | None) -> str | None:
        """The message if ``value`` is above the limit."""
        most: int = getattr(limits, self.limit)
        if not self.what:
            over = isinstance(value, int) and value > most
            return f"{name} is at most {most} here" if over else None
        if not isinstance(value, list | tuple | np.ndarray):
            return None
        if self.each:
            size = max((len(item) for item in value if isinstance(item, str)), default=0)
        else:
            size = len(value)
        return f"at most {most} {self.what}" if size > most else None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def check(value: Any, inner: Callable[[Any], Any], info: ValidationInfo) -> Any:
            # A list before its items are built; a number after it was converted.
            checked = inner(value) if not self.what else value
            limits = info.context
            if isinstance(limits, Limits) and (
                message := self.exceeded(checked, limits, info.field_name)
            ):
                raise fault(TooManyPrompts, message)
            return inner(value) if self.what else checked

        return core_schema.with_info_wrap_validator_function(check, handler(source))


@cache
def _bounds(cls: type[Wire]) -> tuple[tuple[str, AtMost], ...]:
    """The limits of a type's fields, by the field's name."""
    return tuple(
        (name, item)
        for name, field in cls.model_fields.items()
        for item in [*field.metadata, *_metadata(field.annotation)]
        if isinstance(item, AtMost)
    )


def _metadata(annotation: Any) -> list[Any]:
    """Metadata inside ``Annotated[...] | None``."""
    return [item for part in get_args(annotation) for item in getattr(part, "__metadata__", ())]


@dataclass(frozen=True)
class Array:
    """Metadata of a NumPy field: read-only, of one shape and dtype, given as lists or an array.

    Attributes:
        json: the type of its JSON form.
        dtype: of the array.
        shape: of the array; None: any length.
        allowed: the only values that it may hold; empty: any.
    """

    json: Any
    dtype: Any
    shape: tuple[int | None, ...]
    allowed: tuple[int, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def validate(value: Any, inner: Callable[[Any], Any], info: ValidationInfo) -> Any:
            name = info.field_name or "the array"
            value = self.read(value, name)
            if not isinstance(value, np.ndarray):
                value = inner(value)
            return self._array(value, name)

        return core_schema.with_info_wrap_validator_function(
            validate,
            handler.generate_schema(self.json),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )

    def read(self, value: Any, name: str) -> Any:
        """``value`` of the field ``name`` before it is validated."""
        return value

    def write(self, array: NDArray[Any]) -> Any:
        """The JSON form."""
        return array.tolist()

    def _array(self, value: Any, name: str) -> NDArray[Any]:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "iuf":
            raise fault(InvalidPrompt, f"{name} must hold numbers only, not {value.dtype.name}")
        array = np.array(value, dtype=np.float64)
        if array.ndim != len(self.shape) or any(
            n is not None and n != m for n, m in zip(self.shape, array.shape, strict=True)
        ):
            shape = " x ".join("N" if n is None else str(n) for n in self.shape)
            raise fault(InvalidPrompt, f"{name} must have the shape {shape}")
        if not np.isfinite(array).all():
            raise fault(InvalidPrompt, f"{name} must not hold NaN or infinite numbers")
        if array.size and np.abs(array).max() > _LARGEST:
            raise fault(InvalidPrompt, f"{name} holds a number out of range")
        if self.allowed and not np.isin(array, self.allowed).all():
            raise fault(InvalidPrompt, f"{name} must hold {self.allowed} only")
        array = array.astype(self.dtype)
        array.flags.writeable = False
        return array


@dataclass(frozen=True)
class Base64Array(Array):
    """An `Array` with base64 as a further JSON form: of little-endian float16 or float32."""

    def read(self, value: Any, name: str) -> Any:
        if not isinstance(value, str):
            return value
        sides = [n or 0 for n in self.shape]
        raw = decoded_base64(value)
        cells = int(np.prod(sides))
        dtype = {cells * 2: "<f2", cells * 4: "<f4"}.get(len(raw))
        if dtype is None:
            shape = " x ".join(map(str, sides))
            raise fault(
                InvalidPrompt, f"{name} as base64 must be {shape} float16 or float32 numbers"
            )
        return np.frombuffer(raw, dtype=dtype).reshape(sides)

    def write(self, array: NDArray[Any]) -> Any:
        # As text a tenth of the size of nested lists.
        return base64.b64encode(array.astype("<f4").tobytes()).decode()


def decoded_base64(text: str) -> bytes:
    """Decode base64, standard or URL-safe, with or without padding and line breaks; for validators.

    Raises:
        PydanticCustomError: it is not base64.
    """
    try:
        # Not split and join, which make an object of each piece of a hostile text.
        plain = text.encode("ascii").translate(None, b" \t\r\n")
        if not (b"+" in plain or b"/" in plain):
            plain = plain.translate(_STANDARD_ALPHABET)
        if not plain.endswith(b"="):
            plain += b"=" * (-len(plain) % 4)
        return binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        raise fault(InvalidRequest, "not valid base64") from None


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 1.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_tuple(value: Any) -> Any:
    """JSON lists for fields that are tuples."""
    return tuple(value) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Share = Annotated[float, Field(ge=0, le=1)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
