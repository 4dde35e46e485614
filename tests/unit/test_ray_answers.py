"""What Ray answers itself comes in the service's form; nothing else is touched."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.core import errors
from serve_app.deployments.compat import proxy
from serve_app.http.body import timeout_of

RAYS = [
    (408, "Request 0a9d timed out after 300.0s.", 504, "deadline_exceeded"),
    (404, "Path '/x' not found. Ping http://.../-/routes", 404, "not_found"),
    (503, "Request dropped due to backpressure (num_queued_requests=3)", 503, "overloaded"),
    (429, "Request dropped due to backpressure (num_queued_requests=3)", 503, "overloaded"),
    (503, "The deployment failed to deploy: /secret/path", 503, "weights_unavailable"),
    (500, "Traceback (most recent call last): /secret/path", 500, "internal_error"),
    (500, "Internal Server Error", 500, "internal_error"),
]


async def asked(answer: Response, path: str = "/v1/segment", **headers: str) -> Any:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        seen.update(timeout=timeout_of(request.headers), headers=dict(request.headers))
        await answer(scope, receive, send)

    (wrapping,) = proxy.middlewares()
    wrapped = wrapping.cls(app, *wrapping.args, **wrapping.kwargs)
    transport = httpx.ASGITransport(wrapped)
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        return await client.get(path, headers=headers), seen


@pytest.mark.parametrize(("status", "text", "told", "code"), RAYS)
@pytest.mark.parametrize("pieces", [1, 5])
async def test_rays_errors_are_the_services(status, text, told, code, pieces):
    async def body():
        for i in range(pieces):
            yield text[i::pieces] if pieces == 1 else text[i * 20 : (i + 1) * 20]
        yield ""

    headers = {"x-request-id": "abc", "content-type": "text/plain; charset=utf-8"}
    answer, _ = await asked(StreamingResponse(body(), status, headers))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["request_id"]) == (told, code, "abc")
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert ("retry-after" in answer.headers) == (code == "overloaded")
    assert "secret" not in answer.text
    assert code in {kind.code for kind in vars(errors).values() if hasattr(kind, "code")}


@pytest.mark.parametrize(("sent", "kept"), [("mine-1", True), ("not plain!", False), ("", False)])
async def test_an_error_without_rays_id_has_the_callers_or_a_new_one(sent, kept):
    answer, _ = await asked(PlainTextResponse("Internal", 500), **{"x-request-id": sent})
    given = answer.json()["error"]["request_id"]
    assert given == answer.headers["x-request-id"]
    assert given == sent if kept else len(given) == 32


async def test_a_full_service_is_told_as_the_front_expects():
    answer, _ = await asked(PlainTextResponse(RAYS[2][1], 503, {"retry-after": "7"}))
    assert proxy.BACKPRESSURE in answer.text
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    "own",
    [
        JSONResponse({"error": {"code": "body_timeout"}}, 408),
        JSONResponse({"status": "loading"}, 503),
        PlainTextResponse("Disallowed CORS origin", 400),
        PlainTextResponse("sam_requests 7", 200),
        Response(b"", 499),
    ],
)
async def test_the_services_own_answers_pass(own):
    answer, _ = await asked(own)
    assert (answer.status_code, answer.content) == (own.status_code, own.body)


async def test_rays_own_routes_are_left_to_ray():
    text = PlainTextResponse("unavailable", 503)
    answer, _ = await asked(text, "/-/healthz")
    assert answer.text == "unavailable"


@pytest.mark.parametrize("sent", ["0.05", "7"])
async def test_a_callers_timeout_reaches_the_service_and_not_ray(sent):
    _, seen = await asked(JSONResponse({}), **{"x-request-timeout-seconds": sent})
    assert seen["timeout"] == float(sent)
    assert "x-request-timeout-seconds" not in seen["headers"]
