"""Embeddings as bytes, without pickle: safetensors behind a checksum that binds them to a key."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.domain.types import Embedding

_MAGIC = b"SAMEMB01"
_DIGEST = 32
_SIZE = struct.Struct(">II")


def encode_embedding(key: str, embedding: Embedding) -> bytes:
    """Serialise for a tier outside the process."""
    # safetensors writes memory as it lies, whatever the strides say.
    tensors = {name: np.ascontiguousarray(t) for name, t in embedding.tensors.items()}
    body = _SIZE.pack(embedding.height, embedding.width) + save(tensors)
    return _MAGIC + _digest(key, body) + body


def decode_embedding(key: str, data: bytes) -> Embedding | None:
    """Read back; None for anything that `encode_embedding` did not write under this key.

    A value of another key, version or origin, a truncated or altered one: all are misses.
    """
    start = len(_MAGIC) + _DIGEST
    body = data[start:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : start] != _digest(key, body):
        return None
    try:
        height, width = _SIZE.unpack_from(body)
        return Embedding(load(body[_SIZE.size :]), height=height, width=width)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError):
        return None


def _digest(key: str, body: bytes) -> bytes:
    """Detects damage and mix-ups; whoever may write to the tier could still forge it."""
    return hashlib.sha256(key.encode() + b"\0" + body).digest()
