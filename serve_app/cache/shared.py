"""The tier shared by all replicas, a key-value store outside the process, and its values.

Each value has a checksum that binds it to its key.  No pickle: embeddings are safetensors files,
images are the uploaded files.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.core.inference import Embedding
from serve_app.core.settings import CacheSettings

_MAGIC = b"SAMVAL02"
_DIGEST = 32
_SIZE = struct.Struct(">II")

_START = len(_MAGIC) + _DIGEST


class SharedTier(Protocol):
    """Bytes by key.  Never raises: a tier that is down only misses."""

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        ...

    def put(self, key: str, value: Callable[[], bytes], nbytes: int) -> bool:
        """Store a value of about ``nbytes`` in the background, if possible.

        ``value`` returns the bytes; it is called in another thread, or never.

        Returns:
            Whether the write was accepted; it may still fail.
        """
        ...


def shared_tier(cache: CacheSettings) -> SharedTier | None:
    """Return the Redis tier if it is configured.  Its client is an optional dependency."""
    if cache.redis_url is None:
        return None
    from serve_app.cache.redis import RedisTier

    return RedisTier.connect(cache)


def add_checksum(key: str, body: bytes) -> bytes:
    """Return the value to store under ``key``: a checksum, then ``body``."""
    return _MAGIC + _digest(key, body) + body


def strip_checksum(key: str, data: bytes) -> bytes | None:
    """Return the body that `add_checksum` was given for this key; None for anything else.

    Anything else is a value of another key, version or origin, or one that was truncated or
    altered.  The checksum detects damage and mix-ups, not forgery by someone with write access to
    the tier, so the body is not trusted either.
    """
    body = data[_START:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : _START] != _digest(key, body):
        return None
    return body


def encode_embedding(key: str, embedding: Embedding) -> bytes:
    """Serialise an embedding for the shared tier."""
    # safetensors writes memory in its physical order, ignoring strides.
    tensors = {name: np.ascontiguousarray(t) for name, t in embedding.tensors.items()}
    return add_checksum(key, _SIZE.pack(embedding.height, embedding.width) + save(tensors))


def decode_embedding(key: str, data: bytes) -> Embedding | None:
    """Deserialise; None for anything that `encode_embedding` did not write for this key."""
    body = strip_checksum(key, data)
    if body is None:
        return None
    try:
        height, width = _SIZE.unpack_from(body)
        return Embedding(load(body[_SIZE.size :]), height=height, width=width)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError):
        return None


def _digest(key: str, body: bytes) -> bytes:
    # In two steps: concatenating would copy the bytes once more.
    digest = hashlib.sha256(key.encode() + b"\0")
    digest.update(body)
    return digest.digest()
