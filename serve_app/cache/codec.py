"""Embeddings as bytes, without pickle: safetensors behind a checksum that binds them to a key."""

from __future__ import annotations

import hashlib
import json

from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.domain.types import Embedding

_MAGIC = b"SAMEMB01"
_DIGEST = 32


def encode_embedding(key: str, embedding: Embedding) -> bytes:
    """Serialise for a tier outside the process."""
    header = json.dumps({"height": embedding.height, "width": embedding.width}).encode()
    body = len(header).to_bytes(4, "big") + header + save(dict(embedding.tensors))
    return _MAGIC + _digest(key, body) + body


def decode_embedding(key: str, data: bytes) -> Embedding | None:
    """Read back; None for anything that `encode_embedding` did not write under this key.

    A value of another key, version or origin, a truncated or altered one: all are misses.
    """
    start = len(_MAGIC) + _DIGEST
    body = data[start:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : start] != _digest(key, body):
        return None
    length = int.from_bytes(body[:4], "big")
    try:
        header = json.loads(body[4 : 4 + length])
        tensors = load(body[4 + length :])
        return Embedding(tensors, height=int(header["height"]), width=int(header["width"]))
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _digest(key: str, body: bytes) -> bytes:
    """Detects damage and mix-ups; whoever may write to the tier could still forge it."""
    return hashlib.sha256(key.encode() + b"\0" + body).digest()
