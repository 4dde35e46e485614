"""Compiled loops: one version of each, with or without a folder for the machine code."""

from __future__ import annotations

import numpy as np

from serve_app.core.rle import encode_rle, parse_rle
from serve_app.engines.sam import cut
from serve_app.engines.sam.frame import Frame
from serve_app.http import formats
from serve_app.masks import outlines, png, runs
from serve_app.masks.compiled import compiled


def test_no_request_compiles_a_second_version() -> None:
    """Which takes a second: what comes from where must be of one type, of one layout."""
    cut.warm_up()
    formats.warm_up()
    kernels = [
        *(cut._cut, runs._read, runs._written, runs._along_rows),
        *(png._deflated, outlines._linked, outlines._rings),
    ]
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)
    logits = np.random.default_rng(0).normal(size=(256, 3, 256)).astype(np.float32)
    for size in ((300, 200), (1, 2000)):
        for mode in ("pad", "stretch"):
            frame = Frame.of(*size, mode)
            found = [cut.cut_mask(logits[:, i], frame, offset) for i, offset in ((0, 1.0), (1, 2))]
            for rle in (*(one.rle for one in found), parse_rle((2, 3), [1, 5]),
                        encode_rle(np.zeros((2, 2), np.bool_))):  # fmt: skip
                png.mask_png(rle)
                outlines.rle_polygons(rle)
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)


def test_a_function_without_a_folder_for_its_code_is_compiled_too() -> None:
    def twice(x: int) -> int:
        return 2 * x

    twice.__code__ = twice.__code__.replace(co_filename="<nowhere>")
    assert compiled(twice)(21) == 42
