"""No code of the service can run what it reads: no pickle, no evaluation, no unsafe loader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("serve_app", "serve_tools", "graphs", "configs")

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.unsafe_load_all"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "os.system", "os.popen"),
    *("numpy.fromfile", "np.fromfile", "Image.MAX_IMAGE_PIXELS"),
}
"""That run what they read, or take it for what it says it is."""

REQUIRED = {"torch.load": ("weights_only", True)}
FORBIDDEN = {"allow_pickle": True, "shell": True, "weights_only": False, "trust_remote_code": True}


def dangers(source: str) -> Iterator[str]:
    """What is not allowed in a module, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in MODULES:
                    yield f"{node.lineno}: import {name.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"{node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in NAMES or name in CALLS:
        yield f"{node.lineno}: {name}"
    given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    for keyword, value in given.items():
        if keyword in FORBIDDEN and value is FORBIDDEN[keyword]:
            yield f"{node.lineno}: {keyword}={value}"
    if name in REQUIRED:
        keyword, wanted = REQUIRED[name]
        if given.get(keyword) is not wanted:
            yield f"{node.lineno}: {name} without {keyword}={wanted}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "eval(text)",
        "exec(code)",
        "__import__(name)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "def f():\n    if x:\n        import marshal",
    ],
)
def test_dangers_are_seen(source: str) -> None:
    assert list(dangers(source))


def test_harmless_code_passes() -> None:
    source = "model.eval()\nre.compile('x')\nyaml.safe_load(t)\ntorch.load(p, weights_only=True)"
    assert not list(dangers(source))


def test_no_code_of_ours_runs_what_it_reads() -> None:
    modules = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 150
    found = {
        str(path.relative_to(ROOT)): faults
        for path in modules
        if (faults := list(dangers(path.read_text(encoding="utf-8"))))
    }
    assert found == {}
