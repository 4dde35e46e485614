"""Prompts: one object for each point set, box or earlier mask."""

from serve_app.capabilities.prompts.run import CAPABILITY
from serve_app.capabilities.prompts.wire import Prompts

__all__ = ["CAPABILITY", "Prompts"]
