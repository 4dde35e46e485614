"""A request: an image (or its id), one task on it, and how it is to be handled."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator
from pydantic.fields import FieldInfo

from serve_app.core.errors import InvalidRequest, SamServeError, UnknownImage
from serve_app.core.limits import Limits
from serve_app.core.pixels import check_may_be_id, own_image
from serve_app.core.types import RgbArray
from serve_app.core.wire import Whole, Wire, as_json, as_tuple, fault

AUTO = "auto"
_MODE = b"RGB"
_PATTERN = re.compile(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})-[0-9a-f]{64}")
_TASKS: list[type[Task]] = []
_R = TypeVar("_R", "SegmentRequest", "EmbedRequest")

Members = Mapping[str, Any]
"""The members of a request's JSON object, parsed and not yet checked."""


class Task(Wire):
    """What is requested for an image.  Each capability has one subclass, its request model.

    In a request's JSON the task stands as the member ``name``, an object with the task's fields;
    a `flat` task's fields are members of the request itself.

    Attributes:
        name: of the capability, in requests, errors and documents.
        flat: see above.
        gives_logits: whether ``return_logits`` may be set.
        member_names: the names of `members`.
        requested_by: members of which any one requests the task; by default the required ones.
    """

    name: ClassVar[str]
    flat: ClassVar[bool] = False
    gives_logits: ClassVar[bool] = True
    member_names: ClassVar[frozenset[str]] = frozenset()
    requested_by: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        _TASKS.append(cls)
        cls.prefix = "" if cls.flat else cls.name
        cls.member_names = frozenset(cls.members())
        if "requested_by" not in cls.__dict__:
            needed = [name for name, field in cls.model_fields.items() if field.is_required()]
            cls.requested_by = frozenset(needed if cls.flat else [cls.name])

    @property
    def size(self) -> int:
        """How many prompts, texts or the like it holds."""
        return 1

    @classmethod
    def members(cls) -> dict[str, tuple[Any, FieldInfo]]:
        """Type and description of the task's members in a request."""
        if cls.flat:
            return {name: (f.annotation, f) for name, f in cls.model_fields.items()}
        about = (cls.__doc__ or "").splitlines()[0]
        field: Any = Field(None, description=f"`true`, or: {about}")
        return {cls.name: (bool | cls | None, field)}

    @classmethod
    def from_members(cls, members: Members, limits: Limits | None) -> Self:
        """The task from its members of a request.

        Args:
            limits: None: a Python caller's, whose request is checked where it is served.

        Raises:
            SamServeError: as the constructor.
        """
        if cls.flat:
            return cls.parse(dict(members), limits)
        value = members[cls.name]
        if value is not True and not isinstance(value, dict):
            raise InvalidRequest(f"{cls.name} must be true, false or a JSON object", cls.name)
        return cls.parse({} if value is True else value, limits)

    def to_members(self) -> dict[str, Any]:
        """The members of a request with this task, as JSON-like values."""
        fields = self.model_dump(mode="json", exclude_unset=True)
        return fields if self.flat else {self.name: fields}

    @classmethod
    def complete_form(cls, plain: dict[str, Any], members: Members) -> dict[str, Any]:
        """A form's plain fields with what a person leaves out; programs send JSON.

        Args:
            plain: members that have fields of their own.
            members: those inside of the field ``request``.
        """
        return plain

    @classmethod
    def count(cls, members: Members) -> tuple[int, int]:
        """Prompts and points of members that were not checked yet."""
        return 1, 0

    @classmethod
    def coerce(cls, value: Any) -> Self | None:
        """The task that a Python caller means by a plain ``value``; None: another type's."""
        return None


def _task(value: Any) -> Task:
    if isinstance(value, Task):
        return value
    if isinstance(value, dict):
        return _task_of_members(value)
    for kind in _TASKS:
        if (task := kind.coerce(value)) is not None:
            return task
    hint = ""
    if isinstance(value, str):
        hint = "; a text to look for is TextQuery(text=...)"
    elif isinstance(value, type) and issubclass(value, Wire):
        hint = f"; this is the class: {value.__name__}(...)"
    raise fault(
        InvalidRequest,
        f"task must be a Task: a Prompt, a list of Prompt, a TextQuery or Everything{hint}",
    )


def _task_of_members(members: dict[Any, Any]) -> Task:
    """The task that a request's JSON members are, which Python callers may give as a dict."""
    names = {name for name in members if members[name] is not None}
    kinds = [kind for kind in _TASKS if names & kind.requested_by]
    if len(kinds) != 1 or not names <= kinds[0].member_names:
        raise fault(
            InvalidRequest,
            "as a dict task must hold the members of one task, such as box, prompts or text",
        )
    return kinds[0].from_members({name: as_json(members[name]) for name in names}, None)


def _image(value: Any) -> bytes | RgbArray | str:
    try:
        return own_image(value)
    except SamServeError as exc:
        raise fault(type(exc), exc.message) from None


class Reading(NamedTuple):
    """How a file is read; see `ImageOptions`."""

    page: int = 0
    channel: tuple[int, ...] = ()
    scaling: Literal["image", "channel"] = "image"


def _one_or_three(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(value) not in (1, 3):
        raise fault(InvalidRequest, "channel must be one channel, or a list of one or three")
    return value


def _channels(value: Any) -> Any:
    """One channel, or three, as a tuple."""
    return (value,) if isinstance(value, int | float) else as_tuple(value)


class ImageOptions(Wire):
    """How an image file is to be read; for files alone, since an `image_id` names pixels."""

    page: Annotated[Whole, Field(ge=0, le=65_535)] | None = Field(
        None, description="page of a TIFF file, from 0 (the default)"
    )
    channel: (
        Annotated[
            tuple[Annotated[Whole, Field(ge=0, le=65_535)], ...],
            BeforeValidator(_channels, json_schema_input_type=int | list[int]),
            AfterValidator(_one_or_three),
        ]
        | None
    ) = Field(
        None,
        description="channel to read as gray, from 0, or three, such as `[3, 2, 1]`, to read as "
        "red, green and blue; by default RGB, or the first three channels, or the first",
    )
    scaling: Literal["image", "channel"] | None = Field(
        None,
        description="of samples that are not 8-bit: one stretch from the 1st to the 99th "
        "percentile for the `image` (the default), or one for each `channel`",
    )

    @property
    def reading(self) -> Reading:
        """The options with their defaults."""
        return Reading(self.page or 0, self.channel or (), self.scaling or "image")

    def check_is_of_file(self, image: bytes | RgbArray | str) -> None:
        """Raise `InvalidRequest` if they are given for an image that is no file."""
        for name in () if isinstance(image, bytes) else ImageOptions.model_fields:
            if getattr(self, name) is not None:
                raise InvalidRequest(
                    f"{name} says how a file is read: send the file, not pixels or an image_id",
                    name,
                )


def _of_file(request: _R) -> _R:
    try:
        request.check_is_of_file(request.image)
    except InvalidRequest as exc:
        raise fault(InvalidRequest, exc.message, exc.field or "") from None
    return request


class Options(ImageOptions):
    """How a request is to be handled, whatever its task."""

    variant: Annotated[str, Field(min_length=1, max_length=32)] = Field(
        AUTO, description="`auto` or a variant of `GET /v1/models`"
    )
    return_logits: bool = Field(
        False, description="add `low_res_logits`, base64 of 256 x 256 little-endian float16"
    )
    max_latency_ms: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None,
        description="choose a variant that is expected to respond within this time; "
        "`hints_unmet` if none could, `overloaded` if none can at present",
    )
    min_quality: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="choose a variant that has reached at least this mean IoU (see "
        "`GET /v1/models`); `hints_unmet` if there is none",
    )


class SegmentRequest(Options):
    """One request, the same for HTTP and for Python handles.

    It shares nothing with what it was made of: a camera may write to its buffer at once.

    Attributes:
        image: a file's bytes, an upright ``(H, W, 3) uint8`` RGB array, or the ``image_id`` of
            an earlier response; also what `serve_app.core.pixels` makes one of these.
        task: a `Task`; a `Prompt`, a list of them, and a task's JSON members as a dict are one,
            too.
        timeout_s: the caller's timeout in seconds: work for the request stops then.

    Raises:
        InvalidImage, UnknownImage: nothing that can be an image, or an image_id.
        InvalidRequest: an option out of its range, or no task.
    """

    unconverted = frozenset({"image", "task"})

    image: Annotated[bytes | RgbArray | str, PlainValidator(_image)]
    task: Annotated[Task, PlainValidator(_task)]
    timeout_s: Annotated[float, Field(gt=0)] | None = None

    _reads_file = model_validator(mode="after")(_of_file)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def within(self, limits: Limits) -> Self:
        """This request, its task within the limits.

        Raises:
            TooManyPrompts: the task is above a limit.
            InvalidRequest: the task gives no logits, which were requested.
        """
        if self.return_logits and not self.task.gives_logits:
            raise InvalidRequest(
                f"return_logits cannot be combined with {self.task.name}", "return_logits"
            )
        return self.model_copy(update={"task": self.task.within(limits)})


class EmbedRequest(ImageOptions):
    """An image to be made known; it is copied as in `SegmentRequest`, and has a timeout as it."""

    unconverted = frozenset({"image"})

    image: Annotated[bytes | RgbArray | str, PlainValidator(_image)]
    variant: Annotated[str, Field(min_length=1, max_length=32)] = AUTO
    timeout_s: Annotated[float, Field(gt=0)] | None = None

    _reads_file = model_validator(mode="after")(_of_file)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def of(cls, image: Any, variant: str) -> EmbedRequest:
        """``image`` if it is such a request, or one of it and ``variant``.

        Raises:
            InvalidRequest: there is a variant beside a request, which has its own.
        """
        if not isinstance(image, cls):
            return cls(image=image, variant=variant)
        if variant != AUTO:
            raise InvalidRequest(
                "an EmbedRequest has its own variant: give none beside it", "variant"
            )
        return image


def image_id(pixels: NDArray[np.uint8]) -> str:
    """``"{width}x{height}-{sha256}"`` of an upright ``(H, W, 3) uint8`` RGB image.

    The same picture has the same id whatever file it came in, and nobody can choose an id that
    belongs to another picture.  The hash frames mode, width and height before the pixels, so that
    two images with the same bytes in another shape differ (the mistake of CVE-2025-46722).
    """
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(struct.pack(">B3sQQ", len(_MODE), _MODE, width, height))
    digest.update(np.ascontiguousarray(pixels).data)
    return f"{width}x{height}-{digest.hexdigest()}"


def parse_image_id(text: str) -> tuple[int, int]:
    """``(width, height)`` in pixels of the image that ``text`` names.

    Raises:
        UnknownImage: ``text`` is not of the one spelling that `image_id` gives.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        check_may_be_id(text)
        raise UnknownImage(
            "this is not an image_id: send back, unchanged, the one of an earlier response",
            "image_id",
        )
    return int(match[1]), int(match[2])
