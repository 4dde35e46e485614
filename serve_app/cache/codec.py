"""Values for a tier outside the process: behind a checksum that binds them to their key.

No pickle: an embedding is a safetensors file, an image the file that was uploaded.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.core.types import Embedding

_MAGIC = b"SAMVAL02"
_DIGEST = 32
_SIZE = struct.Struct(">II")

_START = len(_MAGIC) + _DIGEST


def seal(key: str, body: bytes) -> bytes:
    """``body`` as the value of ``key``."""
    return _MAGIC + _digest(key, body) + body


def unseal(key: str, data: bytes) -> bytes | None:
    """What `seal` was given; None for anything that it did not write under this key.

    A value of another key, version or origin, a truncated or altered one.  The checksum detects
    damage and mix-ups; whoever may write to the tier could still forge it, so what is in a value
    is not trusted either.
    """
    body = data[_START:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : _START] != _digest(key, body):
        return None
    return body


def encode_embedding(key: str, embedding: Embedding) -> bytes:
    """Serialise for a tier outside the process."""
    # safetensors writes memory as it lies, whatever the strides say.
    tensors = {name: np.ascontiguousarray(t) for name, t in embedding.tensors.items()}
    return seal(key, _SIZE.pack(embedding.height, embedding.width) + save(tensors))


def decode_embedding(key: str, data: bytes) -> Embedding | None:
    """Read back; None for anything that `encode_embedding` did not write under this key."""
    body = unseal(key, data)
    if body is None:
        return None
    try:
        height, width = _SIZE.unpack_from(body)
        return Embedding(load(body[_SIZE.size :]), height=height, width=width)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError):
        return None


def _digest(key: str, body: bytes) -> bytes:
    # Piece by piece: joined, the bytes would be copied once more.
    digest = hashlib.sha256(key.encode() + b"\0")
    digest.update(body)
    return digest.digest()
