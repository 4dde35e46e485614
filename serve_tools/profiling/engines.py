"""Loading encoder and decoder of a variant into one process, to measure them."""

from __future__ import annotations

import importlib

from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.settings import Compute, GraphSettings
from serve_app.models.factory import ModelSource
from serve_tools.references.families import family_tools


def import_libraries(settings: GraphSettings, variant: str, source: ModelSource) -> None:
    """Import what the variant's engines need, so that loading them is timed without it."""
    spec = source.spec(settings.variants[variant].model)
    for module in family_tools(spec.family).libraries:
        importlib.import_module(module)


def load_variant(
    settings: GraphSettings, variant: str, source: ModelSource
) -> tuple[EncoderEngine, DecoderEngine]:
    """Encoder and decoder of a configured variant.

    ``memory_fraction`` is ignored: it bounds a process, and here one process has both components.
    """
    chosen = settings.variants[variant]
    encoder = source.load_encoder(chosen.model, unbounded(chosen.encoder_compute))
    return encoder, source.load_decoder(chosen.model, unbounded(chosen.decoder.compute))


def unbounded(compute: Compute) -> Compute:
    """The same without a limit on the GPU's memory."""
    return compute.model_copy(update={"memory_fraction": None})
