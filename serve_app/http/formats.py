"""Responses in the formats that clients request.  CPU work: in a thread, unless `is_quick`.

A new mask format is one function and one line in `_SEGMENTATIONS` (a form of each mask) or
`_DOCUMENTS` (a form of the whole response).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from serve_app.core.rle import rle_of
from serve_app.core.types import EmbedResult, Mask, PromptResult, SegmentResult, dumped
from serve_app.masks.operations import masks_npz
from serve_app.masks.outlines import Polygon, geojson_coordinates, rle_polygons
from serve_app.masks.png import mask_png

JSON_TYPE = "application/json"
GEOJSON_TYPE = "application/geo+json"
NPZ_TYPE = "application/x-npz"

_QUICK_BYTES, _QUICK_MASKS = 2**18, 128
"""Run lengths and masks that are written as JSON in a millisecond."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Instants of ``time.perf_counter``: when a request began, and when it was parsed."""

    started: float
    parsed: float

    def timings(self, stages: Mapping[str, float], formatting: float | None) -> dict[str, float]:
        """Milliseconds of all stages, with ``parse``, ``format`` (if there was one), ``total``.

        Args:
            formatting: the instant at which formatting began.
        """
        now = time.perf_counter()
        own = {"parse": self.parsed - self.started, "total": now - self.started}
        if formatting is not None:
            own["format"] = now - formatting
        rounded = {name: round(seconds * 1e3, 3) for name, seconds in own.items()}
        return {**{name: round(float(ms), 3) for name, ms in stages.items()}, **rounded}


def to_json(value: Any) -> bytes:
    """JSON text of dicts, lists, dataclasses and numpy scalars."""

    def other(item: Any) -> Any:
        if isinstance(item, Mapping):
            return dict(item)
        raise TypeError

    return orjson.dumps(value, default=other, option=orjson.OPT_SERIALIZE_NUMPY)


def is_quick(result: SegmentResult, fmt: str) -> bool:
    """Whether formatting takes less than handing it to a thread: run lengths stay as they are."""
    masks = _masks(result)
    if fmt != "rle" or len(masks) > _QUICK_MASKS:
        return False
    size = sum(len(mask.rle.counts) for mask in masks)
    return size <= _QUICK_BYTES and all(m.low_res_logits is None for m in masks)


def warm_up() -> None:
    """Compile what writes masks, or load it: seconds that no request should take."""
    empty = rle_of(np.empty(0, np.int64), (1, 1))
    mask_png(empty)
    rle_polygons(empty)


def segment_file(result: SegmentResult, fmt: str, clock: Clock) -> tuple[bytes, str]:
    """The whole response and its content type.

    ``npz`` is a file for ``numpy.load``: `masks_npz`'s arrays, ``result_index (N,)`` (the prompt
    or text of each mask), ``low_res_logits (N, 256, 256) float16`` if they were requested, and
    ``answer``, a string with the response's other members as JSON.
    """
    if fmt == "npz":
        return _npz(result, clock), NPZ_TYPE
    body = segment_response(result, fmt, clock)
    return to_json(body), GEOJSON_TYPE if fmt == "geojson" else JSON_TYPE


def segment_response(result: SegmentResult, fmt: str, clock: Clock) -> dict[str, Any]:
    """The response as a JSON-like object; ``npz`` becomes base64 beside the other members."""
    formatting = time.perf_counter()
    body = dumped(result, exclude={"results", "timings_ms"})
    if fmt in _DOCUMENTS:
        body.update(_DOCUMENTS[fmt](result, clock))
        body["results"] = _results_without_masks(result)
    else:
        body["results"] = [_result(one, _SEGMENTATIONS[fmt]) for one in result.results]
    body["timings_ms"] = clock.timings(result.timings_ms, formatting)
    return body


def embed_response(result: EmbedResult, clock: Clock) -> dict[str, Any]:
    """The response to an embed call."""
    timings = clock.timings(result.timings_ms, None)
    return {**dumped(result, exclude={"timings_ms"}), "timings_ms": timings}


def png_base64(mask: Mask) -> str:
    """The mask as base64 of a gray PNG of 0 and 255."""
    return base64.b64encode(mask_png(mask.rle)).decode()


def _result(one: Any, segmentation: Callable[[Mask], Any] | None) -> dict[str, Any]:
    if segmentation is None or not isinstance(one, PromptResult):
        return dumped(one)
    body = dumped(one, exclude={"masks": {"__all__": {"rle"}}})
    for mask, entry in zip(one.masks, body["masks"], strict=True):
        entry["segmentation"] = segmentation(mask)
    return body


def _results_without_masks(result: SegmentResult) -> list[dict[str, Any]]:
    return [dumped(one, exclude={"masks"}) for one in result.results]


def _masks(result: SegmentResult) -> list[Mask]:
    return [mask for one in result.results if isinstance(one, PromptResult) for mask in one.masks]


def _polygons(mask: Mask) -> list[Polygon]:
    return rle_polygons(mask.rle)


def _geojson(result: SegmentResult, clock: Clock) -> dict[str, Any]:
    features = [
        _feature(mask, i, j, one.text)
        for i, one in enumerate(result.results)
        for j, mask in enumerate(one.masks)
    ]
    return {"type": "FeatureCollection", "features": features}


def _feature(mask: Mask, result: int, index: int, text: str | None) -> dict[str, Any]:
    parts = geojson_coordinates(rle_polygons(mask.rle))
    geometry: dict[str, Any] | None = None
    if len(parts) == 1:
        geometry = {"type": "Polygon", "coordinates": parts[0]}
    elif parts:
        geometry = {"type": "MultiPolygon", "coordinates": parts}
    about: dict[str, Any] = {"result": result, "mask": index}
    if text is not None:
        about["text"] = text
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {**about, **dumped(mask, exclude={"rle"})},
    }


def _npz(result: SegmentResult, clock: Clock) -> bytes:
    masks = _masks(result)
    owners = [i for i, one in enumerate(result.results) for _ in one.masks]
    columns = {"result_index": np.array(owners, np.int64)}
    logits = [mask.low_res_logits for mask in masks if mask.low_res_logits is not None]
    if logits and len(logits) == len(masks):
        columns["low_res_logits"] = np.stack(logits).astype(np.float16)
    members = {
        **dumped(result, exclude={"results", "timings_ms"}),
        "results": _results_without_masks(result),
        "timings_ms": clock.timings(result.timings_ms, None),
    }
    for mask in masks:
        dumped(mask, exclude={"rle"})  # a number that is not finite is an error here, too
    return masks_npz(
        masks, (result.height, result.width), **columns, answer=np.array(to_json(members).decode())
    )


def _npz_member(result: SegmentResult, clock: Clock) -> dict[str, Any]:
    return {"npz": base64.b64encode(_npz(result, clock)).decode()}


_SEGMENTATIONS: Mapping[str, Callable[[Mask], Any] | None] = {
    "rle": None,  # as results are written anyway
    "polygon": _polygons,
    "png": png_base64,
}
_DOCUMENTS: Mapping[str, Callable[[SegmentResult, Clock], dict[str, Any]]] = {
    "geojson": _geojson,
    "npz": _npz_member,
}
FORMATS = ("rle", "polygon", "png", "npz", "geojson")
