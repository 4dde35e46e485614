"""Requests of all kinds, cheap to make: images are BMP files, drawn without a library."""

from __future__ import annotations

import itertools
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POINT = {"point_coords": [[5, 5]], "point_labels": [1]}
SMALL = (64, 48)
"""Width and height in pixels; 9 KB."""
LARGE = (256, 192)
"""147 KB, as a small photo."""
_COUNTER = itertools.count(int.from_bytes(uuid.uuid4().bytes[:4], "big") << 20)


@dataclass(frozen=True)
class Ask:
    """One HTTP request.

    Attributes:
        kind: names it in reports.
        key: requests of one key must have one answer.
        timeout_s: how long the client waits.
    """

    kind: str
    key: str
    path: str
    body: bytes
    content_type: str
    timeout_s: float = 60.0
    headers: dict[str, str] = field(default_factory=dict)


def bmp(number: int, size: tuple[int, int] = SMALL) -> bytes:
    """A picture that is like no picture of another number."""
    width, height = size
    rows = np.empty((height, width, 3), np.uint8)
    rows[:] = np.arange(height, dtype=np.uint8)[:, None, None]
    data = bytearray(rows.tobytes())
    data[:8] = (number & (2**64 - 1)).to_bytes(8, "big")
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + info + bytes(data)


def new_number() -> int:
    """One that no other call has had, in whichever process."""
    return next(_COUNTER)


def form(kind: str, key: str, image: bytes, request: dict[str, Any], path: str = "segment") -> Ask:
    """A multipart form with one file, as browsers and curl send it."""
    edge = "chaos-edge-7d1b"
    head = (
        f'--{edge}\r\ncontent-disposition: form-data; name="request"\r\n\r\n{json.dumps(request)}'
        f'\r\n--{edge}\r\ncontent-disposition: form-data; name="file"; filename="a.bmp"\r\n'
        "content-type: image/bmp\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{edge}--\r\n".encode()
    return Ask(kind, key, f"/v1/{path}", body, f"multipart/form-data; boundary={edge}")


def plain(kind: str, key: str, request: dict[str, Any], path: str = "segment") -> Ask:
    """A JSON request."""
    return Ask(kind, key, f"/v1/{path}", json.dumps(request).encode(), "application/json")


def new_image(size: tuple[int, int] = SMALL) -> Ask:
    """A point on an image that nobody has seen."""
    number = new_number()
    return form("new", f"new-{number}", bmp(number, size), {"prompts": [POINT]})


def batch(items: int, size: tuple[int, int] = SMALL) -> Ask:
    """Several new images in one call, answered line by line."""
    number = new_number()
    edge = "chaos-edge-7d1b"
    request = json.dumps({"prompts": [POINT]})
    body = f'--{edge}\r\ncontent-disposition: form-data; name="request"\r\n\r\n{request}\r\n'
    data = body.encode()
    for _ in range(items):
        data += (
            f'--{edge}\r\ncontent-disposition: form-data; name="files"; filename="a.bmp"\r\n'
            "content-type: image/bmp\r\n\r\n"
        ).encode() + bmp(new_number(), size)
        data += b"\r\n"
    data += f"--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    return Ask("batch", f"batch-{number}", "/v1/segment/batch", data, kind)


class Mix:
    """Prompts on new and on known images, texts, and "everything", by turns.

    Args:
        known: numbers of images that are sent along each time: whoever knows one by its content
            embeds it no more.
    """

    def __init__(self, known: int = 8, size: tuple[int, int] = SMALL) -> None:
        self._images = [
            (number, bmp(number, size)) for number in (new_number() for _ in "_" * known)
        ]
        self._size = size
        self._turn = itertools.count()

    def __call__(self) -> Ask:
        turn = next(self._turn)
        makers: list[Callable[[int], Ask]] = [self._new, self._known, self._text, self._everything]
        return makers[turn % 4](turn // 4)

    def _new(self, turn: int) -> Ask:
        return new_image(self._size)

    def _known(self, turn: int) -> Ask:
        number, image = self._images[turn % len(self._images)]
        box = {"box": [2, 2, 20 + turn % 7, 30]}
        key = f"known-{number}-{turn % 7}"
        return form("known", key, image, {"prompts": [POINT, box]})

    def _text(self, turn: int) -> Ask:
        number, image = self._images[turn % len(self._images)]
        return form("text", f"text-{number}", image, {"text": ["cat", "dog"]})

    def _everything(self, turn: int) -> Ask:
        number, image = self._images[turn % len(self._images)]
        return form(
            "everything", f"everything-{number}", image, {"everything": {"points_per_side": 6}}
        )
