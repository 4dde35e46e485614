"""A small client of the HTTP interface, with the same calls as the graph itself.

::

    async with HttpService("http://127.0.0.1:8000") as sam:
        request = SegmentRequest(image=Path("photo.jpg").read_bytes(),
                                 task=[Prompt(box=np.array([75, 75, 1060, 720]))])
        result = await sam.segment(request)
        mask = result.results[0].masks[0].array          # (H, W) bool
        # Further prompts name the image; it is neither sent nor embedded again.
        again = SegmentRequest(image=result.image_id, task=TextQuery(text=("dog",)))
        result = await sam.segment(again)
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import httpx
import orjson
from PIL import Image

from serve_app.capabilities import CAPABILITIES, SegmentRequest
from serve_app.core.capability import Capabilities
from serve_app.core.errors import InternalError, SamServeError
from serve_app.core.request import ImageOptions, Options
from serve_app.core.types import EmbedResult, RgbArray, SegmentResult, adapter

_RETRYABLE = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_SPREAD = 0.25
"""Jitter, as a share of the wait: clients rejected together do not all retry together."""


class Unreachable(SamServeError, code="unreachable", status=503):
    """No response: wrong address, refused connection, or this client's timeout."""


class UnexpectedResponse(SamServeError, code="unexpected_answer", status=502):
    """The response does not follow this interface: the address may be another server's."""


class HttpService:
    """A running service, as a `serve_app.core.ports.SegmentationService`.

    Args:
        url: the service's address, without ``/v1``.
        api_key: sent with every request; None: the service needs none.
        timeout_s: read timeout of one attempt, in seconds; no attempt starts after this time.
        retries: maximum number of retries after a 429 or 503 with ``retry-after``.  The client
            waits for that time, unless it ends after ``timeout_s`` or the request's own timeout.
            Retries are safe, because inference has no side effects.
        transport: httpx transport; None: over the network.
        capabilities: the kinds of task that can be requested.

    Raises:
        SamServeError: the service's error, of its own type; or `Unreachable` or
            `UnexpectedResponse`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
        capabilities: Capabilities = CAPABILITIES,
    ) -> None:
        timeout = httpx.Timeout(timeout_s, connect=10.0)
        # A proxy of the environment cannot reach this machine's own loopback address.
        loopback = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=timeout,
            transport=transport,
            trust_env=not loopback,
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
        )
        self._timeout_s = timeout_s
        self._retries = retries
        self._capabilities = capabilities

    async def __aenter__(self) -> HttpService:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; `async with` calls this on exit."""
        await self._http.aclose()

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Send one request; arrays are sent as PNG (lossless)."""
        capability = self._capabilities[type(request.task)]
        options = request.model_dump(include=set(Options.model_fields), exclude_unset=True)
        fields = {**request.task.to_members(), **options}
        path = f"/v1/{capability.route}"
        body = await self._send(path, request.image, fields, request.timeout_s)
        with _reading():
            return _segment_result(body, capability.result)

    async def embed(
        self, image: bytes | RgbArray | str, variant: str, options: ImageOptions | None = None
    ) -> EmbedResult:
        """Register and encode an image, so that later prompts can refer to its ``image_id``."""
        fields = {} if options is None else options.model_dump(exclude_unset=True)
        body = await self._send("/v1/embed", image, {"variant": variant, **fields})
        with _reading():
            return cast(EmbedResult, adapter(EmbedResult).validate_python(body))

    async def models(self) -> Mapping[str, Any]:
        """The deployed variants, text engine and limits: ``GET /v1/models``."""
        return _content(await self._exchange("GET", "/v1/models"))

    async def ready(self) -> bool:
        """Whether ``GET /readyz`` returns 200; False if the service is unreachable."""
        try:
            return (await self._exchange("GET", "/readyz")).status_code == httpx.codes.OK
        except Unreachable:
            return False

    async def _send(
        self,
        path: str,
        image: bytes | RgbArray | str,
        fields: Mapping[str, Any],
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        content: dict[str, Any]
        if isinstance(image, str):
            body = orjson.dumps({"image_id": image, **fields})
            content = {"content": body, "headers": {"content-type": "application/json"}}
        else:
            data = image if isinstance(image, bytes) else _png(image)
            content = {
                "files": {"file": ("image", data, "application/octet-stream")},
                "data": {"request": orjson.dumps(fields).decode()},
            }
        return _content(await self._exchange("POST", path, timeout_s, **content))

    async def _exchange(
        self, method: str, path: str, timeout_s: float | None = None, **content: Any
    ) -> httpx.Response:
        """Send a request, with retries, and return the last attempt's response.

        Args:
            timeout_s: the caller's timeout in seconds, sent in a header; None: none.
        """
        began = time.monotonic()
        headers = dict(content.pop("headers", {}))
        for retries_left in range(self._retries, -1, -1):
            if timeout_s is not None:
                # The service reads a value that is not positive as no timeout.
                seconds = max(1e-3, timeout_s - (time.monotonic() - began))
                headers["x-request-timeout-seconds"] = f"{seconds:g}"
            try:
                response = await self._http.request(method, path, headers=headers, **content)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise Unreachable(
                    "no response from the service: is it running at this address?"
                ) from exc
            wait_s = _retry_wait_s(response)
            if retries_left == 0 or wait_s is None:
                break
            most = min(self._timeout_s, timeout_s or self._timeout_s)
            if time.monotonic() - began + wait_s >= most:
                break
            await _pause(wait_s)
        return response


def _retry_wait_s(response: httpx.Response) -> float | None:
    """Seconds to wait before a retry; None: not retryable, or without a ``retry-after``."""
    retry_after = response.headers.get("retry-after", "")
    if response.status_code not in _RETRYABLE or not retry_after.isdecimal():
        return None
    return int(retry_after) * random.uniform(1, 1 + _SPREAD)  # noqa: S311 (no secret)


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn errors of a missing or malformed response field into `UnexpectedResponse`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise UnexpectedResponse("the response does not follow this interface's schema") from exc


def _content(response: httpx.Response) -> dict[str, Any]:
    try:
        content = orjson.loads(response.content)
    except orjson.JSONDecodeError as exc:
        raise UnexpectedResponse(
            f"the response (status {response.status_code}) is not JSON"
        ) from exc
    if response.is_success and isinstance(content, dict):
        return content
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        raise UnexpectedResponse(f"the response (status {response.status_code}) has no result")
    kinds = {kind.code: kind for kind in _error_types(SamServeError)}
    kind = kinds.get(error["code"], InternalError)
    raise kind(str(error.get("message", error["code"])), error.get("field"))


def _error_types(base: type[SamServeError]) -> Iterator[type[SamServeError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _error_types(kind)


def _png(pixels: RgbArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _segment_result(body: Mapping[str, Any], result: type[Any]) -> SegmentResult:
    """The response, with results of the capability's type."""
    found: SegmentResult = adapter(SegmentResult).validate_python(body)
    size = (found.height, found.width)
    one_result = adapter(cast(Hashable, result))
    results = tuple(one_result.validate_python(one) for one in found.results)
    if any(mask.rle.size != size for one in results for mask in getattr(one, "masks", ())):
        raise ValueError("a mask is not of the image's size")
    return replace(found, results=results)
