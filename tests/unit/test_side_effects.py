"""Importing this package changes nothing of the process that imports it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from serve_app.engines.devices import use_threads

ROOT = Path(__file__).parents[2]

IMPORTS = """
import importlib, json, pkgutil, sys, warnings
import numpy, scipy.linalg, torch
# Libraries set filters of their own; they are loaded before the first look.
import fastapi, huggingface_hub, onnxruntime, open_clip, PIL.Image, ray.serve, segment_anything
import sentence_transformers, timm, torch.utils.dlpack, ai_edge_litert.interpreter, cv2, yaml
from threadpoolctl import threadpool_info

def state():
    blas = sorted((i["filepath"], i["num_threads"]) for i in threadpool_info())
    blocked = sorted(name for name, module in sys.modules.items() if module is None)
    return json.loads(json.dumps([repr(warnings.filters), blas, blocked, torch.get_num_threads()]))

torch.set_num_threads(3)
sys.modules["other"] = marker = object()
before = state()
import serve_app
names = [m.name for m in pkgutil.walk_packages(serve_app.__path__, "serve_app.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert sys.modules["other"] is marker
print(json.dumps([len(names), before, state()]))
"""


@pytest.mark.slow
def test_importing_every_module_changes_nothing_of_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, cwd=ROOT, check=True
    )
    count, before, after = json.loads(done.stdout.splitlines()[-1])
    assert count > 100
    assert after == before


def test_each_thread_has_its_own_number_of_torch_threads() -> None:
    """As in the fused layout, whose encoder and decoder run in two threads of one process."""
    counts = (1, 2, 3, 5)
    together = threading.Barrier(len(counts))
    seen: dict[int, list[int]] = {count: [] for count in counts}
    matrix = torch.ones(64, 64)

    def engine(count: int) -> None:
        for _ in range(3):
            use_threads(count)
            together.wait(60)  # all have set theirs, and none has run anything since
            _ = matrix @ matrix
            seen[count].append(torch.get_num_threads())
            together.wait(60)

    for _ in range(20):  # new threads each time: the first pass of a thread is the critical one
        threads = [threading.Thread(target=engine, args=(count,)) for count in counts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {count: [count] * 60 for count in counts}
