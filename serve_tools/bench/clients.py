"""Clients of the compared services, over one asynchronous HTTP client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import httpx
import orjson

from serve_tools.bench.load import RequestFailed
from serve_tools.bench.photos import Photo

Click = tuple[float, float]
_MASKS = 3


class Client(Protocol):
    """One way to request the masks of a click, or the embedding of an image."""

    async def introduce(self, photo: Photo) -> None:
        """Send a photo for the first time, as a user's first request does."""
        ...

    async def send(self, photo: Photo, click: Click) -> Mapping[str, float]:
        """Send one request.

        Returns:
            Milliseconds by stage, as reported by the service.

        Raises:
            RequestFailed: no response, an error, or an unexpected result.
        """
        ...


class OurClient:
    """This service: by ``image_id`` if the photo is known, else with the file.

    Args:
        by_id: False: send the file with each request.
    """

    def __init__(self, http: httpx.AsyncClient, variant: str, *, by_id: bool) -> None:
        self._http, self._variant, self._by_id = http, variant, by_id
        self._ids: dict[str, str] = {}

    async def introduce(self, photo: Photo) -> None:
        body = await post(
            self._http, "/v1/embed", files={"file": photo.jpeg}, data={"variant": self._variant}
        )
        if self._by_id:
            self._ids[photo.name] = str(body["image_id"])

    async def send(self, photo: Photo, click: Click) -> Mapping[str, float]:
        prompt = {"point_coords": [click], "point_labels": [1]}
        fields = {"prompts": [prompt], "variant": self._variant}
        image_id = self._ids.get(photo.name)
        if image_id is not None:
            content = orjson.dumps({"image_id": image_id, **fields})
            headers = {"content-type": "application/json"}
            body = await post(self._http, "/v1/segment", content=content, headers=headers)
        else:
            data = {"request": orjson.dumps(fields).decode()}
            files = {"file": photo.jpeg}
            body = await post(self._http, "/v1/segment", files=files, data=data)
        _check(len(body["results"][0]["masks"]))
        return {k: v for k, v in body["timings_ms"].items() if k != "total"}


class OurEmbedClient(OurClient):
    """This service, embedding images only."""

    async def send(self, photo: Photo, click: Click) -> Mapping[str, float]:
        body = await post(
            self._http, "/v1/embed", files={"file": photo.jpeg}, data={"variant": self._variant}
        )
        return {k: v for k, v in body["timings_ms"].items() if k != "total"}


class PlainClient:
    """`serve_tools.bench.plain_service`: sends the file with each request."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def introduce(self, photo: Photo) -> None:
        await self.send(photo, (photo.size[0] / 2, photo.size[1] / 2))

    async def send(self, photo: Photo, click: Click) -> Mapping[str, float]:
        data = {"point_coords": orjson.dumps([click]).decode(), "point_labels": "[1]"}
        body = await post(self._http, "/segment", files={"file": photo.jpeg}, data=data)
        _check(len(body["masks"]))
        stages: Mapping[str, float] = body["timings_ms"]
        return stages


class IsatClient:
    """The peer ``isat-sam-backend``: raw pixels in, the embedding as nested lists out.

    It is stateless and has no route for prompts: its clients run the mask decoder themselves.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def introduce(self, photo: Photo) -> None:
        """Does nothing: the service keeps no image."""

    async def send(self, photo: Photo, click: Click) -> Mapping[str, float]:
        shape = ",".join(map(str, photo.pixels.shape))
        response = await _send(
            self._http, "/api/encode",
            files={"file": photo.pixels.tobytes()}, data={"shape": shape, "dtype": "uint8"},
        )  # fmt: skip
        # Parsing its lists is the caller's work, and is not counted here.
        if not response.content.startswith(b'{"features":'):
            raise RequestFailed("no features in the response")
        return {}


def _check(masks: int) -> None:
    if masks != _MASKS:
        raise RequestFailed(f"{masks} masks instead of {_MASKS}")


async def post(http: httpx.AsyncClient, path: str, **content: Any) -> dict[str, Any]:
    """The JSON of a successful response; raises `RequestFailed` for any other."""
    response = await _send(http, path, **content)
    body: dict[str, Any] = orjson.loads(response.content)
    return body


async def _send(http: httpx.AsyncClient, path: str, **content: Any) -> httpx.Response:
    try:
        response = await http.post(path, **content)
    except httpx.HTTPError as exc:
        raise RequestFailed(type(exc).__name__) from exc
    if not response.is_success:
        raise RequestFailed(f"status {response.status_code}", response.status_code)
    return response
