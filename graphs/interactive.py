"""The smallest useful graph: clicks and boxes on images, without text.

    ingress ─┬─▶ proposals              (the grid of "everything"; no detector)
             └─▶ fast-decoder           (fused: the encoder is inside)

Three processes; for a labelling tool on one machine.
"""

from ray.serve import Application

from graphs.nodes import ingress_node, proposals_node, variant_node
from serve_app.core.settings import GraphSettings
from serve_app.profiles.plan import resolve


def build(settings: GraphSettings) -> Application:
    """Build the default variant of the configuration, fused, without text and detector."""
    name = settings.router.default
    fused = settings.variants[name].model_copy(update={"layout": "fused"})
    proposals = settings.proposals.model_copy(update={"detector": None})
    small = settings.model_copy(
        update={
            "variants": {name: fused},
            "router": settings.router.among([name]),
            "proposals": proposals,
            "text": None,
        }
    )
    plan = resolve(small)
    application: Application = ingress_node(
        plan, {name: variant_node(plan, name)}, proposals_node(plan), None
    )
    return application
