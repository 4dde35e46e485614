"""The OpenAPI document's parts that FastAPI cannot see: bodies are read by `serve_app.api.body`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app.api.answers import BatchLine, FeatureCollectionAnswer
from serve_app.api.body import FORM_MEMBERS
from serve_app.api.formats import GEOJSON_TYPE, NPZ_TYPE
from serve_app.api.keys import KEY_HEADER
from serve_app.api.parsing import TIMEOUT_HEADER
from serve_app.api.schemas import BatchBody, EmbedBody, SegmentBody
from serve_app.api.tally import PROBES

_REF = "#/components/schemas/{model}"
_FILE = {"type": "string", "format": "binary", "description": "an image file"}
_JSON_TEXT = "as JSON text, see the JSON body"

SEGMENT_EXAMPLES: dict[str, Any] = {
    "a point": {
        "value": {
            "image_id": "640x480-5d41…",
            "prompts": [{"point_coords": [[320, 240]], "point_labels": [1]}],
        }
    },
    "boxes": {
        "value": {
            "image_id": "640x480-5d41…",
            "prompts": [{"box": [10, 20, 200, 300]}, {"box": [220, 40, 400, 310]}],
            "multimask_output": False,
            "format": "polygon",
        }
    },
    "texts": {"value": {"image_id": "640x480-5d41…", "text": ["dog", "red car"]}},
    "everything": {"value": {"image_id": "640x480-5d41…", "everything": {"points_per_side": 16}}},
}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


def _form(properties: dict[str, Any], required: list[str], *, more: bool = False) -> dict[str, Any]:
    """A form's schema; ``more`` fields than these do no harm."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if not more:
        schema["additionalProperties"] = False
    if required:
        schema["required"] = required
    return {"schema": schema}


def _members(names: list[str]) -> dict[str, Any]:
    """Form fields that hold single members of the JSON body."""
    return {name: {"type": "string", "description": f"`{name}` {_JSON_TEXT}"} for name in names}


def _body(
    json_model: type[BaseModel], form: dict[str, Any], examples: Any = None
) -> dict[str, Any]:
    json_part: dict[str, Any] = {"schema": _ref(json_model)}
    if examples:
        json_part["examples"] = examples
    content = {"application/json": json_part, "multipart/form-data": form}
    return {"requestBody": {"required": True, "content": content}}


def segment_body() -> dict[str, Any]:
    """The body of ``/v1/segment``."""
    request = {"type": "string", "description": "a segment request without image, as JSON text"}
    form = _form({"file": _FILE, "request": request, **_members(list(FORM_MEMBERS))}, [])
    return _body(SegmentBody, form, SEGMENT_EXAMPLES)


def embed_body() -> dict[str, Any]:
    """The body of ``/v1/embed``."""
    return _body(EmbedBody, _form({"file": _FILE, **_members(["variant"])}, ["file"]))


def batch_body() -> dict[str, Any]:
    """The body of ``/v1/segment/batch``."""
    form = _form(
        {
            "files": {"type": "array", "items": _FILE, "minItems": 1},
            "request": {"type": "string", "description": "a segment request for all files"},
            "requests": {"type": "string", "description": "a JSON list, a request for each file"},
            **_members([name for name in FORM_MEMBERS if name != "image_id"]),
        },
        ["files"],
    )
    return _body(BatchBody, form)


def article_body(files: str, members: list[str]) -> dict[str, Any]:
    """The body and query of the article's routes."""
    file: dict[str, Any] = {"type": "array", "items": _FILE, "minItems": 1}
    texts = {
        "model_type": "fast (default), accurate or quantized",
        "point_coords": "JSON text: [[x, y], …] or [x, y], in image pixels",
        "point_labels": "JSON text: a label for each point, 1 (default) or 0",
        "box": "JSON text: [x0, y0, x1, y1]",
    }
    fields = {name: {"type": "string", "description": texts[name]} for name in members}
    form = _form({files: file if files == "files" else _FILE, **fields}, [files], more=True)
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": form}},
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
            for name in members
        ],
    }


TIMEOUT_PARAMETER: dict[str, Any] = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "seconds after which the caller goes away: work for it stops and the answer is "
    "`deadline_exceeded`; what is not a positive number does not count",
}
SEGMENT_CONTENT: dict[str, Any] = {
    GEOJSON_TYPE: {"schema": _ref(FeatureCollectionAnswer)},
    NPZ_TYPE: {"schema": {"type": "string", "format": "binary"}},
}
BATCH_CONTENT: dict[str, Any] = {"application/x-ndjson": {"schema": _ref(BatchLine)}}


_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER, "description": "the same"},
}


class SamApi(FastAPI):
    """FastAPI whose document also has what middleware and routes do by themselves.

    Args:
        keys_needed: all but the probes needs an API key.
        more: FastAPI's own.
    """

    def __init__(self, *, keys_needed: bool, **more: Any) -> None:
        super().__init__(**more)
        self._keys_needed = keys_needed
        self._paths: list[str] = []

    def include_router(self, router: APIRouter, **more: Any) -> None:
        """FastAPI's; and its paths are known without the document, which takes long to make."""
        super().include_router(router, **more)
        self._paths += [
            more.get("prefix", "") + route.path
            for route in router.routes
            if isinstance(route, APIRoute)
        ]

    def templates(self) -> list[str]:
        """The paths of all routes, with their parameters' names."""
        own = (self.openapi_url, self.docs_url, self.swagger_ui_oauth2_redirect_url, self.redoc_url)
        return [*self._paths, *filter(None, own)]

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            self._add_bodies(components.setdefault("schemas", {}))
            components["securitySchemes"] = _SCHEMES
            document["security"] = [{name: []} for name in _SCHEMES]
            if not self._keys_needed:
                document["security"].append({})
            for path in PROBES:
                for operation in document["paths"].get(path, {}).values():
                    operation["security"] = []
        return super().openapi()

    def _add_bodies(self, schemas: dict[str, Any]) -> None:
        """The schemas of bodies that routes read themselves."""
        _, definitions = models_json_schema(
            [
                *((m, "validation") for m in (SegmentBody, EmbedBody, BatchBody)),
                *((m, "serialization") for m in (FeatureCollectionAnswer, BatchLine)),
            ],
            ref_template=_REF,
        )
        schemas.update(definitions["$defs"])
        # Items are checked one by one, so that a faulty one fails alone.
        schemas["BatchBody"]["properties"]["items"]["items"] = _ref(SegmentBody)
