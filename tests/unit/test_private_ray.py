"""Private and unofficial parts of Ray are used in `serve_app.deployments.compat` only.

Tools have one module of their own for them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.deployments.compat.inventory import Attribute, parts
from serve_tools.bench import ray_batching

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "serve_app" / "deployments" / "compat"
TOOLS = ROOT / "serve_tools" / "bench" / "ray_batching.py"
MODULES = sorted(
    path
    for package in ("serve_app", "serve_tools", "graphs")
    for path in (ROOT / package).rglob("*.py")
)
PUBLIC = {
    "ray", "ray.exceptions", "ray.util.metrics", "ray.serve", "ray.serve.autoscaling_policy",
    "ray.serve.config", "ray.serve.exceptions", "ray.serve.handle", "ray.serve.request_router",
}  # fmt: skip
"""Documented modules of Ray; names in them that begin with an underscore are private."""
NAMES = {
    name
    for part in (*parts(optional=False), *parts(optional=True), *ray_batching.PARTS)
    if isinstance(part, Attribute)
    for name in (*part.path.replace(":", ".").split("."), *part.parameters, *part.members)
    if name.startswith("_") and name != "_private"
} | {"is_default_policy_function", "get_policy", "replica_queue_len_cache", "routing_context"}
"""Private attributes and parameters of Ray's public classes that are in use."""
SWITCH = re.compile(r"RAY_[A-Za-z_]+")


def private_uses(source: str) -> Iterator[str]:
    """What a module uses of Ray that is not public."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (a.name for a in names if _is_ray(a.name) and a.name not in PUBLIC)
            case ast.ImportFrom(module=str(module), names=names) if _is_ray(module):
                if module not in PUBLIC:
                    yield module
                yield from (a.name for a in names if a.name.startswith("_"))
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if name in NAMES:
                yield name
            case ast.Constant(value=str(text)) if SWITCH.fullmatch(text) or text == "ray.serve":
                yield text
            case ast.Constant(value=str(text)) if text.startswith("ray.") and "._" in text:
                yield text


def _is_ray(module: str) -> bool:
    return module.split(".")[0] == "ray"


def test_only_compat_uses_private_ray() -> None:
    found = {
        str(path.relative_to(ROOT)): uses
        for path in MODULES
        if COMPAT not in path.parents
        and path != TOOLS
        and (uses := set(private_uses(path.read_text("utf-8"))))
    }
    assert found == {}


def test_compat_imports_only_what_the_inventory_checks() -> None:
    checked = {
        part.path
        for part in (*parts(optional=False), *parts(optional=True))
        if isinstance(part, Attribute)
    }
    used = {
        f"{node.module}:{alias.name}"
        for path in COMPAT.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if _is_ray(node.module or "") and (node.module not in PUBLIC or alias.name[0] == "_")
    }
    assert used
    assert used <= checked


def test_compat_uses_it() -> None:
    assert any(list(private_uses(path.read_text("utf-8"))) for path in COMPAT.glob("*.py"))


@pytest.mark.parametrize(
    "source",
    [
        "from ray.serve._private.long_poll import LongPollClient",
        "import ray.serve._private.constants",
        "def f():\n    from ray.serve.context import _get_global_client",
        "from ray.serve.batching import _BatchQueue",
        "handle.options(_by_reference=True)",
        "policy.get_policy()",
        "router._backoff(1)",
        "logging.getLogger('ray.serve')",
        "os.environ['RAY_SERVE_ENABLE_HA_PROXY']",
        "command = ['-m', 'ray.serve._private.x']",
    ],
)
def test_the_rule_sees_private_use(source: str) -> None:
    assert list(private_uses(source))


def test_the_rule_allows_public_use() -> None:
    source = "from ray import serve\nfrom ray.serve.config import RequestRouterConfig\nimport ray"
    assert list(private_uses(source)) == []
