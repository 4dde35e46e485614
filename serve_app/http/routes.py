"""The service's own routes: a pair for each route of the capabilities, embed, models, probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serve_app.core.capability import Capabilities, Capability
from serve_app.core.errors import DeadlineExceeded, InvalidRequest, Overloaded, TooManyPrompts
from serve_app.core.limits import Limits
from serve_app.core.ports import SegmentationService
from serve_app.http.body import Received, receive, time_left_s
from serve_app.http.docs import (
    Models,
    Readiness,
    Status,
    batch_route,
    call_route,
    embed_route,
    error_responses,
)
from serve_app.http.errors import to_api_error
from serve_app.http.formats import (
    JSON_TYPE,
    NPZ_TYPE,
    Clock,
    embed_response,
    is_quick,
    segment_file,
    segment_response,
    to_json,
)
from serve_app.http.gate import InFlightTracker
from serve_app.http.request_info import request_info
from serve_app.http.requests import (
    BatchBody,
    EmbedFields,
    check_totals,
    parse_call,
    parse_embed,
    request_body,
)
from serve_app.http.stream import NdjsonResponse

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def v1_router(
    service: SegmentationService, limits: Limits, capabilities: Capabilities
) -> APIRouter:
    """Routes under ``/v1``."""
    router = APIRouter(prefix="/v1")
    for route, found in capabilities.routes().items():
        body = request_body(route, found)
        names = ", ".join(capability.task.name for capability in found)
        calls = _Calls(service, limits, found, body)
        router.post(f"/{route}", name=route, summary=f"One image: {names}", **call_route(body))(
            calls.one
        )
        router.post(
            f"/{route}/batch",
            name=f"{route}_batch",
            summary=f"Many images in one call: {names}",
            **batch_route(body),
        )(calls.batch)

    @router.post(
        "/embed",
        summary="Make an image known, so that prompts on its image_id are quick",
        **embed_route(),
    )
    async def embed(request: Request) -> Response:
        started = time.perf_counter()
        received = await receive(request, limits, "file", EmbedFields)
        timeout_s = time_left_s(request.headers, started)
        embedded = parse_embed(received.members, _one_file(received), timeout_s)
        info = request_info(request)
        info.record_size(images=1, prompts=0)
        clock = Clock(started, time.perf_counter())
        result = await service.embed(embedded)
        info.variant = result.variant
        return Response(to_json(embed_response(result, clock)), media_type=JSON_TYPE)

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


def service_router(
    service: SegmentationService, metrics: Callable[[], Awaitable[bytes]], tracker: InFlightTracker
) -> APIRouter:
    """Return the routes ``/healthz``, ``/readyz`` and ``/metrics``."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Liveness: whether the process runs", response_model=Status)
    async def healthz() -> Response:
        return Response(to_json({"status": "alive"}), media_type=JSON_TYPE)

    @router.get(
        "/readyz",
        summary="Readiness: whether the models are loaded",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "still loading, or draining"}},
    )
    async def readyz() -> Response:
        """`draining`: new requests are rejected; `in_flight` requests are still being served."""
        body: dict[str, Any] = {"status": "draining", "in_flight": tracker.in_flight}
        if not tracker.draining:
            body = {"status": "ready" if await service.ready() else "loading"}
        status_code = 200 if body["status"] == "ready" else 503
        return Response(to_json(body), status_code=status_code, media_type=JSON_TYPE)

    @router.get(
        "/metrics",
        summary="Metrics in Prometheus' text format",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **error_responses(body=False),
        },
    )
    async def metrics_text() -> Response:
        return Response(await metrics(), headers={"content-type": METRICS_TYPE})

    return router


@dataclass(frozen=True, slots=True)
class _Calls:
    """The handlers of one route."""

    service: SegmentationService
    limits: Limits
    capabilities: tuple[Capability, ...]
    body: type[BaseModel]

    async def one(self, request: Request) -> Response:
        """The image comes as the file `file` of a form, as base64 in JSON, or as the `image_id`
        of an earlier response.  With curl:

            curl -F file=@dog.jpg -F text=dog URL/v1/segment
            curl -F file=@dog.jpg -F 'box=[10,20,200,300]' URL/v1/segment
            curl -F file=@dog.jpg -F 'point_coords=[120,80]' -F format=polygon URL/v1/segment

        A form holds the members of the JSON body as plain fields (`point_labels` are then 1 if
        left out), or all of them as JSON in the field `request`.  `format: npz` returns a file
        for `numpy.load`, `geojson` a FeatureCollection, the others JSON.
        """
        started = time.perf_counter()
        received = await receive(request, self.limits, "file", self.body, self.capabilities)
        call = parse_call(
            self.capabilities,
            received.members,
            _one_file(received),
            self.limits,
            time_left_s(request.headers, started),
        )
        size = call.request.task.size
        info = request_info(request)
        info.record_size(images=1, prompts=size)
        clock = Clock(started, time.perf_counter())
        result = await self.service.segment(call.request)
        info.variant = result.variant
        formatted = partial(segment_file, result, call.format, clock)
        quick = is_quick(result, call.format)
        content, media_type = formatted() if quick else await asyncio.to_thread(formatted)
        headers = {}
        if media_type == NPZ_TYPE:
            headers["content-disposition"] = 'attachment; filename="masks.npz"'
        return Response(content, media_type=media_type, headers=headers)

    async def batch(self, request: Request) -> Response:
        """A form with many `files` and one request for all of them (the field `request` or plain
        fields, as for one image), or with `requests`, a JSON list with one for each; or JSON
        with `items`.  The response is NDJSON, a line for each image as soon as it is ready:
        `{"index": 0, "result": {…}}` or `{"index": 0, "error": {…}}`.  A faulty image fails
        alone.  Closing the connection cancels the rest.
        """
        started = time.perf_counter()
        received = await receive(request, self.limits, "files", self.body, self.capabilities)
        items = _batch_items(received, self.limits)
        prompts = check_totals(self.capabilities, (m for m, _ in items), self.limits)
        info = request_info(request)
        info.record_size(images=len(items), prompts=prompts)
        request_id = info.id
        left = partial(time_left_s, request.headers, started)
        jobs = (
            partial(self._line, left, request_id, index, members, file)
            for index, (members, file) in enumerate(items)
        )
        return NdjsonResponse(jobs, self.limits.batch_concurrency)

    async def _line(
        self,
        left: Callable[[], float | None],
        request_id: str,
        index: int,
        members: Any,
        file: bytes | None,
    ) -> bytes:
        """An item's line; an error of the item is reported in it.

        Args:
            left: what is left of the caller's timeout, in seconds.
        """
        started = time.perf_counter()
        try:
            call = parse_call(self.capabilities, members, file, self.limits, left())
            clock = Clock(started, time.perf_counter())
            result = await self.service.segment(call.request)
            body = await asyncio.to_thread(segment_response, result, call.format, clock)
            return await asyncio.to_thread(to_json, {"index": index, "result": body})
        except Exception as exc:
            error = to_api_error(exc, request_id)
            return to_json({"index": index, "error": {**error.body(), "request_id": request_id}})


def _one_file(received: Received) -> bytes | None:
    """The file of a request for one image, if it came with one."""
    if received.requests is not None:
        raise InvalidRequest("requests is for the batch route; use request here", "requests")
    if len(received.files) > 1:
        raise InvalidRequest("one file here; the batch route takes many", "file")
    return received.files[0] if received.files else None


def _batch_items(received: Received, limits: Limits) -> list[tuple[Any, bytes | None]]:
    """Members and file of each item.

    Raises:
        InvalidRequest, TooManyPrompts: the call as a whole is at fault.
    """
    if not received.files:
        if received.requests is not None:
            raise InvalidRequest("there are no files", "files")
        return [(item, None) for item in BatchBody.parse(received.members, limits).items]
    if len(received.files) > limits.max_batch_images:
        raise TooManyPrompts(f"at most {limits.max_batch_images} files", "files")
    if received.requests is None:
        return [(received.members, file) for file in received.files]
    if len(received.requests) != len(received.files):
        raise InvalidRequest(
            f"{len(received.requests)} requests for {len(received.files)} files", "requests"
        )
    return list(zip(received.requests, received.files, strict=True))
