"""The interactive documentation: Swagger UI, from files of this installation.

It works without the internet, and no foreign host learns who reads it or decides what it runs.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

import fastapi_offline
from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

_SCRIPT, _STYLE, _ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"
_TYPES = {_SCRIPT: "text/javascript", _STYLE: "text/css", _ICON: "image/png"}


def docs_page_router(title: str) -> APIRouter:
    """Return the routes ``/`` (leads to ``/docs``), ``/docs``, and the page's files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root(request: Request) -> Response:
        return RedirectResponse(f"{_prefix(request)}/docs")

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return _page(title, _prefix(request))

    @router.get("/docs/{name}")
    async def docs_file(name: str) -> Response:
        if name not in _TYPES:
            raise HTTPException(404)
        headers = {"cache-control": "max-age=86400", "x-content-type-options": "nosniff"}
        return Response(_content(name), headers=headers, media_type=_TYPES[name])

    return router


def _prefix(request: Request) -> str:
    path: str = request.scope.get("root_path", "")
    return path.rstrip("/")


def _page(title: str, prefix: str) -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title=title,
        swagger_js_url=f"{prefix}/docs/{_SCRIPT}",
        swagger_css_url=f"{prefix}/docs/{_STYLE}",
        swagger_favicon_url=f"{prefix}/docs/{_ICON}",
    )
    inline = bytes(page.body).partition(b"<script>")[2].partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(inline).digest()).decode()
    page.headers["content-security-policy"] = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; connect-src 'self'; "
        # Swagger UI sets styles of elements, and has its icons as data: URLs.
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page


@cache
def _content(name: str) -> bytes:
    return files(fastapi_offline).joinpath("static", name).read_bytes()
