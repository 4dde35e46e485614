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

Without ``await``, in scripts and notebooks::

    with SyncHttpService("http://127.0.0.1:8000") as sam:
        result = sam.segment(request)
"""

from __future__ import annotations

import asyncio
import io
import random
import threading
import time
from collections.abc import Coroutine, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import httpx
import orjson
from PIL import Image

from serve_app.capabilities import CAPABILITIES, SegmentRequest
from serve_app.core.capability import Capabilities
from serve_app.core.errors import InternalError, InvalidRequest, SamServeError
from serve_app.core.request import AUTO, EmbedRequest, ImageOptions, Options
from serve_app.core.types import EmbedResult, RgbArray, SegmentResult, adapter

_RETRYABLE = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_SPREAD = 0.25
"""Jitter, as a share of the wait: clients rejected together do not all retry together."""


class Unreachable(SamServeError, code="unreachable", status=503):
    """No response: wrong address, refused connection, or this client's timeout."""


class UnexpectedResponse(SamServeError, code="unexpected_answer", status=502):
    """The response does not follow this interface: the address may be another server's."""


class InvalidAddress(SamServeError, code="invalid_address", status=400):
    """The address is not that of a service: without ``http://``, or with a route."""


T = TypeVar("T")


def checked_address(url: str) -> str:
    """``url`` without a slash at its end.

    Raises:
        InvalidAddress: it is not an address such as ``http://127.0.0.1:8000``.
    """
    if url != url.strip():
        raise InvalidAddress("give the address without blanks around it", "url")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise InvalidAddress(
            "give the address with http:// or https://, such as http://127.0.0.1:8000", "url"
        )
    address = url.rstrip("/")
    if address.endswith("/v1"):
        raise InvalidAddress("give the address without /v1", "url")
    try:
        host = httpx.URL(address).host
    except httpx.InvalidURL:
        host = ""
    if not host or rest.startswith("/"):
        raise InvalidAddress("the address names no host, as http://127.0.0.1:8000 does", "url")
    return address


class HttpService:
    """A running service, as a `serve_app.core.ports.SegmentationService`.

    It may be used in several event loops, and again after it was closed: each loop has connections
    of its own.

    Args:
        url: the service's address, with ``http://`` or ``https://`` and without ``/v1``.
        api_key: sent with every request; None: the service needs none.
        timeout_s: read timeout of one attempt, in seconds; no attempt starts after this time.
        retries: maximum number of retries after a 429 or 503 with ``retry-after``.  The client
            waits for that time, unless it ends after ``timeout_s`` or the request's own timeout.
            Retries are safe, because inference has no side effects.
        transport: httpx transport; None: over the network.
        capabilities: the kinds of task that can be requested.

    Raises:
        SamServeError: the service's error, of its own type; or `Unreachable`,
            `UnexpectedResponse` or `InvalidAddress`.
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
        self._url = checked_address(url)
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._transport = transport
        self._timeout_s = timeout_s
        self._retries = retries
        self._capabilities = capabilities
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            WeakKeyDictionary()
        )

    def _http(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections cannot leave their loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            # A proxy of the environment cannot reach this machine's own loopback address.
            loopback = httpx.URL(self._url).host in ("127.0.0.1", "localhost", "::1")
            self._clients[loop] = httpx.AsyncClient(
                base_url=self._url,
                timeout=httpx.Timeout(self._timeout_s, connect=10.0),
                transport=self._transport,
                trust_env=not loopback,
                headers=self._headers,
            )
        return self._clients[loop]

    async def __aenter__(self) -> HttpService:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the running loop's connections; `async with` calls this on exit."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def segment(self, request: SegmentRequest) -> SegmentResult:
        """Send one request; arrays are sent as PNG (lossless)."""
        if not isinstance(request, SegmentRequest):
            raise InvalidRequest("segment takes a SegmentRequest(image=..., task=...)")
        capability = self._capabilities[type(request.task)]
        options = request.model_dump(include=set(Options.model_fields), exclude_unset=True)
        fields = {**request.task.to_members(), **options}
        path = f"/v1/{capability.route}"
        body = await self._send(path, request.image, fields, request.timeout_s)
        with _reading():
            return _segment_result(body, capability.result)

    async def embed(
        self, image: EmbedRequest | bytes | RgbArray | str, variant: str = AUTO
    ) -> EmbedResult:
        """Register and encode an image, so that later prompts can refer to its ``image_id``."""
        request = EmbedRequest.of(image, variant)
        options = {"variant", *ImageOptions.model_fields}
        fields = request.model_dump(include=options, exclude_unset=True)
        body = await self._send("/v1/embed", request.image, fields, request.timeout_s)
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
                response = await self._http().request(method, path, headers=headers, **content)
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


class SyncHttpService:
    """`HttpService` without ``await``: each call waits for its response.

    It works where an event loop is already running, as in a notebook, and from several threads.

    Args:
        url: the service's address, with ``http://`` or ``https://`` and without ``/v1``.
        options: as of `HttpService`.

    Raises:
        SamServeError: as of `HttpService`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._service = HttpService(url, **options)
        self._loop = asyncio.new_event_loop()
        # A daemon: a program that forgets to close this ends all the same.
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> SyncHttpService:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; `with` calls this on exit."""
        if self._loop.is_closed():
            return
        self._wait(self._service.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def segment(self, request: SegmentRequest) -> SegmentResult:
        """Send one request; arrays are sent as PNG (lossless)."""
        return self._wait(self._service.segment(request))

    def embed(
        self, image: EmbedRequest | bytes | RgbArray | str, variant: str = AUTO
    ) -> EmbedResult:
        """Register and encode an image, so that later prompts can refer to its ``image_id``."""
        return self._wait(self._service.embed(image, variant))

    def models(self) -> Mapping[str, Any]:
        """The deployed variants, text engine and limits: ``GET /v1/models``."""
        return self._wait(self._service.models())

    def ready(self) -> bool:
        """Whether ``GET /readyz`` returns 200; False if the service is unreachable."""
        return self._wait(self._service.ready())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # as Ctrl-C must end the request, too
            raise


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
