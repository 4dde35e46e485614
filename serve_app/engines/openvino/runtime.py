"""Runs networks on a CPU with OpenVINO; compiles graphs and saves them on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.core.settings import Compute
from serve_app.engines.openvino import ov

log = logging.getLogger(__name__)

_GRAPH, _WEIGHTS, _SUM = "graph.xml", "graph.bin", "graph.sha256"


@cache
def core() -> ov.Core:
    """The OpenVINO core of this process."""
    return ov.Core()


def cpu_options(threads: int, precision: str = "f32") -> dict[str, Any]:
    """Options with which graphs are compiled for a CPU; see `Network`."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        # Replicas share the cores of a machine: pinned, all would use the first ones.
        "ENABLE_CPU_PINNING": False,
    }


def precision_of(compute: Compute) -> str:
    """The precision of a `Network`.  A processor without bfloat16 computes in float32 anyway."""
    return "bf16" if compute.dtype == "bfloat16" else "f32"


def load_or_build_graph(folder: Path, build: Callable[[], ov.Model]) -> ov.Model:
    """Read the graph saved in a folder; build and save it if there is none or it is damaged.

    Building may take seconds and imports; a saved graph is mapped into memory in milliseconds.
    A folder that cannot be written is logged.  The folder's name is a `graph_name`.
    """
    try:
        return _read(folder)
    except (OSError, ValueError, RuntimeError):
        # A damaged graph would block the new one.
        shutil.rmtree(folder, ignore_errors=True)
    model = build()
    try:
        _save(model, folder)
        # The built graph holds its weights in memory, the saved one maps its file.
        return _read(folder)
    except (OSError, ValueError, RuntimeError):
        log.warning("a graph could not be saved: each start will build it again")
        return model


def graph_name(parts: Sequence[str], code: Path, packages: Sequence[str]) -> str:
    """A hash of everything that a graph depends on, as a folder name.

    Args:
        parts: such as the hash of its weights.
        code: the source file that builds it.
        packages: installed packages that it depends on, besides openvino.
    """
    lines = [*parts, hashlib.sha256(code.read_bytes()).hexdigest()]
    lines += [f"{package}=={version(package)}" for package in ("openvino", *packages)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read(folder: Path) -> ov.Model:
    """A saved graph; OSError, ValueError or RuntimeError if its files are missing or damaged."""
    if (folder / _SUM).read_text("ascii") != _checksum(folder):
        raise ValueError("a saved graph is damaged")
    return core().read_model(folder / _GRAPH)


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (_GRAPH, _WEIGHTS):
        with (folder / name).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _save(model: ov.Model, folder: Path) -> None:
    """Write to a scratch folder and rename it: concurrent replicas never read half a graph."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        ov.save_model(model, scratch / _GRAPH, compress_to_fp16=False)
        (scratch / _SUM).write_text(_checksum(scratch), "ascii")
        scratch.chmod(0o755)  # another user may serve from the same folder
        os.replace(scratch, folder)
    except OSError:
        if not folder.exists():  # else another replica was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Network:
    """A compiled network: blocking and thread-safe.

    Each thread has its own inference requests, since a request owns the memory of its outputs.

    Args:
        model: a graph, or the path of a saved one (``.xml`` beside its ``.bin``).
        threads: CPU threads of a pass.
        precision: ``f32`` or ``bf16``, of the layers that are not quantized.
    """

    def __init__(self, model: ov.Model | Path, threads: int, precision: str = "f32") -> None:
        self._model: Any = model
        self._options = cpu_options(threads, precision)
        self._general = core().compile_model(model, "CPU", self._options)
        self._specialized: dict[tuple[tuple[int, ...], ...], ov.CompiledModel] = {}
        self._local = threading.local()

    def specialize(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Also compile for exactly these shapes of the inputs: such passes are faster.

        Call it before the first pass, and only for a network made from a graph, not from a path.
        """
        model = self._model.clone()
        model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
        self._specialized[tuple(shapes)] = core().compile_model(model, "CPU", self._options)

    def views(self, *arrays: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run a pass.

        Args:
            arrays: the inputs, C-contiguous, in the graph's order.

        Returns:
            The outputs in the graph's order; the same thread's next call overwrites them.
        """
        shapes = tuple(array.shape for array in arrays)
        compiled = self._specialized.get(shapes, self._general)
        requests: dict[int, ov.InferRequest] = self._local.__dict__.setdefault("requests", {})
        request = requests.get(id(compiled))
        if request is None:
            request = requests[id(compiled)] = compiled.create_infer_request()
        outputs = request.infer(list(arrays), share_inputs=True, share_outputs=True)
        return [outputs[i] for i in range(len(outputs))]

    def __call__(self, *arrays: NDArray[Any]) -> list[NDArray[np.float32]]:
        """As `views`, but the outputs are copies."""
        return [view.copy() for view in self.views(*arrays)]
