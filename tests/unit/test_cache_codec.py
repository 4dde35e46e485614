"""Embeddings as bytes: what comes back is what was written, or nothing."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.shared import decode_embedding, encode_embedding
from serve_app.core.inference import Embedding
from serve_app.embeddings.predictor import embedding_key


def _embedding() -> Embedding:
    rng = np.random.default_rng(0)
    tensors = {
        "image_embed": rng.normal(size=(4, 3, 2)).astype(np.float32),
        "high_res_feats_0": rng.normal(size=(2, 5)).astype(np.float16),
    }
    return Embedding(tensors, height=300, width=70_000)


DATA = encode_embedding("key", _embedding())


def test_everything_comes_back() -> None:
    found = decode_embedding("key", DATA)
    assert found is not None
    assert (found.height, found.width) == (300, 70_000)
    assert found.tensors.keys() == _embedding().tensors.keys()
    for name, tensor in _embedding().tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found.tensors[name], tensor)


def test_views_in_any_memory_order_are_written_as_they_read() -> None:
    tensor = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    data = encode_embedding("k", Embedding({"t": tensor}, height=1, width=1))
    found = decode_embedding("k", data)
    assert found is not None
    np.testing.assert_array_equal(found.tensors["t"], tensor)


def test_a_value_under_another_key_is_a_miss() -> None:
    assert decode_embedding("key", DATA) is not None
    for other in ("kez", "key\0", "", "key "):
        assert decode_embedding(other, DATA) is None


@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_one_flipped_bit_is_a_miss(position: int, bit: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] ^= 1 << bit
    assert decode_embedding("key", bytes(damaged)) is None


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_value_is_a_miss(length: int) -> None:
    assert decode_embedding("key", DATA[:length]) is None


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_miss(data: bytes) -> None:
    assert decode_embedding("key", data) is None
    assert decode_embedding("key", DATA + data + b"x") is None


def _forged(body: bytes) -> bytes:
    """A value whose checksum is right, as somebody could write who knows this code."""
    return b"SAMVAL02" + hashlib.sha256(b"key\0" + body).digest() + body


@given(st.binary(max_size=100))
def test_a_right_checksum_over_nonsense_is_a_miss(body: bytes) -> None:
    assert decode_embedding("key", _forged(body)) is None


@pytest.mark.parametrize(
    "header",
    [
        b'{"t":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}',
        b'{"t":{"dtype":"NOPE","shape":[1],"data_offsets":[0,4]}}',
        b'{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000]}}',
        b"[" * 5_000,
    ],
)
def test_a_right_checksum_over_a_broken_header_is_a_miss(header: bytes) -> None:
    tensors = len(header).to_bytes(8, "little") + header + b"\0\0\0\0"
    assert decode_embedding("key", _forged(b"\0" * 8 + tensors)) is None


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "sings"
    bomb = pickle.dumps(_Canary(canary))
    for data in (bomb, DATA[:40] + bomb, _forged(bomb), _forged(b"\0" * 8 + bomb)):
        assert decode_embedding("key", data) is None
    assert not canary.exists()
    pickle.loads(bomb)  # noqa: S301 - shows that the canary would have sung
    assert canary.exists()


def test_keys_name_all_their_parts() -> None:
    key = embedding_key("9x9-aa", "bb", "sam-1", "float32")
    changed = [
        ("9x9-ab", "bb", "sam-1", "float32"),
        ("9x9-aa", "bc", "sam-1", "float32"),
        ("9x9-aa", "bb", "sam-2", "float32"),
        ("9x9-aa", "bb", "sam-1", "float16"),
        # The same letters, cut elsewhere.
        ("9x9-aab", "b", "sam-1", "float32"),
        ("9x9-a", "abb", "sam-1", "float32"),
        ("9x9-aa", "bbsam-1", "", "float32"),
    ]
    assert len({key, *(embedding_key(*parts) for parts in changed)}) == 8
    assert key == embedding_key("9x9-aa", "bb", "sam-1", "float32")
