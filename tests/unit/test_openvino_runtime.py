"""Graphs that are kept between starts, and networks made of them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from serve_app.engines.openvino.runtime import Network, graph_name, load_or_build_graph


def doubling() -> ov.Model:
    x = op.parameter([2, 3], np.float32, name="x")
    return ov.Model([op.multiply(x, op.constant(np.float32(2)))], [x], "doubling")


class Builder:
    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> ov.Model:
        self.built += 1
        return doubling()


def test_a_graph_is_built_once_and_then_read(tmp_path: Path) -> None:
    build = Builder()
    for _ in range(2):
        network = Network(load_or_build_graph(tmp_path / "graphs" / "a", build), threads=1)
        np.testing.assert_array_equal(
            network(np.full((2, 3), 4, np.float32))[0], np.full((2, 3), 8)
        )
    assert build.built == 1
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == ["a"]  # no scratch is left


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "graph.sha256"])
def test_a_damaged_graph_is_built_anew(tmp_path: Path, file: str) -> None:
    """Zeros where the weights were would be read without an error."""
    build = Builder()
    load_or_build_graph(tmp_path / "a", build)
    path = tmp_path / "a" / file
    path.write_bytes(bytes(path.stat().st_size))
    answer = Network(load_or_build_graph(tmp_path / "a", build), threads=1)(
        np.ones((2, 3), np.float32)
    )
    assert (build.built, answer[0].tolist()) == (2, [[2.0] * 3] * 2)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    build = Builder()
    network = Network(load_or_build_graph(tmp_path / "file" / "a", build), threads=1)
    assert network(np.ones((2, 3), np.float32))[0].shape == (2, 3)
    assert build.built == 1


def test_an_answer_is_not_overwritten_by_the_next() -> None:
    network = Network(doubling(), threads=1)
    first = network(np.ones((2, 3), np.float32))[0]
    network(np.zeros((2, 3), np.float32))
    assert first.tolist() == [[2.0] * 3] * 2


def test_threads_do_not_get_each_others_answers() -> None:
    network = Network(doubling(), threads=1)

    def wrong(value: int) -> int:
        given = np.full((2, 3), value, np.float32)
        return sum((network(given)[0] != 2 * value).any() for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(1, 5))) == 0


def test_other_weights_or_other_code_are_another_graph(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("1", encoding="utf-8")
    names = {
        graph_name(["a"], code, ()),
        graph_name(["b"], code, ()),
        graph_name(["a"], code, ["numpy"]),
    }
    code.write_text("2", encoding="utf-8")
    assert len(names | {graph_name(["a"], code, ())}) == 4


def test_an_encoders_process_needs_no_torch() -> None:
    """Its import takes time and memory that an encoder on OpenVINO has no use for."""
    code = (
        "import sys, serve_app.models.factory, serve_app.engines.sam.encoder_openvino as e;"
        "assert e.OpenVinoEncoder; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
