"""Loops over runs of pixels, compiled to machine code by numba when they are first called.

The machine code is cached in the user's cache folder, by the hash of its source.  Where that cannot
be written, or what it holds cannot be read, the process compiles anew, which takes some seconds.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from serve_app.core.folders import user_cache

log = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """Compile a function of numbers and arrays, which releases the GIL while it runs.

    Arrays must be C-contiguous and writable, else a second version is compiled.
    """
    config: Any = numba.config
    before = config.CACHE_DIR
    try:
        config.CACHE_DIR = str(_folder(Path(function.__code__.co_filename)))
        kernel: Any = numba.njit(nogil=True, cache=True)(function)
    except (OSError, RuntimeError):  # no source file, or no folder that can be written
        kernel = numba.njit(nogil=True)(function)
    else:
        _tolerate_faults(kernel._cache)
    finally:
        config.CACHE_DIR = before
    return cast(_Function, kernel)


def _folder(source: Path) -> Path:
    """The folder of a source file's machine code.

    numba compares the time of the file alone, and keeps the old code if a disk fills up between
    its two writes.
    """
    content = source.read_bytes() + numba.__version__.encode()
    return user_cache() / "loops" / hashlib.sha256(content).hexdigest()


def _tolerate_faults(cache: Any) -> None:
    """Make a cache that cannot be read or written the same as none."""
    load, save = cache.load_overload, cache.save_overload

    def load_or_none(*args: Any) -> Any:
        try:
            return load(*args)
        except Exception:
            log.warning("cached machine code cannot be read and is compiled again")
            with suppress(Exception):
                cache.flush()  # else it could not be saved either
            return None

    def save_if_possible(*args: Any) -> None:
        try:
            save(*args)
        except Exception:
            log.warning("machine code cannot be cached: each start will compile it again")

    cache.load_overload, cache.save_overload = load_or_none, save_if_possible
