"""A request's members (JSON, or a form turned into it) → the request of a capability.

The capabilities' request models do the checking (`serve_app.core.wire`); here are the members that
every request has, and the question which capability is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, FailFast, Field, PlainValidator, create_model

from serve_app.core.capability import Capability
from serve_app.core.errors import InvalidImage, InvalidRequest, TooManyPrompts, UnknownFormat
from serve_app.core.limits import Limits
from serve_app.core.request import EmbedRequest, ImageOptions, Members, Options, SegmentRequest
from serve_app.core.types import PromptResult
from serve_app.core.wire import AtMost, Wire, decoded_base64, fault, unknown_field
from serve_app.http.formats import FORMATS


class ImageFields(Wire):
    """The image, for requests that bring no file: `image` or `image_id`."""

    image: str | None = Field(
        None, description="the image file as base64, or as a `data:` URL; URLs are never fetched"
    )
    image_id: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="the `image_id` of an earlier response, instead of the image"
    )


class EmbedFields(ImageFields, ImageOptions):
    """Make an image known."""

    variant: Annotated[str, Field(min_length=1, max_length=32)] = Field(
        "auto", description="`auto` or a variant of `GET /v1/models`"
    )


def _format(value: Any) -> str:
    if not isinstance(value, str) or value not in FORMATS:
        raise fault(UnknownFormat, f"format must be one of {', '.join(FORMATS)}")
    return value


class CommonFields(ImageFields, Options):
    """What every request may hold beside its task."""

    format: Annotated[
        str, PlainValidator(_format), Field(json_schema_extra={"enum": list(FORMATS)})
    ] = Field(
        "rle",
        description="`rle`: COCO's compressed run lengths; `polygon`: polygons, each a list of "
        "rings, the exterior first; `png`: base64 of a 0/255 gray PNG; `geojson`: one "
        "FeatureCollection in image pixels; `npz`: NumPy's archive",
    )


_NEVER_NULL = {n for n, field in CommonFields.model_fields.items() if field.default is not None}


class BatchBody(Wire):
    """Many requests in one call; a faulty one fails alone."""

    items: Annotated[list[Any], Field(min_length=1), AtMost("max_batch_images", "items")] = Field(
        description="requests, each with its image"
    )


class Call(NamedTuple):
    """A request as it goes to the service, and the format of its response."""

    request: SegmentRequest
    format: str


@cache
def request_body(route: str, capabilities: tuple[Capability, ...]) -> type[BaseModel]:
    """The JSON body of a route, for the OpenAPI document and for the meaning of form fields."""
    members: dict[str, Any] = {}
    for capability in capabilities:
        for member, (annotation, field) in capability.task.members().items():
            # How an item is validated says nothing of its JSON, and some of it is not hashable.
            metadata = [item for item in field.metadata if not isinstance(item, FailFast)]
            typed = Annotated[(annotation, *metadata)] if metadata else annotation
            members[member] = (
                typed | None,
                Field(None, description=field.description, examples=field.examples),
            )
    names = " | ".join(capability.task.name for capability in capabilities)
    name = f"{''.join(part.capitalize() for part in route.split('/'))}Body"
    about = f"An image, and exactly one of {names}."
    return create_model(name, __base__=CommonFields, __doc__=about, **members)


def parse_call(
    capabilities: Sequence[Capability],
    members: Any,
    file: bytes | None,
    limits: Limits,
    timeout_s: float | None = None,
) -> Call:
    """The request that members and an image file make.

    Args:
        capabilities: of the route.
        timeout_s: the caller's timeout, from its header.

    Raises:
        SamServeError: of the kind and at the field of the first fault.
    """
    if not isinstance(members, dict):
        raise InvalidRequest("the request must be a JSON object")
    known = {*CommonFields.model_fields, *(n for c in capabilities for n in c.task.member_names)}
    if unknown := members.keys() - known:
        raise InvalidRequest(unknown_field(unknown, known))
    given = _given(members)
    rest = {name: value for name, value in given.items() if name not in CommonFields.model_fields}
    common = CommonFields.parse({n: v for n, v in given.items() if n not in rest}, limits)
    capability = _requested(capabilities, rest)
    own = {name: value for name, value in rest.items() if name in capability.task.member_names}
    task = capability.task.from_members(own, limits)
    if common.format != "rle" and capability.result is not PromptResult:
        raise UnknownFormat(f"{capability.task.name} gives no masks: format must be rle", "format")
    request = SegmentRequest.model_construct(  # all of it is checked already
        image=image_of(common, file),
        task=task,
        timeout_s=timeout_s,
        **{name: getattr(common, name) for name in Options.model_fields},
    )
    if common.model_fields_set & ImageOptions.model_fields.keys():
        request.check_is_of_file(request.image)
    return Call(request, common.format)


def _requested(capabilities: Sequence[Capability], members: Members) -> Capability:
    """The one capability that the members request.

    Raises:
        InvalidRequest: none or several, or members of another task beside it.
    """
    # `everything: false` requests nothing, as if it were left out.
    switches = {c.task.name for c in capabilities if not c.task.flat}
    names = {name for name in members if members[name] is not False or name not in switches}
    found = [c for c in capabilities if names & c.task.requested_by]
    if len(found) != 1:
        raise InvalidRequest(_exactly_one(capabilities, found, names))
    if foreign := names - found[0].task.member_names:
        owners = {name: c.task.name for c in capabilities for name in c.task.members()}
        name = next(name for name in owners if name in foreign)
        raise InvalidRequest(f"{name} requires {owners[name]}", name)
    return found[0]


def _exactly_one(
    capabilities: Sequence[Capability], found: Sequence[Capability], names: set[str]
) -> str:
    """The message about members that request no task, or several."""
    which = []
    for task in (capability.task for capability in capabilities):
        other = ", ".join(sorted(task.requested_by - {task.name}))
        which.append(f"{task.name} ({other})" if other else task.name)
    several = names & frozenset().union(*(c.task.requested_by for c in found))
    instead = f", not {' and '.join(sorted(several))} together" if several else ""
    return f"give exactly one of {' | '.join(which)}{instead}"


def parse_embed(
    members: dict[str, Any], file: bytes | None, timeout_s: float | None = None
) -> EmbedRequest:
    """Read an embed request; raises as `parse_call` does."""
    fields = EmbedFields.parse(_given(members))
    options = fields.model_dump(include={"variant", *ImageOptions.model_fields}, exclude_unset=True)
    return EmbedRequest(image=image_of(fields, file), timeout_s=timeout_s, **options)


def check_totals(capabilities: Sequence[Capability], items: Iterable[Any], limits: Limits) -> int:
    """The number of prompts and texts in a batch, before its items are checked one by one.

    Raises:
        TooManyPrompts: more prompts or points than the limits of one call.
    """
    prompts = points = 0
    for item in items:
        if not isinstance(item, dict):
            continue  # reported as an error of that item
        given = _given(item)
        task = next((c.task for c in capabilities if given.keys() & c.task.requested_by), None)
        count = (1, 0) if task is None else task.count(given)
        prompts, points = prompts + count[0], points + count[1]
    for total, most, what in (
        (prompts, limits.max_total_prompts, "prompts"),
        (points, limits.max_total_points, "points"),
    ):
        if total > most:
            raise TooManyPrompts(f"{total} {what} in one call, but the limit is {most}")
    return prompts


def image_of(fields: ImageFields, file: bytes | None) -> bytes | str:
    """The image: a file's bytes, or an ``image_id``.

    Raises:
        InvalidRequest: none or several images, or not base64.
        InvalidImage: an empty file.
    """
    given = [value for value in (file, fields.image, fields.image_id) if value is not None]
    if len(given) != 1:
        raise InvalidRequest("give exactly one image: a file, image (base64) or image_id", "image")
    if file is not None:
        return image_file(file)
    if fields.image_id is not None:
        return fields.image_id
    return image_file(_decoded_image(fields.image or ""), "image")


def image_file(content: bytes, field: str = "file") -> bytes:
    """``content``; `InvalidImage` if it is empty."""
    if not content:
        raise InvalidImage("the file is empty", field)
    return content


def _decoded_image(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequest("a data: URL must be of the form data:image/…;base64,…", "image")
    elif text[:8].lower().startswith(("http://", "https://")):
        raise InvalidRequest("image must be base64; URLs are not fetched", "image")
    try:
        return decoded_base64(text)
    except ValueError:
        raise InvalidRequest(
            "image is not valid base64; paths and URLs are not opened", "image"
        ) from None


def _given(members: Members) -> dict[str, Any]:
    """The members without those that are null where null stands for nothing."""
    return {n: v for n, v in members.items() if v is not None or n in _NEVER_NULL}
