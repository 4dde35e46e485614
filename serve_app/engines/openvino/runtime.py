"""Networks on a CPU by OpenVINO: one core a process, graphs compiled one way and kept."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_GRAPH, _WEIGHTS, _SUM = "graph.xml", "graph.bin", "graph.sha256"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@cache
def core() -> ov.Core:
    """This process's OpenVINO."""
    return ov.Core()


def cpu_options(threads: int, dtype: Literal["float32", "bfloat16"] = "float32") -> dict[str, Any]:
    """How graphs are compiled for a CPU.

    Args:
        threads: CPU threads of a pass.
        dtype: precision of the arithmetic of what is not quantised.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        # Replicas share the cores of a machine: pinned, all would sit on the first ones.
        "ENABLE_CPU_PINNING": False,
    }


def kept_graph(place: Path, build: Callable[[], ov.Model]) -> ov.Model:
    """The graph in a folder, built and put there if there is none.

    Building may take seconds and imports; a kept graph is mapped into memory in milliseconds.

    Args:
        place: named by a hash of all that the graph depends on (`graph_name`).
    """
    try:
        return _read(place)
    except (OSError, ValueError, RuntimeError):
        # Not there, or damaged: that would stand in the way of a new one.
        shutil.rmtree(place, ignore_errors=True)
    model = build()
    try:
        _keep(model, place)
        # The one that was built holds its weights in memory, the kept one maps its file.
        return _read(place)
    except (OSError, ValueError, RuntimeError):
        log.warning("a graph could not be kept: each start will build it again")
        return model


def graph_name(parts: Sequence[str], code: Path, packages: Sequence[str]) -> str:
    """A hash of what a graph depends on.

    Args:
        parts: such as the hash of its weights.
        code: the source file that builds it.
        packages: installed ones whose version matters, apart from openvino.
    """
    lines = [*parts, hashlib.sha256(code.read_bytes()).hexdigest()]
    lines += [f"{package}=={version(package)}" for package in ("openvino", *packages)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read(place: Path) -> ov.Model:
    """The graph in a folder, if its files are those that were written.

    Raises:
        OSError, ValueError, RuntimeError: they are not there, or others.
    """
    if (place / _SUM).read_text("ascii") != _checksum(place):
        raise ValueError("a kept graph is damaged")
    return core().read_model(place / _GRAPH)


def _checksum(place: Path) -> str:
    digest = hashlib.sha256()
    for name in (_GRAPH, _WEIGHTS):
        with (place / name).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _keep(model: ov.Model, place: Path) -> None:
    """Write beside and rename: replicas that start together never read half a graph."""
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        ov.save_model(model, scratch / _GRAPH, compress_to_fp16=False)
        (scratch / _SUM).write_text(_checksum(scratch), "ascii")
        scratch.chmod(0o755)  # another user may serve from the same folder
        os.replace(scratch, place)
    except OSError:
        if not place.exists():  # else another replica was quicker
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Network:
    """A compiled network: blocking; several threads may call it at once.

    Args:
        model: a graph, or the path of a saved one (``.xml`` beside its ``.bin``).
        threads: CPU threads of a pass.
        dtype: precision of the arithmetic of what is not quantised.
    """

    def __init__(
        self,
        model: ov.Model | Path,
        threads: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        options = cpu_options(threads, dtype)
        self._compiled = core().compile_model(model, "CPU", options)
        # A request owns the memory of its answer: each thread has its own.
        self._local = threading.local()

    def __call__(
        self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any]
    ) -> list[NDArray[np.float32]]:
        """All outputs, in the graph's order, as arrays of their own.

        Args:
            inputs: by input name, or the only one.
        """
        fed = dict(inputs) if isinstance(inputs, Mapping) else [inputs]
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer(fed, share_inputs=True)
        return [tensor.data.copy() for tensor in request.output_tensors]
