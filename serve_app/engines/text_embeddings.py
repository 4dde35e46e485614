"""A bounded cache of text embeddings: requests repeat the same few texts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from cachetools import LRUCache

from serve_app.core.types import Float32Array


class EmbeddingLru:
    """Unit vectors by text; the least recently used are evicted first.

    Args:
        embed: embeds the texts that are not cached, ``(n, d) float32``.
        capacity: maximum number of cached texts.
    """

    def __init__(
        self, embed: Callable[[Sequence[str]], Float32Array], capacity: int = 4096
    ) -> None:
        self._embed = embed
        self._known: LRUCache[str, Float32Array] = LRUCache(capacity)
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Float32Array:
        """``(len(texts), d) float32`` embeddings; uncached texts are embedded in one pass."""
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
            missing = [text for text in dict.fromkeys(texts) if text not in found]
            if missing:
                fresh = dict(zip(missing, self._embed(missing), strict=True))
                self._known.update(fresh)
                found |= fresh
        return np.stack([found[text] for text in texts])
