"""The one rule by which samples that are not 8-bit become 8-bit.

The 1st percentile of the valid samples becomes 0 and the 99th 255, for all channels together or
for each.  Not valid are NaN, infinities, the file's nodata value, transparent pixels, and fill
values that nobody marked (`_without_extremes`).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**20
_SAMPLE = 2**21
"""Percentiles of larger images are those of this number of evenly spaced samples."""

_FILLS = (
    *(-9999.0, -99999.0, -999999.0, 9999.0, 99999.0, -999.0, -32768.0, -32767.0, -(2.0**31)),
    *(1e20, 1e30, -1e30, 9.969209968386869e36),
)
"""Values that programs of the geosciences write where they measured nothing."""

_LARGEST_FILL = 1e37
"""Beyond it, as the limits of float32 (3.4e38), nothing was measured."""

_FEWEST = 8
"""Fewer samples are no area."""

_MOST_MARKED = 0.5
"""A value that is no usual fill value and covers more of the image is its background."""


def scaled_to_8_bits(
    samples: NDArray[Any],
    scaling: Literal["image", "channel"] = "image",
    nodata: float | None = None,
    visible: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Scale ``(H, W, C)`` samples of any real dtype to uint8.

    NaN, nodata and fill values become 0.  A constant image becomes 0.

    Args:
        nodata: the value of pixels without data, as the file gives it.
        visible: ``(H, W)``, false where the image is transparent: left out of the percentiles.
    """
    result = np.zeros(samples.shape, np.uint8)
    channels = samples.shape[-1]
    together = channels if scaling == "image" else 1
    for first in range(0, channels, together):
        group = slice(first, first + together)
        values = samples[:, :, group]
        low, high, fills = _stretch(values, nodata, visible)
        if low == high:
            continue
        # In blocks: the whole image in float64 would take eight times its memory.
        rows = max(1, _BLOCK // (values.shape[1] * values.shape[2]))
        for top in range(0, values.shape[0], rows):
            part = values[top : top + rows].astype(np.float64)
            with np.errstate(all="ignore"):
                unit = (part - low) / (high - low)
            unit[np.isnan(unit) | np.isin(part, fills)] = 0.0
            result[top : top + rows, :, group] = np.rint(unit.clip(0, 1) * 255)
    return result


def _stretch(
    values: NDArray[Any], nodata: float | None, visible: NDArray[np.bool_] | None
) -> tuple[float, float, list[float]]:
    """The values that become 0 and 255, and those that hold no data."""
    step = values.size // _SAMPLE + 1
    seen = None if visible is None else np.broadcast_to(visible[:, :, None], values.shape)
    found = _valid(values, seen, nodata, step)
    fills = [] if nodata is None or not fits(nodata, values.dtype) else [_as(nodata, values.dtype)]
    if found.size == 0:
        return 0.0, 0.0, fills
    found.sort()
    found, more = _without_extremes(found)
    fills += more
    low, high = _percentiles(found)
    if low == high:
        # Few bright spots on a constant background, which the sample may have missed.
        found = _valid(values, seen, nodata, 1)
        found = found[~np.isin(found, fills)]
        if found.size:
            low, high = float(found.min()), float(found.max())
    return low, high, fills


def _valid(
    values: NDArray[Any], seen: NDArray[np.bool_] | None, nodata: float | None, step: int
) -> NDArray[Any]:
    flat = values.reshape(-1)[::step]
    kept = np.isfinite(flat)
    if seen is not None:
        kept &= seen.reshape(-1)[::step]
    if nodata is not None:
        kept &= flat != flat.dtype.type(nodata) if fits(nodata, flat.dtype) else True
    found: NDArray[Any] = flat[kept]
    return found


def fits(value: float, dtype: np.dtype[Any]) -> bool:
    """Whether an array of ``dtype`` can hold ``value``."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def _as(value: float, dtype: np.dtype[Any]) -> float:
    """``value`` as an array of ``dtype`` has it."""
    with np.errstate(all="ignore"):
        return float(dtype.type(value))


def _percentiles(ordered: NDArray[Any]) -> tuple[float, float]:
    # No interpolation, which would overflow between integers.
    last = ordered.size - 1
    low, high = (ordered[max(0, int(np.ceil(share * ordered.size)) - 1)] for share in (0.01, 0.99))
    return float(low), float(min(high, ordered[last]))


def _without_extremes(ordered: NDArray[Any]) -> tuple[NDArray[Any], list[float]]:
    """Sorted samples without the values that would take the stretch from all others.

    Such a value is the lowest or highest, is an area (a usual fill value) or at least a hundredth
    of the samples, and lies so far from the others that they would share few of the 256 levels.
    The fill values among them are returned too: they are black, at whichever end they lie.
    """
    fills: list[float] = []
    usual = [fill for fill in _FILLS if fits(fill, ordered.dtype)]
    for _ in range(4):  # both ends, and two fill values
        for at_end in (False, True):
            value = float(ordered[-1 if at_end else 0])
            side: Literal["left", "right"] = "left" if at_end else "right"
            cut = int(np.searchsorted(ordered, ordered[-1 if at_end else 0], side))
            count = ordered.size - cut if at_end else cut
            rest = ordered[:cut] if at_end else ordered[cut:]
            fill = abs(value) >= _LARGEST_FILL or any(_as(f, ordered.dtype) == value for f in usual)
            if count < (_FEWEST if fill else max(_FEWEST, ordered.size / 100)) or rest.size == 0:
                continue
            low, high = _percentiles(rest)
            gap = value - float(rest[-1]) if at_end else float(rest[0]) - value
            # Black pixels are dark more often than they are unmarked: only far outside.
            far = gap > (high - low) * (1 if fill or at_end else 3)
            if high > low and far and (fill or count <= _MOST_MARKED * ordered.size):
                ordered = rest
                if fill:
                    fills.append(value)
                break
        else:
            break
    return ordered, fills
