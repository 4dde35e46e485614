"""Imports everything that serves while the tools cannot be imported."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import FrameType
from typing import Any

TOOLS = {"matplotlib", "nncf", "onnx", "serve_tools", "skimage", "sklearn"}
"""Our tools, and the packages of their extra."""

_BY_ITSELF = "sentence_transformers"
"""Depends on scikit-learn itself."""


class _WithoutTools:
    """A finder that does not find `TOOLS`, but for what `_BY_ITSELF` imports for its own use."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] in TOOLS and not _imported_by(_BY_ITSELF):
            return None
        spec: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def _imported_by(package: str) -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] == package:
            return True
        frame = frame.f_back
    return False


def forbid_tools() -> None:
    """From now on the tools are not found, as if they were not installed."""
    assert not TOOLS & set(sys.modules)
    sys.meta_path[:] = [_WithoutTools(finder) for finder in sys.meta_path]


def serving_modules() -> list[str]:
    """All modules of `serve_app` and `graphs`, without those that run when imported."""
    names = []
    for package in ("serve_app", "graphs"):
        module = importlib.import_module(package)
        names += [m.name for m in pkgutil.walk_packages(module.__path__, f"{package}.")]
    return [name for name in names if not name.endswith("__main__")]


def import_all() -> list[str]:
    """Import them; returns their names."""
    names = serving_modules()
    for name in names:
        importlib.import_module(name)
    return names
