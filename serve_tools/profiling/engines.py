"""Loading both halves of a variant into one process, to measure them."""

from __future__ import annotations

import importlib

from serve_app.core.ports import DecoderEngine, EncoderEngine
from serve_app.core.settings import Compute, GraphSettings
from serve_app.models.factory import ModelSource, load_decoder, load_encoder
from serve_app.profiles.variants import encoder_compute

_LIBRARIES = {
    "sam": ("serve_app.engines.sam.encoder", "serve_app.engines.sam.decoder"),
    "sam2_onnx": ("serve_app.engines.devices", "serve_app.engines.sam2.onnx"),
}


def import_libraries(settings: GraphSettings, variant: str) -> None:
    """Import what the variant's engines need, so that loading them is timed without it."""
    family = ModelSource.of(settings).spec(settings.variants[variant].model).family
    for module in _LIBRARIES.get(family, ()):
        importlib.import_module(module)


def load_variant(settings: GraphSettings, variant: str) -> tuple[EncoderEngine, DecoderEngine]:
    """Encoder and decoder of a configured variant.

    ``memory_fraction`` is ignored: it bounds a process, and here one process has both components.
    """
    chosen, source = settings.variants[variant], ModelSource.of(settings)
    encoder = load_encoder(source, chosen.model, unbounded(encoder_compute(chosen)))
    return encoder, load_decoder(source, chosen.model, unbounded(chosen.decoder.compute))


def unbounded(compute: Compute) -> Compute:
    """The same without a bound on the GPU's memory."""
    return compute.model_copy(update={"memory_fraction": None})
