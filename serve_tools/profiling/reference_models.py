"""The reference models of variants, for comparison.

A reference model is another variant, or the model's own library without this project's batching
and settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve_app.core.inference import DecodeJob, DecodeOptions
from serve_app.core.settings import GraphSettings
from serve_app.core.types import BoolArray, Prompt, RgbArray
from serve_app.models.factory import ModelSource
from serve_tools.profiling.engines import load_variant
from serve_tools.references.families import ReferenceModel, Tensors, family_tools


class VariantReference:
    """Another variant of the same configuration."""

    def __init__(self, settings: GraphSettings, variant: str, source: ModelSource) -> None:
        self.name = variant
        self._encoder, self._decoder = load_variant(settings, variant, source)

    def predict(
        self, pixels: RgbArray, prompts: Sequence[Prompt]
    ) -> tuple[Tensors, list[BoolArray]]:
        """See `ReferenceModel.predict`."""
        embedding = self._encoder.encode_batch([pixels])[0]
        jobs = [DecodeJob(embedding, prompt, DecodeOptions()) for prompt in prompts]
        empty = np.zeros((0, *pixels.shape[:2]), np.bool_)
        return embedding.tensors, [
            np.stack([mask.array for mask in masks]) if masks else empty
            for masks in self._decoder.decode_batch(jobs)
        ]


def load_reference(settings: GraphSettings, variant: str, source: ModelSource) -> ReferenceModel:
    """The reference model of a variant: the variant its settings name, else its family's own."""
    chosen = settings.variants[variant]
    if chosen.reference is not None:
        return VariantReference(settings, chosen.reference, source)
    load = family_tools(source.spec(chosen.model).family).load_reference
    return load(source.weights(chosen.model), chosen.encoder_compute.device)
