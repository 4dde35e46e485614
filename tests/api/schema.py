"""Responses checked against the OpenAPI document that the service publishes."""

from __future__ import annotations

from typing import Any

import httpx
from jsonschema import Draft202012Validator


async def documented(client: httpx.AsyncClient, model: str, value: Any) -> Any:
    """``value``, which must be as the document's ``model`` says."""
    document = (await client.get("/openapi.json")).json()
    schema = {"$ref": f"#/components/schemas/{model}", "components": document["components"]}
    Draft202012Validator(schema).validate(value)
    return value
