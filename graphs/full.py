"""The whole graph: points, boxes, masks, text and everything.

ingress ─┬─▶ proposals
         ├─▶ text
         ├─▶ fast-decoder ─────▶ fast-encoder
         └─▶ accurate-decoder ─▶ accurate-encoder      (as many variants as are configured)
"""

import logging

from ray.serve import Application

from graphs.nodes import ingress_node, proposals_node, text_node, variant_node
from serve_app.core.settings import GraphSettings
from serve_app.models.quantized import drop_unavailable_variants

log = logging.getLogger("ray.serve")


# No `from __future__ import annotations` here: Serve validates the configuration's `args` only
# if it finds the class itself, not its name, in the annotation.
def build(settings: GraphSettings) -> Application:
    """The application builder that ``configs/*.yaml`` name."""
    settings, left_out = drop_unavailable_variants(settings)
    for variant, reason in left_out.items():
        log.warning("%s is answered by its reference: %s", variant, reason)
    decoders = {
        name: variant_node(name, variant, settings) for name, variant in settings.variants.items()
    }
    application: Application = ingress_node(
        settings, decoders, proposals_node(settings), text_node(settings)
    )
    return application
