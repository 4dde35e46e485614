"""The whole graph: points, boxes, masks, text and everything.

ingress ─┬─▶ proposals
         ├─▶ text
         ├─▶ fast-decoder ─────▶ fast-encoder
         └─▶ accurate-decoder ─▶ accurate-encoder      (as many variants as are configured)
"""

from ray.serve import Application

from graphs.nodes import ingress_node, proposals_node, text_node, variant_node
from serve_app.core.settings import GraphSettings
from serve_app.profiles.plan import resolve


# No `from __future__ import annotations` here: Serve validates the configuration's `args` only
# if it finds the class itself, not its name, in the annotation.
def build(settings: GraphSettings) -> Application:
    """The application builder that ``configs/*.yaml`` name."""
    plan = resolve(settings)
    decoders = {name: variant_node(plan, name) for name in plan.settings.variants}
    application: Application = ingress_node(plan, decoders, proposals_node(plan), text_node(plan))
    return application
