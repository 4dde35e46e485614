"""The parts of the OpenAPI document that FastAPI cannot see.

Bodies are read by `serve_app.http.body` and results are written by `serve_app.http.formats`, from
the models of the capabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.responses import Response
from typing_extensions import TypedDict

from serve_app.core import errors
from serve_app.core.capability import Capabilities
from serve_app.core.types import EmbedResult, Mask, PromptResult, SegmentResult
from serve_app.http.body import form_fields
from serve_app.http.errors import RETRYABLE, ErrorBody, ErrorEnvelope
from serve_app.http.formats import GEOJSON_TYPE, JSON_TYPE, NPZ_TYPE
from serve_app.http.gate import KEY_HEADER
from serve_app.http.request_info import PROBES, TIMEOUT_HEADER
from serve_app.http.requests import BatchBody, EmbedFields, request_body
from serve_app.http.stream import NdjsonResponse

_REF = "#/components/schemas/{model}"
_FILE = {"type": "string", "format": "binary", "description": "an image file"}
_BLANK = {"examples": [""]}
"""Of a form field: Swagger UI leaves it empty, which counts as absent, instead of `string`."""

_FILES: dict[str, Any] = {"type": "array", "items": _FILE, "minItems": 1}

_EXAMPLES: dict[str, dict[str, Any]] = {
    "a point": {
        "image_id": "640x480-5d41…",
        "prompts": [{"point_coords": [[320, 240]], "point_labels": [1]}],
    },
    "boxes": {
        "image_id": "640x480-5d41…",
        "prompts": [{"box": [10, 20, 200, 300]}, {"box": [220, 40, 400, 310]}],
        "multimask_output": False,
        "format": "polygon",
    },
    "texts": {"image_id": "640x480-5d41…", "text": ["dog", "red car"]},
    "everything": {"image_id": "640x480-5d41…", "everything": {"points_per_side": 16}},
}
"""Requests; a route has those of which it has all members."""

WORK = (errors.Overloaded, errors.ReplicaLost, errors.WeightsUnavailable, errors.DeadlineExceeded)
"""Errors of every route that runs a model."""

_BODY = (errors.PayloadTooLarge, errors.BodyTimeout, errors.Overloaded, errors.ShuttingDown)
_IMAGE = (errors.InvalidImage, errors.ImageTooLarge, errors.UnknownImage)
_CALL = (
    *(errors.InvalidRequest, errors.InvalidPrompt, errors.TooManyPrompts, errors.UnknownFormat),
    *(errors.UnknownVariant, errors.TextUnavailable, errors.HintsUnmet),
)
_TIMEOUT: dict[str, Any] = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "the caller's timeout in seconds: work for the request then stops with "
    "`deadline_exceeded`; what is not a positive number is ignored",
}

Ring = list[tuple[float, float]]


class Geometry(TypedDict):
    """A GeoJSON geometry in image pixels: x to the right, y down."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    type: Literal["Polygon", "MultiPolygon"]
    coordinates: list[Ring] | list[list[Ring]]


class Feature(TypedDict):
    """One mask; its geometry is null if it is empty.  ``properties`` is the mask's other members,
    with ``result`` (index of the prompt or text), ``mask`` (its index there) and ``text``."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    type: Literal["Feature"]
    geometry: Geometry | None
    properties: dict[str, Any]


class BatchLine(TypedDict):
    """A line of a batch's response; lines come as they are ready."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    index: int
    result: NotRequired[dict[str, Any]]
    error: NotRequired[ErrorBody]


class Status(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: str


class Readiness(Status):
    in_flight: int | None = Field(None, description="requests in flight (draining)")


class Models(BaseModel):
    """What is deployed."""

    model_config = ConfigDict(extra="allow")

    variants: Any = None


def ref(name: str) -> dict[str, Any]:
    """A reference to a component of the document."""
    return {"$ref": _REF.format(model=name)}


def _form(properties: dict[str, Any], required: Sequence[str], *, more: bool = False) -> Any:
    """A form's schema; ``more``: other fields than these are ignored."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if not more:
        schema["additionalProperties"] = False
    if required:
        schema["required"] = list(required)
    return {"schema": schema}


def _members(body: type[BaseModel], without: Sequence[str] = ()) -> dict[str, Any]:
    """Form fields that hold single members of the JSON body."""
    return {
        name: {
            "type": "string",
            "description": (body.model_fields[name].description or "")
            + (" (as JSON)" if types & {"array", "object"} and "string" not in types else ""),
            **_BLANK,
        }
        for name, types in form_fields(body).items()
        if name not in without
    }


def _encoding(body: type[BaseModel]) -> dict[str, Any]:
    return _as_json(name for name, types in form_fields(body).items() if "array" in types)


def _as_json(lists: Iterable[str]) -> dict[str, Any]:
    """How form fields that may hold lists are written: as JSON, not separated by commas."""
    return {"encoding": {name: {"contentType": "application/json"} for name in lists}}


def _route(
    json_part: Any, form: Any, response: Any, *kinds: type[errors.SamServeError]
) -> dict[str, Any]:
    """What FastAPI is given of a route that reads and writes its bodies itself."""
    content = {"application/json": json_part, "multipart/form-data": form}
    return {
        "tags": ["segment"],
        "response_class": Response,
        "responses": {200: response, **error_responses(*kinds)},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def call_route(body: type[BaseModel]) -> dict[str, Any]:
    """FastAPI's arguments for a capability's route."""
    request = {"type": "string", "description": "a request without image, as JSON text", **_BLANK}
    form = _form({"file": _FILE, "request": request, **_members(body)}, []) | _encoding(body)
    json_part: dict[str, Any] = {"schema": ref(body.__name__)}
    known = body.model_fields.keys()
    if examples := {name: {"value": e} for name, e in _EXAMPLES.items() if e.keys() <= known}:
        json_part["examples"] = examples
    content = {
        JSON_TYPE: {"schema": ref(SegmentResult.__name__)},
        GEOJSON_TYPE: {"schema": ref("FeatureCollection")},
        NPZ_TYPE: {"schema": {"type": "string", "format": "binary"}},
    }
    response = {"content": content, "description": "results, in the requested format"}
    route = _route(json_part, form, response, *_CALL, *_IMAGE, *WORK)
    route["openapi_extra"]["parameters"] = [_TIMEOUT]
    return route


def embed_route() -> dict[str, Any]:
    """FastAPI's arguments for ``/v1/embed``."""
    form = _form({"file": _FILE, **_members(EmbedFields, ["image_id"])}, ["file"])
    form |= _encoding(EmbedFields)
    content = {JSON_TYPE: {"schema": ref(EmbedResult.__name__)}}
    response = {"content": content, "description": "the image is known"}
    kinds = (errors.InvalidRequest, errors.UnknownVariant, *_IMAGE, *WORK)
    route = _route({"schema": ref(EmbedFields.__name__)}, form, response, *kinds)
    route["openapi_extra"]["parameters"] = [_TIMEOUT]
    return route


def batch_route(body: type[BaseModel]) -> dict[str, Any]:
    """FastAPI's arguments for the batch of a capability's route."""
    form = _form(
        {
            "files": _FILES,
            "request": {"type": "string", "description": "a request for all files", **_BLANK},
            "requests": {
                "type": "string",
                "description": "a JSON list, a request for each file",
                **_BLANK,
            },
            **_members(body, ["image_id"]),
        },
        ["files"],
    )
    form |= _encoding(body)
    # Items are checked one by one, so that a faulty one fails alone.
    batch = BatchBody.model_json_schema()
    batch["properties"]["items"]["items"] = ref(body.__name__)
    batch["title"] = body.__name__.replace("Body", "BatchBody")
    content = {NdjsonResponse.media_type: {"schema": ref(BatchLine.__name__)}}
    response = {"content": content, "description": "a line for each image, when ready"}
    route = _route({"schema": batch}, form, response, errors.InvalidRequest, errors.TooManyPrompts)
    route["openapi_extra"]["parameters"] = [_TIMEOUT]
    return route


def plain_form(
    file_field: str, fields: Mapping[str, str], lists: Iterable[str] = ()
) -> dict[str, Any]:
    """A form of one image file, or of several ``files``, and of texts, also as query fields.

    Args:
        lists: those fields that hold lists as JSON.
    """
    texts = {
        name: {"type": "string", "description": text, **_BLANK} for name, text in fields.items()
    }
    file = _FILES if file_field == "files" else _FILE
    form = _form({file_field: file, **texts}, [file_field], more=True) | _as_json(lists)
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": form}},
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
            for name in fields
        ],
    }


def error_responses(
    *kinds: type[errors.SamServeError], status: Mapping[int, int] | None = None, body: bool = True
) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI ``responses`` for the errors of a route, grouped by status.

    Args:
        kinds: those of the route itself; the errors of all routes are added.
        status: replaces a status by another, for routes that follow older conventions.
        body: whether the route reads a body, which is subject to body and capacity limits.
    """
    of_all = (errors.Unauthorized, errors.RateLimited, *(_BODY if body else ()))
    by_status: dict[int, list[type[errors.SamServeError]]] = {}
    for error in dict.fromkeys((*kinds, *of_all, errors.InternalError)):
        by_status.setdefault((status or {}).get(error.status, error.status), []).append(error)
    responses: dict[int | str, dict[str, Any]] = {}
    for code, found in sorted(by_status.items()):
        lines = [f"`{kind.code}`: {(kind.__doc__ or '').splitlines()[0]}" for kind in found]
        responses[code] = {"model": ErrorEnvelope, "description": "\n\n".join(lines)}
        if any(kind in RETRYABLE for kind in found):
            responses[code]["headers"] = {
                "Retry-After": {"schema": {"type": "string"}, "description": "seconds to wait"}
            }
    return responses


_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": "the same"},
}


class SamApi(FastAPI):
    """FastAPI with an OpenAPI document that includes middleware and untyped routes.

    Args:
        keys_needed: every route except the probes requires an API key.
        capabilities: their requests and results are documented.
        routers: all routes.
        more: arguments of `FastAPI`.
    """

    def __init__(
        self,
        *,
        keys_needed: bool,
        capabilities: Capabilities,
        routers: Sequence[APIRouter],
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self._keys_needed = keys_needed
        self._capabilities = capabilities
        self._routers = routers
        for router in routers:
            self.include_router(router)

    def templates(self) -> list[str]:
        """The paths of all routes; without building the document, which is slow."""
        routes = (route for router in self._routers for route in router.routes)
        paths = [route.path for route in routes if isinstance(route, APIRoute)]
        return [*paths, *filter(None, [self.openapi_url])]

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            self._add_models(components.setdefault("schemas", {}))
            components["securitySchemes"] = _SCHEMES
            document["security"] = [{name: []} for name in _SCHEMES]
            if not self._keys_needed:
                document["security"].append({})
            for path in PROBES:
                for operation in document["paths"].get(path, {}).values():
                    operation["security"] = []
        return super().openapi()

    def _add_models(self, schemas: dict[str, Any]) -> None:
        """The schemas of requests and responses."""
        routes = self._capabilities.routes()
        bodies = [request_body(route, found) for route, found in routes.items()]
        models: list[type[BaseModel]] = [*bodies, EmbedFields]
        _, requests = models_json_schema(
            [(model, "validation") for model in models], ref_template=_REF
        )
        results = list(dict.fromkeys(c.result for c in self._capabilities.values()))
        kinds = (SegmentResult, EmbedResult, Mask, PromptResult, Feature, BatchLine, *results)
        _, responses = TypeAdapter.json_schemas(
            [(kind, "serialization", TypeAdapter(kind)) for kind in dict.fromkeys(kinds)],
            ref_template=_REF,
        )
        schemas.update(responses["$defs"])
        schemas.update(requests["$defs"])
        for name in (SegmentResult.__name__, Mask.__name__, *(kind.__name__ for kind in results)):
            schemas[name]["additionalProperties"] = False
        schemas[SegmentResult.__name__]["properties"]["results"] = _list_of(*results)
        _add_formats(schemas)


def _list_of(*kinds: type[Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": [ref(kind.__name__) for kind in kinds]}}


def _derived(schema: Any, title: str, *, without: str, more: dict[str, Any]) -> dict[str, Any]:
    """A schema with another title, without a property, and with more required ones."""
    properties = {name: p for name, p in schema["properties"].items() if name != without}
    required = [*(name for name in schema.get("required", ()) if name != without), *more]
    changed = {"title": title, "properties": {**properties, **more}, "required": required}
    return {**schema, **changed}


def _add_formats(schemas: dict[str, Any]) -> None:
    """The forms of a whole response: GeoJSON, npz in a batch, and the batch's line."""
    whole: dict[str, Any] = {"type": "integer"}
    summary = _derived(schemas["PromptResult"], "PromptSummary", without="masks", more={})
    schemas["PromptSummary"] = summary
    more: dict[str, Any] = {"result": whole, "mask": whole}
    of_feature = _derived(schemas["Mask"], "FeatureProperties", without="segmentation", more=more)
    of_feature["properties"]["text"] = {"type": "string"}
    schemas["FeatureProperties"] = of_feature
    schemas["Feature"]["properties"]["properties"] = ref("FeatureProperties")
    summaries = {"type": "array", "items": ref("PromptSummary")}
    features = {"type": "array", "items": ref("Feature")}
    for title, more in (
        ("FeatureCollection", {"type": {"const": "FeatureCollection"}, "features": features}),
        ("NpzLine", {"npz": {"type": "string", "description": "base64 of the archive"}}),
    ):
        more = {**more, "results": summaries}
        schemas[title] = _derived(schemas["SegmentResult"], title, without="results", more=more)
    forms = [ref(name) for name in ("SegmentResult", "FeatureCollection", "NpzLine")]
    schemas["BatchLine"]["properties"]["result"] = {"anyOf": forms}
