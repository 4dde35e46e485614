"""Loops over runs of pixels, compiled to machine code by numba when they are first called.

The machine code is kept beside the module or in the user's cache folder, where one of them can be
written; else each process compiles anew, which takes some seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """Compile a function of numbers and arrays, which releases the GIL while it runs.

    Arrays must be C-contiguous and writable, else a second version is compiled.
    """
    kernel: Any
    try:
        kernel = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache
        kernel = numba.njit(nogil=True)(function)
    return cast(_Function, kernel)
