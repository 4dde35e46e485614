"""Text: the objects that a text names."""

from serve_app.capabilities.text.run import CAPABILITY
from serve_app.capabilities.text.wire import TextQuery

__all__ = ["CAPABILITY", "TextQuery"]
