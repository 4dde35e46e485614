"""Where this project keeps files of the user's own."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """``sam-serve`` in the user's cache folder (XDG).

    Raises:
        RuntimeError: there is neither ``$XDG_CACHE_HOME`` nor a home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "sam-serve"
