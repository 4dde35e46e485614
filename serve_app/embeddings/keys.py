"""Content-addressed keys of embeddings."""

from __future__ import annotations

import hashlib


def embedding_key(image_id: str, weights_hash: str, preprocessing: str, dtype: str) -> str:
    """Return the cache key of one image's embedding by one model.

    Each part is preceded by its length, so different lists of parts have different hash inputs.

    Args:
        image_id: width, height and SHA-256 of the pixels (`serve_app.core.request`).
        weights_hash: SHA-256 over the model's weights.
        preprocessing: revision of the code between pixels and model.
        dtype: precision of the encoder's arithmetic.
    """
    digest = hashlib.sha256()
    for part in (image_id, weights_hash, preprocessing, dtype):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return f"emb-{digest.hexdigest()}"
