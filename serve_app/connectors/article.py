"""The routes of the article "Deploying Segment Anything Model (SAM) in Production".

Its clients run unchanged: same routes, form or query fields, response bodies and status codes
(bad input is a 400 with ``detail``, besides this service's own ``error``).  What the article does
not specify: a prompt returns three masks, the default of ``SamPredictor``; without points or a
box the prompt is the image's centre; missing labels are 1.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from serve_app.capabilities import Prompts
from serve_app.core.errors import (
    ImageTooLarge,
    InvalidImage,
    InvalidPrompt,
    InvalidRequest,
    SamServeError,
    TooManyPrompts,
    UnknownVariant,
)
from serve_app.core.limits import Limits
from serve_app.core.ports import SegmentationService
from serve_app.core.request import EmbedRequest, SegmentRequest
from serve_app.core.types import SegmentResult, dumped
from serve_app.http.body import Form, load_json, read_form, the_only, time_left_s
from serve_app.http.docs import WORK, error_responses, plain_form
from serve_app.http.errors import error_response, to_api_error
from serve_app.http.formats import JSON_TYPE, png_base64, to_json
from serve_app.http.request_info import request_info
from serve_app.http.requests import image_file

MODEL_TYPES = ("fast", "accurate", "quantized")

_STATUS = {InvalidRequest.status: HTTPStatus.BAD_REQUEST}
_PROMPT_FIELDS = {
    "point_coords": "JSON text: [[x, y], …] or [x, y], in image pixels",
    "point_labels": "JSON text: a label for each point, 1 (default) or 0",
    "box": "JSON text: [x0, y0, x1, y1]",
}
_VARIANT_FIELD = {"model_type": "fast (default), accurate or quantized"}


class ArticleModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ArticleHealth(ArticleModel):
    status: Literal["healthy"]
    version: str


class ArticleResponse(ArticleModel):
    """The article's response."""

    masks: list[str] = Field(description="base64 of 0/255 gray PNGs")
    scores: list[float]
    model_used: str


class ArticleFailure(ArticleModel):
    error: str


class ArticleBatchResponse(ArticleModel):
    results: list[ArticleResponse | ArticleFailure]


class ArticleRoute(APIRoute):
    """Returns errors with the article's status codes, and its ``detail``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except SamServeError as exc:
                info = request_info(request)
                error = to_api_error(exc, info.id)
                extra = {"detail": exc.message}
                return error_response(error, info, status=_STATUS.get(exc.status), extra=extra)

        return handle


def article_router(service: SegmentationService, limits: Limits, version: str) -> APIRouter:
    """``/segment``, ``/segment_batch``, ``/health``."""
    router = APIRouter(tags=["article"], route_class=ArticleRoute)

    @router.post(
        "/segment",
        summary="Segment one image (the article's route)",
        response_model=ArticleResponse,
        responses=error_responses(
            *(InvalidRequest, InvalidPrompt, TooManyPrompts, UnknownVariant),
            *(InvalidImage, ImageTooLarge, *WORK),
            status=_STATUS,
        ),
        openapi_extra=plain_form("file", {**_VARIANT_FIELD, **_PROMPT_FIELDS}, _PROMPT_FIELDS),
    )
    async def segment(request: Request) -> Response:
        """Prompts are JSON text in form or query fields; form fields take precedence.  Returns
        three masks for points or a box; with neither, for the image's centre.
        """
        left = partial(time_left_s, request.headers, time.perf_counter())
        form = await read_form(request, limits, _PROMPT_FIELDS)
        fields = _fields(form, request)
        variant = _model_type(fields)
        file = image_file(the_only(form.files.get("file", []), "file"))
        members = {
            name: load_json(the_only(fields[name], name), limits, name, f"{name} must be {shape}")
            for name, shape in _PROMPT_FIELDS.items()
            if name in fields
        }
        prompt = Prompts.complete_form(members, {})
        info = request_info(request)
        info.record_size(images=1, prompts=1)
        result = await _segment(service, limits, file, variant, prompt, left)
        info.variant = result.variant
        return Response(to_json(await asyncio.to_thread(_response, result)), media_type=JSON_TYPE)

    @router.post(
        "/segment_batch",
        summary="Segment the centre of several images (the article's route)",
        response_model=ArticleBatchResponse,
        responses=error_responses(InvalidRequest, TooManyPrompts, UnknownVariant, status=_STATUS),
        openapi_extra=plain_form("files", _VARIANT_FIELD),
    )
    async def segment_batch(request: Request) -> Response:
        """One result for each of `files`, in their order; an error concerns its own image only."""
        left = partial(time_left_s, request.headers, time.perf_counter())
        form = await read_form(request, limits)
        variant = _model_type(_fields(form, request))
        files = form.files.get("files", [])
        if not 1 <= len(files) <= limits.max_batch_images:
            raise TooManyPrompts(f"send 1 to {limits.max_batch_images} files", "files")
        info = request_info(request)
        info.record_size(images=len(files), prompts=len(files))
        slots = asyncio.Semaphore(limits.batch_concurrency)

        async def one(file: bytes) -> dict[str, Any]:
            async with slots:
                try:
                    result = await _segment(service, limits, image_file(file), variant, {}, left)
                    return await asyncio.to_thread(_response, result)
                except Exception as exc:
                    return {"error": to_api_error(exc, info.id).message}

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(file)) for file in files]
        return Response(
            to_json({"results": [task.result() for task in tasks]}), media_type=JSON_TYPE
        )

    @router.get("/health", summary="The article's probe", response_model=ArticleHealth)
    async def health() -> Response:
        return Response(to_json({"status": "healthy", "version": version}), media_type=JSON_TYPE)

    return router


def _fields(form: Form, request: Request) -> dict[str, list[str]]:
    """Fields of query and form by name; empty ones, which browsers send, are omitted."""
    query = {name: request.query_params.getlist(name) for name in request.query_params}
    both = {**query, **form.fields}
    return {name: values for name, values in both.items() if any(values)}


def _model_type(fields: Mapping[str, list[str]]) -> str:
    name: str = the_only(fields.get("model_type", ["fast"]), "model_type")
    if name not in MODEL_TYPES:
        raise UnknownVariant("model_type must be fast, accurate or quantized", "model_type")
    return name


async def _segment(
    service: SegmentationService,
    limits: Limits,
    file: bytes,
    variant: str,
    prompt: dict[str, Any],
    left: Callable[[], float | None],
) -> SegmentResult:
    """Segment one image with one prompt; without one, at its centre.

    Args:
        left: what is left of the caller's timeout, in seconds.
    """
    try:
        if not prompt:
            known = await service.embed(EmbedRequest(image=file, variant=variant, timeout_s=left()))
            center = [known.width / 2, known.height / 2]
            prompt = {"point_coords": [center], "point_labels": [1]}
        task = Prompts.from_members(prompt, limits)
        request = SegmentRequest(image=file, task=task, variant=variant, timeout_s=left())
        return await service.segment(request.within(limits))
    except UnknownVariant:
        raise UnknownVariant(f"{variant} is not deployed here", "model_type") from None


def _response(result: SegmentResult) -> dict[str, Any]:
    masks = [mask for one in result.results for mask in one.masks]
    return {
        "masks": [png_base64(mask) for mask in masks],
        "scores": [dumped(mask, include={"score"})["score"] for mask in masks],
        "model_used": result.variant,
    }
