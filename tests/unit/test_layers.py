"""The layers of ARCHITECTURE.md, compared with the imports in the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("serve_app", "serve_tools", "graphs")
    for path in (ROOT / package).rglob("*.py")
}
OURS = ("serve_app", "serve_tools", "graphs")
HEAVY = {"torch", "torchvision", "timm", "segment_anything", "open_clip", "onnxruntime"}
WEB = {"fastapi", "starlette", "uvicorn"}


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules that a module names in any import, also those inside its functions.

    Except in the description of a model family: its functions import when a model is loaded.
    """
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    lazy = module.startswith("serve_app.engines.") and module.endswith(".family")
    for node in tree.body if lazy else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: this project imports by full names"
            source = node.module or ""
            found.add(source)
            found.update(name for a in node.names if (name := f"{source}.{a.name}") in MODULES)
    return frozenset(found - {module})


def _reach(module: str) -> Iterator[tuple[str, str]]:
    """Foreign packages that a module reaches through ours, each with who imports it."""
    seen, waiting = {module}, [module]
    while waiting:
        current = waiting.pop()
        for name in _imports(current):
            if not name.startswith(OURS):
                yield name.split(".")[0], current
            elif name in MODULES and name not in seen:
                seen.add(name)
                waiting.append(name)


def _of(*layers: str) -> list[str]:
    return sorted(
        name
        for name in MODULES
        if any(name == layer or name.startswith(layer + ".") for layer in layers)
    )


def _own_imports(modules: list[str]) -> set[tuple[str, str]]:
    """Pairs of a module and a part of this project that it imports directly."""
    return {
        (module, name)
        for module in modules
        for name in _imports(module)
        if name.startswith("serve_app.")
    }


def _check_reaches_not(modules: list[str], forbidden: set[str]) -> None:
    wrong = [
        f"{module} reaches {package} through {via}"
        for module in modules
        for package, via in _reach(module)
        if package in forbidden
    ]
    assert wrong == []


ALLOWED = {
    "core": {"telemetry"},
    "telemetry": set(),
    "masks": {"core"},
    "cache": {"core", "telemetry"},
    "images": {"core", "cache", "telemetry"},
    "embeddings": {"core", "cache", "telemetry"},
    "engines": {"core", "masks"},
    "models": {"core", "engines"},
    "batching": {"core", "telemetry"},
    "routing": {"core"},
    "scaling": {"core"},
    "profiles": {"core", "models", "routing"},
    "capabilities": {"core", "masks"},
    "flow": {"capabilities", "core", "images", "routing", "telemetry"},
    "http": {"capabilities", "core", "masks", "telemetry"},
    "connectors": {"capabilities", "core", "http"},
    "edge": {"core"},
    "client": {"capabilities", "core"},
}
"""Rooms of `serve_app` and what each may import from the others; all else may import any."""


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    modules = _of(f"serve_app.{room}")
    assert modules
    wrong = {
        (module, name)
        for module, name in _own_imports(modules)
        if name.split(".")[1] not in {room, *ALLOWED[room]}
    }
    assert wrong == set()


def test_the_core_computes_with_data_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "pydantic", "pydantic_core", "pycocotools"}
    for module in _of("serve_app.core"):
        foreign = {name.split(".")[0] for name in _imports(module)} - {"serve_app"}
        assert foreign <= allowed, module


@pytest.mark.parametrize(
    ("room", "libraries"), [("telemetry", {"opentelemetry"}), ("routing", set())]
)
def test_these_need_hardly_more_than_the_standard_library(room: str, libraries: set[str]) -> None:
    """A routing decision costs microseconds; telemetry does not know its collectors."""
    for module in _of(f"serve_app.{room}"):
        foreign = {name.split(".")[0] for name in _imports(module)} - {"serve_app", *libraries}
        assert foreign <= set(sys.stdlib_module_names), module


def test_engines_and_models_know_neither_ray_nor_http() -> None:
    _check_reaches_not(_of("serve_app.engines", "serve_app.models"), {"ray", *WEB})


def test_what_the_ingress_imports_reaches_no_model_cluster_or_web() -> None:
    rooms = ("core", "cache", "images", "routing", "scaling", "profiles", "flow", "capabilities")
    modules = _of(*(f"serve_app.{room}" for room in rooms), "serve_app.embeddings.predictor")
    _check_reaches_not(modules, {"ray", *WEB, *HEAVY})


def test_the_http_interface_reaches_no_model_and_no_cluster() -> None:
    _check_reaches_not(_of("serve_app.http", "serve_app.connectors"), {"ray", *HEAVY})


def test_nothing_that_serves_imports_the_tools() -> None:
    wrong = {
        (module, name)
        for module in _of("serve_app", "graphs")
        for name in _imports(module)
        if name.split(".")[0] == "serve_tools"
    }
    assert wrong == set()


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _room_imports() -> dict[str, set[str]]:
    """Rooms, such as ``serve_app.core``, and the rooms that each imports."""
    graph: dict[str, set[str]] = {_room(module): set() for module in MODULES}
    for module in MODULES:
        found = {_room(name) for name in _imports(module) if name in MODULES}
        graph[_room(module)] |= found - {_room(module)}
    return graph


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = set(), [start]
    while waiting:
        for room in graph[waiting.pop()] - seen:
            seen.add(room)
            waiting.append(room)
    return seen


def _cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of rooms of which each imports each other, directly or through others."""
    reach = {room: _reachable(graph, room) for room in graph}
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}


def test_rooms_import_each_other_in_one_direction() -> None:
    assert _cycles(_room_imports()) == set()


def test_the_check_finds_cycles_through_others() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert _cycles(graph) == {frozenset("abc")}


def test_the_tools_use_no_private_names_of_what_serves() -> None:
    wrong = []
    for module in _of("serve_tools"):
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                private = [a.name for a in node.names if a.name.startswith("_")]
                wrong += [(module, node.module, name) for name in private]
    assert wrong == []


def test_only_deployments_and_the_command_line_import_ray() -> None:
    importers = {
        module
        for module in _of("serve_app")
        if any(name.split(".")[0] == "ray" for name in _imports(module))
    }
    assert importers
    allowed = ("serve_app.deployments", "serve_app.cli")
    assert all(module.startswith(allowed) for module in importers), importers


def test_the_rules_see_imports_inside_functions() -> None:
    """`cache.shared` loads Redis only when it is configured: a rule must see that too."""
    assert ("redis", "serve_app.cache.redis") in set(_reach("serve_app.cache.shared"))
    assert "torch" in {package for package, _ in _reach("serve_app.deployments.engines")}


def test_the_ingress_loads_no_torch() -> None:
    """In a process of its own: another test may have loaded it here."""
    code = f"import sys, serve_app.deployments.ingress\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_unit_tests_cannot_start_ray() -> None:
    with pytest.raises(AssertionError, match="may not start Ray"):
        ray.init()
