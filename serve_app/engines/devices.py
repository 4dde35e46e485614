"""Devices, thread numbers and GPU memory of torch.

Thread numbers: torch keeps the number of threads of its operators for each calling thread, and a
thread takes the number that was set last, by any thread, at its own first operation.  Several
engines in one process (fused and local layouts) have numbers and threads of their own, so every
pass starts with `use_threads`, and no pass depends on what another thread has set.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from serve_app.core.settings import Compute


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of ``Compute.dtype``."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def use_threads(count: int) -> None:
    """Set the number of CPU threads of torch's operators in the calling thread."""
    # Read first: in a thread that has not yet read the number or run an operation, torch would
    # replace the number set here by the one that another thread set last.
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def apply_compute(compute: Compute) -> None:
    """Set the calling thread's number of threads and this process's share of the GPU's memory.

    Ray does not enforce fractions of a GPU: without the limit one replica could take the memory
    of others.
    """
    use_threads(compute.threads)
    if compute.memory_fraction is not None:
        # Torch rejects "cuda" without an index here; None is the current device.
        index = torch.device(compute.device).index
        torch.cuda.set_per_process_memory_fraction(compute.memory_fraction, index)


def touch(device: str) -> None:
    """Run a tiny operation; RuntimeError if the device no longer works for this process."""
    torch.zeros(1, device=device).add_(1).item()


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A CPU tensor over an array's memory, to be read only.

    Arrays that arrive through shared memory are read-only, of which `torch.from_numpy` warns.
    """
    return torch.from_numpy(array) if array.flags.writeable else from_dlpack(array)
