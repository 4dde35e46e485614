"""What the service can do: one module for each capability, and one line here.

``from serve_app.capabilities import Prompt, SegmentRequest, TextQuery, Everything`` gives the
request types of Python callers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from serve_app.capabilities import everything, prompts, text
from serve_app.capabilities.everything import Everything, EverythingMode
from serve_app.capabilities.prompts import Prompts
from serve_app.capabilities.text import TextQuery
from serve_app.core.capability import Capabilities
from serve_app.core.request import EmbedRequest, SegmentRequest
from serve_app.core.types import Prompt, ProposalSource

__all__ = [
    "CAPABILITIES",
    "EmbedRequest",
    "Everything",
    "EverythingMode",
    "Prompt",
    "Prompts",
    "ProposalSource",
    "SegmentRequest",
    "TextQuery",
    "load_capabilities",
]

CAPABILITIES = Capabilities((prompts.CAPABILITY, text.CAPABILITY, everything.CAPABILITY))


def load_capabilities(modules: Iterable[str]) -> Capabilities:
    """The registry, with further capabilities of an operator's.

    Args:
        modules: each an importable module with a `Capability` named ``CAPABILITY``.
    """
    more = [importlib.import_module(module).CAPABILITY for module in modules]
    return Capabilities((*CAPABILITIES.values(), *more))
