"""A bounded cache of text embeddings: requests repeat the same few texts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

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
        self._capacity = capacity
        self._known: OrderedDict[str, Float32Array] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, texts: Sequence[str]) -> Float32Array:
        """``(len(texts), d) float32`` embeddings; uncached texts are embedded in one pass."""
        with self._lock:
            missing = [t for t in dict.fromkeys(texts) if t not in self._known]
            fresh = dict(zip(missing, self._embed(missing), strict=True)) if missing else {}
            rows = []
            for text in texts:
                if text in self._known:
                    self._known.move_to_end(text)
                    rows.append(self._known[text])
                else:
                    rows.append(fresh[text])
            self._known.update(fresh)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return np.stack(rows)
