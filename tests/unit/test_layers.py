"""The layers of ARCHITECTURE.md, held against the imports in the code."""

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
    for path in (ROOT / "serve_app").rglob("*.py")
}
HEAVY = {"torch", "torchvision", "timm", "segment_anything", "open_clip", "onnxruntime"}
WEB = {"fastapi", "starlette", "uvicorn"}


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules that a module names in any import, also those inside its functions."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
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
            if not name.startswith("serve_app"):
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


def test_the_domain_knows_data_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "pydantic", "pycocotools"}
    for module in _of("serve_app.domain", "serve_app.ports"):
        extra = {"yaml"} if module == "serve_app.domain.registry" else set()
        foreign = {name.split(".")[0] for name in _imports(module)} - {"serve_app"}
        assert foreign <= allowed | extra, module
    inward = _own_imports(_of("serve_app.domain", "serve_app.ports"))
    assert all(name.startswith("serve_app.domain") for _, name in inward)


def test_compute_knows_neither_ray_nor_http() -> None:
    _check_reaches_not(_of("serve_app.compute"), {"ray", *WEB})
    own = {
        (module, name)
        for module, name in _own_imports(_of("serve_app.compute"))
        if not name.startswith(("serve_app.compute", "serve_app.domain", "serve_app.ports"))
    }
    assert own == set()


@pytest.mark.parametrize("layer", ["serve_app.cache", "serve_app.routing"])
def test_cache_and_routing_know_the_domain_alone(layer: str) -> None:
    modules = _of(layer)
    assert modules
    _check_reaches_not(modules, {"ray", *WEB, *HEAVY})
    known = ("serve_app.domain", "serve_app.telemetry", layer)
    assert all(n.startswith(known) for _, n in _own_imports(modules))


def test_whoever_tells_something_need_not_know_who_collects_it() -> None:
    modules = _of("serve_app.telemetry")
    assert {"serve_app.telemetry.catalogue", "serve_app.telemetry.spans"} <= set(modules)
    for module in modules:
        foreign = {name.split(".")[0] for name in _imports(module)} - {"serve_app"}
        assert foreign <= set(sys.stdlib_module_names), module
    assert all(n.startswith("serve_app.telemetry") for _, n in _own_imports(modules))


def test_the_router_computes_with_the_standard_library() -> None:
    """What it needs of numpy and pydantic is in the domain: a decision costs microseconds."""
    for module in _of("serve_app.routing"):
        foreign = {name.split(".")[0] for name in _imports(module)} - {"serve_app"}
        assert foreign <= set(sys.stdlib_module_names), module


def test_the_ingress_can_read_the_ledger() -> None:
    """Measuring needs models; reading what was measured, and wiring the router, does not."""
    modules = _of("serve_app.ledger.load", "serve_app.ledger.wiring")
    assert len(modules) == 2
    _check_reaches_not(modules, {"ray", *WEB, *HEAVY})


def test_scaling_and_simulation_reach_no_model_cluster_or_web() -> None:
    modules = _of("serve_app.scaling", "serve_app.simulation")
    assert {"serve_app.scaling.policy", "serve_app.simulation"} <= set(modules)
    _check_reaches_not(modules, {"ray", *WEB, *HEAVY})


def test_the_scaling_policy_knows_the_domain_alone() -> None:
    inside = ("serve_app.domain", "serve_app.scaling")
    assert all(n.startswith(inside) for _, n in _own_imports(_of("serve_app.scaling")))


def test_the_flow_reaches_no_model_cluster_or_web() -> None:
    modules = _of("serve_app.flow", "serve_app.steps", "serve_app.predictor")
    _check_reaches_not(modules, {"ray", *WEB, *HEAVY})


def test_the_http_interface_reaches_no_model_and_no_cluster() -> None:
    _check_reaches_not(_of("serve_app.api"), {"ray", *HEAVY})


def test_only_deployments_and_commands_import_ray() -> None:
    importers = {
        module
        for module in MODULES
        if any(name.split(".")[0] == "ray" for name in _imports(module))
    }
    allowed = (
        "serve_app.deployments",
        "serve_app.commands",
        "serve_app.bench",
        "serve_app.__main__",
    )
    assert importers
    assert all(module.startswith(allowed) for module in importers), importers


def test_inner_layers_do_not_import_outer_ones() -> None:
    inner = [
        m
        for m in MODULES
        if not m.startswith(("serve_app.deployments", "serve_app.commands", "serve_app.bench"))
    ]
    wrong = {
        (module, name)
        for module, name in _own_imports(inner)
        if name.startswith(("serve_app.deployments", "serve_app.commands"))
        and module != "serve_app.__main__"
    }
    assert wrong == set()


def test_the_rules_see_imports_inside_functions() -> None:
    """`cache.shared` loads Redis only when it is configured: a rule must see that too."""
    assert ("redis", "serve_app.cache.redis") in set(_reach("serve_app.cache.shared"))
    assert "torch" in {package for package, _ in _reach("serve_app.local")}


def test_the_ingress_loads_no_torch() -> None:
    """In a process of its own: another test may have loaded it here."""
    code = f"import sys, serve_app.deployments.ingress\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_unit_tests_cannot_start_ray() -> None:
    with pytest.raises(AssertionError, match="may not start Ray"):
        ray.put(1)
