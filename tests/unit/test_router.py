"""Which variant answers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.domain.errors import UnknownVariant
from serve_app.domain.registry import load_registry
from serve_app.domain.settings import (
    Compute,
    DecoderSettings,
    EncoderSettings,
    GraphSettings,
    RouterSettings,
    VariantSettings,
)
from serve_app.routing.router import choose_variant
from serve_app.routing.variants import variant_info

DEPLOYED = ("fast", "accurate")


@pytest.mark.parametrize("default", DEPLOYED)
def test_auto_is_the_configured_default(default: str) -> None:
    choice = choose_variant("auto", DEPLOYED, RouterSettings(default=default))
    assert choice.variant == default
    assert choice.reason.startswith("auto")


@pytest.mark.parametrize("asked", DEPLOYED)
def test_a_pinned_variant_is_never_changed(asked: str) -> None:
    choice = choose_variant(asked, DEPLOYED, RouterSettings())
    assert (choice.variant, choice.reason) == (asked, "asked for")


@pytest.mark.parametrize("asked", ["", "Fast", "quantized", "../fast", "a" * 10_000])
def test_what_is_not_deployed_is_refused_without_an_echo(asked: str) -> None:
    with pytest.raises(UnknownVariant) as caught:
        choose_variant(asked, DEPLOYED, RouterSettings())
    assert caught.value.field == "variant"
    assert "auto, accurate, fast" in caught.value.message
    assert len(caught.value.message) < 100


def test_an_alias_is_answered_by_its_variant_and_told() -> None:
    router = RouterSettings(aliases={"quantized": "fast"})
    choice = choose_variant("quantized", DEPLOYED, router)
    assert choice.variant == "fast"
    assert "quantized" in choice.reason
    with pytest.raises(UnknownVariant, match="auto, accurate, fast, quantized"):
        choose_variant("huge", DEPLOYED, router)


def test_a_graph_of_some_variants_keeps_only_their_aliases() -> None:
    router = RouterSettings(default="fast", aliases={"quantized": "fast", "best": "accurate"})
    assert router.among(["accurate"]) == RouterSettings(
        default="accurate", aliases={"best": "accurate"}
    )
    assert router.among(["accurate", "fast"]) == router


@pytest.mark.parametrize(
    ("router", "ingress"),
    [
        ({"default": "slow"}, {}),
        ({"aliases": {"fast": "fast"}}, {}),
        ({"aliases": {"quantized": "slow"}}, {}),
        ({}, {"autoscaling_config": {"max_replicas": 2}}),
    ],
)
def test_a_contradictory_configuration_is_refused(
    router: dict[str, Any], ingress: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        GraphSettings.model_validate({"router": router, "ingress": ingress})


def test_a_variant_tells_its_model_and_where_its_encoder_runs() -> None:
    registry = load_registry()
    encoder = EncoderSettings(compute=Compute(dtype="bfloat16"))
    split = VariantSettings(model="vit_t", description="quick", encoder=encoder)
    info = variant_info("fast", split, registry)
    assert (info.name, info.model, info.family, info.description) == (
        "fast",
        "vit_t",
        "sam",
        "quick",
    )
    assert info.details["dtype"] == "bfloat16"
    assert info.details["weights_hash"] == registry.get("vit_t").weights_hash
    # Fused, the encoder runs where the decoder does.
    fused = split.model_copy(update={"layout": "fused", "decoder": DecoderSettings()})
    assert variant_info("fast", fused, registry).details["dtype"] == "float32"


def test_a_model_that_does_not_segment_is_no_variant() -> None:
    with pytest.raises(ValueError, match="does not segment"):
        variant_info("fast", VariantSettings(model="efficientdet_lite2"), load_registry())
