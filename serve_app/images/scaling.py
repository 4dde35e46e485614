"""The one rule by which samples that are not 8-bit become 8-bit.

The 1st percentile of the valid samples becomes 0 and the 99th 255, for all channels together or
for each.  Not valid are NaN, infinities, the file's nodata value, transparent pixels, and fill
values that nobody marked (`_without_extremes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**18
"""Samples that are converted at once: they stay in a processor's cache."""

_SAMPLE = 2**20
"""Percentiles of larger images are those of this number of samples, spread by `_spread`."""

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
    alpha: NDArray[Any] | None = None,
    negative: bool = False,
) -> NDArray[np.uint8]:
    """Scale ``(H, W, C)`` samples of any real dtype to uint8 of the same shape.

    NaN, infinities, nodata and fill values become 0.  A constant image becomes 0.

    Args:
        nodata: the value of pixels without data, as the file gives it.
        alpha: ``(H, W)``, of any real dtype; pixels where it is not positive are left out of the
            percentiles.
        negative: high samples become dark: the valid ones are inverted.
    """
    result = np.zeros(samples.shape, np.uint8)
    channels = samples.shape[2]
    together = channels if scaling == "image" else 1
    for first in range(0, channels, together):
        group = slice(first, first + together)
        values = samples[:, :, group]
        low, high, fills = _stretch(values, nodata, alpha)
        if low == high and not negative:
            continue
        for rows in blocks(values):
            with np.errstate(all="ignore"):
                part = values[rows].astype(np.float64)
                invalid = ~np.isfinite(part) | np.isin(part, fills)
                unit = (part - low) / (high - low) if high > low else np.zeros_like(part)
            if negative:
                unit = 1 - unit
            unit[invalid | np.isnan(unit)] = 0
            result[rows, :, group] = np.rint(unit.clip(0, 1) * 255)
    return result


def blocks(samples: NDArray[Any]) -> Iterator[slice]:
    """The rows of ``(H, W, ...)`` samples, some at a time: conversions need little memory so."""
    step = max(1, _BLOCK // max(1, samples[:1].size))
    for top in range(0, len(samples), step):
        yield slice(top, min(top + step, len(samples)))


def _stretch(
    values: NDArray[Any], nodata: float | None, alpha: NDArray[Any] | None
) -> tuple[float, float, list[float]]:
    """The values that become 0 and 255, and those that hold no data."""
    height, width, channels = values.shape
    found = np.concatenate(
        [
            _valid(values[places], None if alpha is None else alpha[places], nodata)
            for places in _spread(height, width, -(-_SAMPLE // channels))
        ]
    )
    fills = [] if nodata is None or not fits(nodata, values.dtype) else [_as(nodata, values.dtype)]
    if found.size == 0:
        return 0.0, 0.0, fills
    found.sort()
    found, more = _without_extremes(found)
    fills += more
    low, high = _percentiles(found)
    if low == high:
        # Few bright spots on a constant background, which the sample may have missed.
        low, high = _extent(values, nodata, alpha, fills)
    return low, high, fills


def _spread(
    height: int, width: int, most: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and columns of at most ``most`` pixels, in blocks: one of each run of equally many.

    Its place in the run follows the golden ratio, so that of a pattern of any period, such as the
    columns of a mosaic, each part is seen as often as it occurs.
    """
    step = -(-height * width // most)
    count = height * width // step
    for first in range(0, count, _BLOCK):
        run = np.arange(first, min(first + _BLOCK, count), dtype=np.uint64)
        within = (run * np.uint64(0x9E3779B9) & np.uint64(0xFFFFFFFF)) * np.uint64(step)
        places = (run * np.uint64(step) + (within >> np.uint64(32))).astype(np.intp)
        yield np.divmod(places, width)


def _valid(values: NDArray[Any], alpha: NDArray[Any] | None, nodata: float | None) -> NDArray[Any]:
    """The valid samples of ``(..., C)`` pixels, in one dimension."""
    kept = np.isfinite(values)
    if alpha is not None:
        kept &= (alpha > 0)[..., np.newaxis]
    if nodata is not None and fits(nodata, values.dtype):
        kept &= values != values.dtype.type(nodata)
    found: NDArray[Any] = values[kept]
    return found


def _extent(
    values: NDArray[Any], nodata: float | None, alpha: NDArray[Any] | None, fills: list[float]
) -> tuple[float, float]:
    """The least and the greatest of all valid samples; 0 and 0 if there are none."""
    ends = []
    for rows in blocks(values):
        found = _valid(values[rows], None if alpha is None else alpha[rows], nodata)
        found = found[~np.isin(found, fills)]
        if found.size:
            ends += [float(found.min()), float(found.max())]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


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
    low, high = (ordered[max(0, int(np.ceil(share * ordered.size)) - 1)] for share in (0.01, 0.99))
    return float(low), float(high)


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
