"""The service's own routes: segment, embed, batch, models."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app.core.errors import (
    DeadlineExceeded,
    HintsUnmet,
    ImageTooLarge,
    InvalidImage,
    InvalidPrompt,
    InvalidRequest,
    Overloaded,
    ReplicaLost,
    TextUnavailable,
    TooManyPrompts,
    UnknownFormat,
    UnknownImage,
    UnknownVariant,
    WeightsUnavailable,
)
from serve_app.core.limits import Limits
from serve_app.core.ports import SegmentationService
from serve_app.core.types import Everything, Task, TextQuery
from serve_app.http.answers import EmbedAnswer, Models, SegmentAnswer
from serve_app.http.body import Received, receive
from serve_app.http.convert import image_of, segment_request
from serve_app.http.docs import (
    BATCH_CONTENT,
    SEGMENT_CONTENT,
    TIMEOUT_PARAMETER,
    batch_body,
    embed_body,
    segment_body,
)
from serve_app.http.errors import error_responses, request_id_of, to_api_error
from serve_app.http.formats import (
    JSON_TYPE,
    NPZ_TYPE,
    Clock,
    embed_answer,
    is_quick,
    segment_answer,
    segment_file,
    to_json,
)
from serve_app.http.parsing import timeout_of, validated
from serve_app.http.request_info import request_info
from serve_app.http.schemas import BatchBody, EmbedBody, SegmentBody
from serve_app.http.stream import NdjsonResponse
from serve_app.http.totals import check_totals

_WORK = (Overloaded, ReplicaLost, WeightsUnavailable, DeadlineExceeded)
_IMAGE = (InvalidImage, ImageTooLarge, UnknownImage)
_SEGMENT = (
    *(InvalidRequest, InvalidPrompt, TooManyPrompts, UnknownFormat, UnknownVariant),
    *(TextUnavailable, HintsUnmet),
)


def v1_router(service: SegmentationService, limits: Limits) -> APIRouter:
    """Routes under ``/v1``."""
    router = APIRouter(prefix="/v1")

    @router.post(
        "/segment",
        tags=["segment"],
        summary="Segment an image by prompts, text, or everything in it",
        response_model=SegmentAnswer,
        responses={
            200: {"content": SEGMENT_CONTENT, "description": "masks, in the format asked for"},
            **error_responses(*_SEGMENT, *_IMAGE, *_WORK),
        },
        openapi_extra={**segment_body(), "parameters": [TIMEOUT_PARAMETER]},
    )
    async def segment(request: Request) -> Response:
        """The image comes as the file `file` of a form, as base64 in JSON, or as the `image_id`
        of an earlier answer.  With curl:

            curl -F file=@dog.jpg -F text=dog URL/v1/segment
            curl -F file=@dog.jpg -F 'box=[10,20,200,300]' URL/v1/segment
            curl -F file=@dog.jpg -F 'point_coords=[120,80]' -F format=polygon URL/v1/segment

        A form holds the members of the JSON body as plain fields (`point_labels` are then 1 if
        left out), or all of them as JSON in the field `request`.  `format: npz` answers with a
        file for `numpy.load`, `geojson` with a FeatureCollection, the others with JSON.
        """
        started = time.perf_counter()
        received = await receive(request, limits, "file")
        _no_requests(received)
        body = validated(SegmentBody, received.members, limits)
        call = segment_request(body, _one_file(received), limits, timeout_of(request.headers))
        info = request_info(request)
        info.record_size(images=1, prompts=_prompts_of(call.task))
        clock = Clock(started, time.perf_counter())
        result = await service.segment(call)
        info.variant = result.variant
        formatted = partial(
            segment_file, result, body.format, isinstance(call.task, Everything), clock
        )
        quick = is_quick(result, body.format)
        content, media_type = formatted() if quick else await asyncio.to_thread(formatted)
        headers = {}
        if media_type == NPZ_TYPE:
            headers["content-disposition"] = 'attachment; filename="masks.npz"'
        return Response(content, media_type=media_type, headers=headers)

    @router.post(
        "/embed",
        tags=["segment"],
        summary="Make an image known, so that prompts on its image_id are quick",
        response_model=EmbedAnswer,
        responses=error_responses(InvalidRequest, UnknownVariant, *_IMAGE, *_WORK),
        openapi_extra=embed_body(),
    )
    async def embed(request: Request) -> Response:
        started = time.perf_counter()
        received = await receive(request, limits, "file")
        _no_requests(received)
        body = validated(EmbedBody, received.members, limits)
        image = image_of(body, _one_file(received))
        info = request_info(request)
        info.record_size(images=1, prompts=0)
        clock = Clock(started, time.perf_counter())
        result = await service.embed(image, body.variant)
        info.variant = result.variant
        return Response(to_json(embed_answer(result, clock)), media_type=JSON_TYPE)

    @router.post(
        "/segment/batch",
        tags=["segment"],
        summary="Segment many images in one call",
        response_class=Response,
        responses={
            200: {"content": BATCH_CONTENT, "description": "a line for each image, when ready"},
            **error_responses(InvalidRequest, TooManyPrompts),
        },
        openapi_extra={**batch_body(), "parameters": [TIMEOUT_PARAMETER]},
    )
    async def segment_batch(request: Request) -> Response:
        """A form with many `files` and one request for all of them (the field `request` or plain
        fields, as at `/v1/segment`), or with `requests`, a JSON list with one for each; or JSON
        with `items`.  The answer is NDJSON, a line for each image as soon as it is ready:
        `{"index": 0, "result": {…}}` or `{"index": 0, "error": {…}}`.  An image's fault is its
        own.  Closing the connection cancels what is left.
        """
        items = _batch_items(await receive(request, limits, "files"), limits)
        prompts = check_totals((members for members, _ in items), limits)
        request_info(request).record_size(images=len(items), prompts=prompts)
        request_id = request_id_of(request)
        timeout_s = timeout_of(request.headers)
        jobs = (
            partial(_batch_line, service, limits, timeout_s, request_id, index, members, file)
            for index, (members, file) in enumerate(items)
        )
        return NdjsonResponse(jobs, limits.batch_concurrency)

    @router.get(
        "/models",
        tags=["service"],
        summary="Variants, models, the text engine and the limits of this service",
        response_model=Models,
        responses=error_responses(Overloaded, DeadlineExceeded, body=False),
    )
    async def models() -> Response:
        return Response(to_json(await service.models()), media_type=JSON_TYPE)

    return router


def _prompts_of(task: Task) -> int:
    """Prompts, or texts; "everything" is one."""
    if isinstance(task, Everything):
        return 1
    return len(task.texts) if isinstance(task, TextQuery) else len(task)


def _no_requests(received: Received) -> None:
    if received.requests is not None:
        raise InvalidRequest("requests is for /v1/segment/batch; use request here", "requests")


def _one_file(received: Received) -> bytes | None:
    if len(received.files) > 1:
        raise InvalidRequest("one file here; /v1/segment/batch takes many", "file")
    return received.files[0] if received.files else None


def _batch_items(received: Received, limits: Limits) -> list[tuple[Any, bytes | None]]:
    """Members and file of each item.

    Raises:
        InvalidRequest, TooManyPrompts: the call as a whole is at fault.
    """
    if not received.files:
        if received.requests is not None:
            raise InvalidRequest("there are no files", "files")
        return [(item, None) for item in validated(BatchBody, received.members, limits).items]
    if len(received.files) > limits.max_batch_images:
        raise TooManyPrompts(f"at most {limits.max_batch_images} files", "files")
    if received.requests is None:
        return [(received.members, file) for file in received.files]
    if len(received.requests) != len(received.files):
        raise InvalidRequest(
            f"{len(received.requests)} requests for {len(received.files)} files", "requests"
        )
    return list(zip(received.requests, received.files, strict=True))


async def _batch_line(
    service: SegmentationService,
    limits: Limits,
    timeout_s: float | None,
    request_id: str,
    index: int,
    members: Any,
    file: bytes | None,
) -> bytes:
    """An item's line; whatever goes wrong with the item is told in it."""
    started = time.perf_counter()
    try:
        body = validated(SegmentBody, members, limits)
        call = segment_request(body, file, limits, timeout_s)
        clock = Clock(started, time.perf_counter())
        result = await service.segment(call)
        answer = await asyncio.to_thread(
            segment_answer, result, body.format, isinstance(call.task, Everything), clock
        )
        return await asyncio.to_thread(to_json, {"index": index, "result": answer})
    except Exception as exc:
        error = to_api_error(exc, request_id)
        return to_json({"index": index, "error": {**error.body(), "request_id": request_id}})
