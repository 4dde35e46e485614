"""Responses checked against the OpenAPI document that the service publishes."""

from __future__ import annotations

from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from serve_app.core.limits import Limits
from serve_app.http.app import create_app

from ..fakes.service import FakeService


async def documented(client: httpx.AsyncClient, model: str, value: Any) -> Any:
    """``value``, which must be as the document of the client's service says of ``model``."""
    return _valid((await client.get("/openapi.json")).json(), model, value)


def documented_line(line: Any) -> Any:
    """A line of a batch, which must be as the document says."""
    return _valid(_document(), "BatchLine", line)


@cache
def _document() -> dict[str, Any]:
    app = create_app(FakeService(), Limits(), metrics=None, version="1")  # type: ignore[arg-type]
    return app.openapi()


def _valid(document: dict[str, Any], model: str, value: Any) -> Any:
    schema = {"$ref": f"#/components/schemas/{model}", "components": document["components"]}
    Draft202012Validator(schema).validate(value)
    return value
