"""All commands in groups: what each does, an example, and the module that runs it.

A command's module defines ``add_arguments(parser)`` and ``run(args) -> exit code``.  It is imported
when the command is called: listing the commands imports none of them, and the service does not
depend on the tools (`serve_tools`).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

GROUPS = ("serve", "use", "models", "operate", "develop")

INSTALL_TOOLS = "pip install 'serve-anything[tools]'"
_TOOLS = ("matplotlib", "nncf", "onnx", "skimage", "sklearn")
"""Packages of the extra ``tools``, by the names under which they are imported."""


class ToolsMissing(Exception):
    """The command needs packages of the extra ``tools`` that are not installed."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its group, one line of help, an example's arguments, its module's full name."""

    name: str
    group: str
    help: str
    example: str
    module: str

    @property
    def is_tool(self) -> bool:
        """Whether it is one of the tools, which need the extra ``tools``."""
        return self.module.startswith("serve_tools.")

    def load(self) -> ModuleType:
        """Import the command's module; raises `ToolsMissing`."""
        if self.is_tool:
            missing = [name for name in ("serve_tools", *_TOOLS) if find_spec(name) is None]
            if missing:
                raise ToolsMissing(f"{self.name} needs: {INSTALL_TOOLS}")
        return importlib.import_module(self.module)


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "serve", "serve", "fetch weights and serve a graph on this machine",
            "serve --demo", "serve_app.cli.serve",
        ),
        Command(
            "front", "serve", "run HAProxy before the service: TLS, timeouts, limits",
            "front --config configs/front.yaml", "serve_app.cli.front",
        ),
        Command(
            "demo", "use", "segment sample photos with a running service",
            "demo http://127.0.0.1:8000 --out out", "serve_app.cli.demo",
        ),
        Command(
            "models", "models", "list the models, their weights and their measurements",
            "models --json", "serve_app.cli.models",
        ),
        Command(
            "fetch", "models", "download and verify weights",
            "fetch vit_b", "serve_app.cli.fetch",
        ),
        Command(
            "quantise", "models", "make an int8 version of a model's encoder",
            "quantise --images photos", "serve_tools.cli.quantise",
        ),
        Command(
            "measure", "operate", "measure speed, memory and quality of all variants",
            "measure --quick", "serve_tools.cli.measure",
        ),
        Command(
            "key", "operate", "make an API key and its configuration entry",
            "key alice --requests-per-minute 60", "serve_app.cli.keys",
        ),
        Command(
            "bench", "develop", "compare this service with its peers on this machine",
            "bench encoder decoder --quick", "serve_tools.cli.bench",
        ),
        Command(
            "evaluate", "develop", "compute mean IoU on images with COCO annotations",
            "evaluate --images photos --annotations instances.json", "serve_tools.cli.evaluate",
        ),
        Command(
            "simulate", "develop", "simulate router and scaling policy under load",
            "simulate --trace step --scale 1-gpu --minutes 5", "serve_tools.cli.simulate",
        ),
    )
}  # fmt: skip
"""Commands by name."""
