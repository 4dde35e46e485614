"""Compiled loops: one version of each, with or without a folder for the machine code."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

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
        *(cut._cut, runs._along_rows),
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


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a compiled function, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "loops.py"
    path.write_text("def number(x):\n    return x + 1\n")
    return path


def _answer(source: Path) -> int:
    """What a new process would get."""
    spec = importlib.util.spec_from_file_location("loops", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return int(compiled(module.number)(1))


def _cached(source: Path, kind: str) -> list[Path]:
    return sorted((source.parent / "cache").rglob(f"*.{kind}"))


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_machine_code_is_replaced(source: Path, kind: str, damage: bytes | None) -> None:
    assert _answer(source) == 2
    (file,) = _cached(source, kind)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if damage is None else damage)
    assert _answer(source) == 2
    assert all(path.stat().st_size > 100 for path in _cached(source, "nb?"))
    stamps = [path.stat().st_mtime_ns for path in _cached(source, "nb?")]
    assert _answer(source) == 2
    assert [path.stat().st_mtime_ns for path in _cached(source, "nb?")] == stamps


def test_a_folder_that_cannot_be_written_is_no_error(source: Path) -> None:
    (source.parent / "cache").write_text("a file is in its place")
    assert _answer(source) == 2


def test_another_source_has_machine_code_of_its_own(source: Path) -> None:
    """Also where nothing else tells them apart: numba looks at time and size alone."""
    assert _answer(source) == 2
    before = source.stat()
    source.write_text("def number(x):\n    return x + 2\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _answer(source) == 3
