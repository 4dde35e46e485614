"""A result in the formats that clients ask for.  CPU work: in a thread, unless `is_quick`."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from serve_app.core.errors import InternalError
from serve_app.core.types import EmbedResult, Mask, PromptResult, SegmentResult
from serve_app.http.schemas import MaskFormat
from serve_app.masks.operations import geojson_coordinates, mask_png, mask_polygons, masks_npz

JSON_TYPE = "application/json"
GEOJSON_TYPE = "application/geo+json"
NPZ_TYPE = "application/x-npz"

_QUICK = 2**18
"""Bytes of run lengths that are written as JSON in a millisecond."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Instants of ``time.perf_counter``: when a request began, and when it was understood."""

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


def is_quick(result: SegmentResult, fmt: MaskFormat) -> bool:
    """Whether formatting takes less than handing it to a thread: run lengths stay as they are."""
    masks = [mask for one in result.results for mask in one.masks]
    size = sum(len(mask.rle.counts) for mask in masks)
    return fmt == "rle" and size <= _QUICK and all(m.low_res_logits is None for m in masks)


def segment_file(
    result: SegmentResult, fmt: MaskFormat, everything: bool, clock: Clock
) -> tuple[bytes, str]:
    """The whole answer and its content type.

    ``npz`` is a file for ``numpy.load``: `masks_npz`'s arrays, ``result_index (N,)`` (which
    prompt or text each mask answers), ``low_res_logits (N, 256, 256) float16`` if they were
    asked for, and ``answer``, a string with the answer's other members as JSON.
    """
    if fmt == "npz":
        return _npz(result, clock), NPZ_TYPE
    answer = segment_answer(result, fmt, everything, clock)
    return to_json(answer), GEOJSON_TYPE if fmt == "geojson" else JSON_TYPE


def segment_answer(
    result: SegmentResult, fmt: MaskFormat, everything: bool, clock: Clock
) -> dict[str, Any]:
    """The answer as a JSON-like object; ``npz`` becomes base64 beside the other members."""
    formatting = time.perf_counter()
    answer = _facts(result)
    if fmt == "npz":
        answer["results"] = [_text_facts(r) for r in result.results]
        answer["npz"] = _base64(_npz(result, clock))
    elif fmt == "geojson":
        answer["type"] = "FeatureCollection"
        answer["features"] = [
            _feature(mask, everything, i, j, one.text)
            for i, one in enumerate(result.results)
            for j, mask in enumerate(one.masks)
        ]
        answer["results"] = [_text_facts(r) for r in result.results]
    else:
        answer["results"] = [
            {
                **_text_facts(one),
                "masks": [
                    {**_mask_facts(mask, everything), "segmentation": _segmentation(mask, fmt)}
                    for mask in one.masks
                ],
            }
            for one in result.results
        ]
    answer["timings_ms"] = clock.timings(result.timings_ms, formatting)
    return answer


def embed_answer(result: EmbedResult, clock: Clock) -> dict[str, Any]:
    """The answer to an embed call."""
    return {
        **_image_facts(result),
        "timings_ms": clock.timings(result.timings_ms, None),
    }


def png_base64(mask: Mask) -> str:
    """The mask as base64 of a gray PNG of 0 and 255."""
    return _base64(mask_png(mask.rle))


def finite(value: float, name: str) -> float:
    """``value``; `InternalError` if a model answered NaN, which JSON cannot say."""
    if not math.isfinite(value):
        raise InternalError(f"the model answered a {name} that is not a number")
    return float(value)


def _image_facts(result: SegmentResult | EmbedResult) -> dict[str, Any]:
    names = ("image_id", "width", "height", "variant", "model", "cache")
    return {name: getattr(result, name) for name in names}


def _facts(result: SegmentResult) -> dict[str, Any]:
    return {
        **_image_facts(result),
        "reason": result.reason,
        **_present(
            text_engine=result.text_engine,
            threshold=result.threshold,
            expected_ms=None if result.expected_ms is None else round(result.expected_ms, 1),
            degraded=result.degraded or None,
            escalated=result.escalated or None,
        ),
    }


def _present(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _text_facts(result: PromptResult) -> dict[str, Any]:
    best = result.best_score
    return _present(
        text=result.text,
        present=result.present,
        best_score=None if best is None else finite(best, "score"),
        variant=result.variant,
    )


def _mask_facts(mask: Mask, everything: bool) -> dict[str, Any]:
    score = finite(mask.score, "score")
    logits = mask.low_res_logits
    return {
        "score": score,
        "stability_score": finite(mask.stability_score, "stability score"),
        "bbox": [int(v) for v in mask.bbox],
        "area": int(mask.area),
        **_present(
            predicted_iou=score if everything else None,
            point_coords=[list(mask.point_coords)] if mask.point_coords else None,
            crop_box=mask.crop_box,
            text_score=None if mask.text_score is None else finite(mask.text_score, "score"),
            label=mask.label,
            low_res_logits=None if logits is None else _base64(logits.astype("<f2").tobytes()),
        ),
    }


def _segmentation(mask: Mask, fmt: MaskFormat) -> Any:
    if fmt == "polygon":
        return [[ring.tolist() for ring in polygon] for polygon in mask_polygons(mask.array)]
    if fmt == "png":
        return png_base64(mask)
    return {"size": list(mask.rle.size), "counts": mask.rle.counts.decode("ascii")}


def _feature(
    mask: Mask, everything: bool, result_index: int, mask_index: int, text: str | None
) -> dict[str, Any]:
    parts = geojson_coordinates(mask_polygons(mask.array))
    geometry: dict[str, Any] | None = None
    if len(parts) == 1:
        geometry = {"type": "Polygon", "coordinates": parts[0]}
    elif parts:
        geometry = {"type": "MultiPolygon", "coordinates": parts}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {
            "result": result_index,
            "mask": mask_index,
            **_present(text=text),
            **_mask_facts(mask, everything),
        },
    }


def _npz(result: SegmentResult, clock: Clock) -> bytes:
    masks = [mask for one in result.results for mask in one.masks]
    owners = [i for i, one in enumerate(result.results) for _ in one.masks]
    columns = {"result_index": np.array(owners, np.int64)}
    logits = [mask.low_res_logits for mask in masks if mask.low_res_logits is not None]
    if logits and len(logits) == len(masks):
        columns["low_res_logits"] = np.stack(logits).astype(np.float16)
    members = {
        **_facts(result),
        "results": [_text_facts(one) for one in result.results],
        "timings_ms": clock.timings(result.timings_ms, None),
    }
    for mask in masks:
        finite(mask.score, "score")
    return masks_npz(
        masks, (result.height, result.width), **columns, answer=np.array(to_json(members).decode())
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
