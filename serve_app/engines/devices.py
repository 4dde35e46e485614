"""Putting a process on the device, threads and share of memory that its settings name."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.core.settings import Compute

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a settings' ``dtype``."""
    return _DTYPES[name]


def apply_compute(compute: Compute) -> None:
    """Set this process's thread count and bound its share of the GPU's memory.

    A fraction of a GPU in Ray is bookkeeping alone: without the bound one replica could take
    the memory of its neighbours.
    """
    torch.set_num_threads(compute.threads)
    if compute.memory_fraction is not None:
        # "cuda" alone, without an index, is refused by torch here; None is the current device.
        index = torch.device(compute.device).index
        torch.cuda.set_per_process_memory_fraction(compute.memory_fraction, index)


def touch(device: str) -> None:
    """Have a device do next to nothing.

    Raises:
        RuntimeError: it does nothing for this process any more.
    """
    torch.zeros(1, device=device).add_(1).item()


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A CPU tensor over an array's memory, to be read only.

    Arrays that arrive through shared memory cannot be written to, of which torch warns; none of
    ours is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
