"""Everything: all objects of an image."""

from serve_app.capabilities.everything.run import CAPABILITY
from serve_app.capabilities.everything.wire import Everything, EverythingMode

__all__ = ["CAPABILITY", "Everything", "EverythingMode"]
