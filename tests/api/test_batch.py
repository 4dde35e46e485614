"""Many images in one call: a line for each, when ready, and none for a client that left."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import numpy as np
import orjson
import pytest

from serve_app.core.errors import InvalidImage
from serve_app.http.stream import NdjsonResponse

from .schema import documented_line

URL = "/v1/segment/batch"


def lines(answer: Any) -> dict[int, Any]:
    """The lines of an answer by index."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    told = [json.loads(line) for line in answer.content.splitlines()]
    return {line["index"]: documented_line(line) for line in told}


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", ("x.jpg", content)) for content in contents]


async def test_one_request_for_all_files(client, service):
    answer = await client.post(URL, files=files(b"1", b"2", b"3"), data={"text": "dog"})
    told = lines(answer)
    assert told.keys() == {0, 1, 2}
    assert sorted(r.image for r in service.requests) == [b"1", b"2", b"3"]
    assert all(line["result"]["results"][0]["text"] == "dog" for line in told.values())


async def test_a_request_for_each_file(client, service):
    requests = json.dumps([{"text": "dog"}, {"everything": True, "format": "geojson"}])
    told = lines(await client.post(URL, files=files(b"1", b"2"), data={"requests": requests}))
    assert told[0]["result"]["results"][0]["text"] == "dog"
    assert len(told[1]["result"]["features"]) == 2


async def test_json_items_fail_alone(client, service):
    items = [
        {"image_id": "a", "text": "dog"},
        {"image_id": "a", "prompts": [{"box": [5, 5, 1, 1]}]},
        17,
        {"image": base64.b64encode(b"2").decode(), "text": "cat"},
    ]
    told = lines(await client.post(URL, json={"items": items}))
    assert [("result" if "result" in told[i] else "error") for i in range(4)] == [
        *("result", "error", "error", "result")
    ]
    assert (told[1]["error"]["code"], told[1]["error"]["field"]) == (
        "invalid_prompt",
        "prompts[0].box",
    )


async def test_errors_of_the_service_are_the_images_own(client, service):
    async def fail(request: Any) -> None:
        if request.image == b"bad":
            raise InvalidImage("not an image")
        if request.image == b"worse":
            raise RuntimeError("secret")

    service.hook = fail
    answer = await client.post(URL, files=files(b"1", b"bad", b"worse"), data={"text": "dog"})
    told = lines(answer)
    assert told[0]["result"]
    assert told[1]["error"]["code"] == "invalid_image"
    assert told[2]["error"]["code"] == "internal_error"
    assert told[2]["error"]["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text


async def test_npz_in_a_line_is_base64(client, service):
    told = lines(await client.post(URL, files=files(b"1"), data={"text": "a", "format": "npz"}))
    with np.load(io.BytesIO(base64.b64decode(told[0]["result"]["npz"]))) as archive:
        np.testing.assert_array_equal(archive["masks"][0], service.array)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"json": {"items": []}}, "invalid_request"),
        ({"json": {}}, "invalid_request"),
        ({"json": {"items": [{}] * 5}}, "too_many_prompts"),
        ({"files": files(*[b"1"] * 5), "data": {"text": "a"}}, "too_many_prompts"),
        ({"files": files(b"1"), "data": {"requests": '[{"text": "a"}, 1]'}}, "invalid_request"),
        ({"files": files(b"1"), "data": {"requests": "{}"}}, "invalid_request"),
        (
            {"files": files(b"1"), "data": {"requests": '[{"text": "a"}]', "text": "b"}},
            "invalid_request",
        ),
        ({"files": {"requests": (None, '[{"text": "a"}]')}}, "invalid_request"),
    ],
)
async def test_a_call_that_is_wrong_as_a_whole(client, service, content, code):
    answer = await client.post(URL, **content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["code"] == code
    assert service.requests == []


class Connection:
    """An ASGI client that reads lines as they come and can leave."""

    def __init__(self, body: bytes) -> None:
        self._body: list[dict[str, Any]] = [
            {"type": "http.request", "body": body, "more_body": False}
        ]
        self.left = asyncio.Event()
        self.chunks: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        if self._body:
            return self._body.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.chunks.put(message)

    async def line(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self.chunks.get(), 60)
        return orjson.loads(message["body"]) if message.get("body") else message


SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "path": URL,
    "raw_path": URL.encode(),
    "query_string": b"",
    "root_path": "",
    "scheme": "http",
    "headers": [(b"content-type", b"application/json")],
    "client": ("c", 1),
    "server": ("s", 1),
}


async def test_lines_come_as_they_are_ready_and_a_client_that_leaves_ends_it(app, service):
    released, running, cancelled = asyncio.Event(), asyncio.Semaphore(0), []

    async def wait(request: Any) -> None:
        if request.image == "quick":
            return
        try:
            running.release()
            await released.wait()
        except asyncio.CancelledError:
            cancelled.append(request.image)
            raise

    service.hook = wait
    items = [{"image_id": name, "text": "a"} for name in ("slow1", "slow2", "quick")]
    connection = Connection(json.dumps({"items": items}).encode())
    serving = asyncio.create_task(app({**SCOPE}, connection.receive, connection.send))
    assert (await connection.line())["status"] == 200
    # The quick one answers while the others, sent before it, still run.
    assert (await connection.line())["index"] == 2
    for _ in range(2):
        await asyncio.wait_for(running.acquire(), 60)
    connection.left.set()
    await asyncio.wait_for(serving, 60)
    assert sorted(cancelled) == ["slow1", "slow2"]
    assert connection.chunks.empty()


async def test_concurrency_is_bounded(client, service):
    now, most = 0, 0

    async def job() -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(3):
            await asyncio.sleep(0)
        now -= 1
        return b"{}"

    connection = Connection(b"")
    response = NdjsonResponse([job] * 20, 3)
    await response(SCOPE, connection.receive, connection.send)
    assert most == 3
    assert connection.chunks.qsize() == 22  # start, 20 lines, end


async def test_a_connection_that_breaks_ends_the_work():
    started = 0

    async def job() -> bytes:
        nonlocal started
        started += 1
        return b"{}"

    async def broken(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    with pytest.raises(ExceptionGroup):
        await NdjsonResponse([job] * 20, 2)(SCOPE, Connection(b"").receive, broken)
    assert started <= 4
