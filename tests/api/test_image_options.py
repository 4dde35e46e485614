"""How a file is to be read, in every way to say it."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.capabilities import SegmentRequest
from serve_app.client import HttpService
from serve_app.core.errors import InvalidRequest
from serve_app.core.request import EmbedRequest, ImageOptions, Reading
from serve_app.core.types import ImageInfo, PixelSize, Prompt, adapter

from ..fakes.service import FakeService

FILE = b"II*\0 not really a TIFF file"
BOX = {"box": [1, 2, 8, 9]}


@pytest.mark.parametrize(
    ("fields", "reading"),
    [
        ({}, Reading()),
        ({"page": 2}, Reading(page=2)),
        ({"channel": 1}, Reading(channel=(1,))),
        ({"channel": [4, 0, 2], "scaling": "channel"}, Reading(0, (4, 0, 2), "channel")),
        ({"page": 0, "scaling": "image"}, Reading()),
    ],
)
async def test_form_json_batch_embed_client_and_handle(
    client: httpx.AsyncClient, service: FakeService, fields: dict[str, Any], reading: Reading
) -> None:
    plain = {n: v if isinstance(v, str) else json.dumps(v) for n, v in {**BOX, **fields}.items()}
    files = {"file": ("x.tif", FILE)}
    body = {"image": base64.b64encode(FILE).decode(), "prompts": [BOX], **fields}
    inside = {"request": json.dumps({"prompts": [BOX], **fields})}
    answers = [
        await client.post("/v1/segment", files=files, data=plain),
        await client.post("/v1/segment", files=files, data=inside),
        await client.post("/v1/segment", json=body),
        await client.post("/v1/segment/batch", json={"items": [body]}),
    ]
    async with HttpService("http://sam", transport=client._transport) as sam:
        await sam.segment(SegmentRequest(image=FILE, task=[Prompt(**BOX)], **fields))
        assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers]
        assert [request.reading for request in service.requests] == [reading] * 5
        await sam.embed(EmbedRequest(image=FILE, **fields))
    assert service.embed_options is not None
    assert service.embed_options.reading == reading


@pytest.mark.parametrize(
    "fields",
    [
        {"page": -1},
        {"page": "first"},
        {"page": 1.5},
        {"channel": []},
        {"channel": [0, 1]},
        {"channel": -1},
        {"channel": True},
        {"channel": [0, 1, "red"]},
        {"scaling": "none"},
        {"scaling": 1},
    ],
)
async def test_what_they_cannot_be(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    image = base64.b64encode(FILE).decode()
    for path, more in (("segment", {"prompts": [BOX]}), ("embed", {})):
        answer = await client.post(f"/v1/{path}", json={"image": image, **more, **fields})
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["field"].startswith(name)
    with pytest.raises(InvalidRequest):
        ImageOptions(**fields)


@pytest.mark.parametrize("options", [{"page": 0}, {"channel": 0}, {"scaling": "image"}])
async def test_without_a_file_they_are_refused(
    client: httpx.AsyncClient, options: dict[str, Any]
) -> None:
    """At once in Python, also by the client, which sends an array as a file."""
    name = next(iter(options))
    for image in (np.zeros((9, 9, 3), np.uint8), "9x9-abc"):
        for build in (
            lambda image: SegmentRequest(image=image, task=[Prompt(**BOX)], **options),
            lambda image: EmbedRequest(image=image, **options),
        ):
            with pytest.raises(InvalidRequest, match="how a file is read") as caught:
                build(image)
            assert caught.value.field == name
    for path, more in (("segment", {"prompts": [BOX]}), ("embed", {})):
        answer = await client.post(f"/v1/{path}", json={"image_id": "9x9-a", **more, **options})
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (422, name), error


def test_what_was_found_is_written_as_json() -> None:
    info = ImageInfo(
        format="TIFF",
        pages=3,
        page=1,
        channels=5,
        channel=(4, 0, 2),
        dtype="uint16",
        bit_depth=16,
        scaling="channel",
        pixel_size=PixelSize(x=0.5, y=0.5, unit="um"),
    )
    text = adapter(ImageInfo).dump_json(info)
    assert json.loads(text)["pixel_size"] == {"x": 0.5, "y": 0.5, "unit": "um"}
    assert adapter(ImageInfo).validate_json(text) == info
