"""Which variant answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.core.errors import HintsUnmet, Overloaded, SamServeError, UnknownVariant
from serve_app.core.measurements import Profile
from serve_app.core.settings import (
    Compute,
    DecoderSettings,
    EncoderSettings,
    GraphSettings,
    RouterSettings,
    VariantSettings,
)
from serve_app.models.registry import load_registry
from serve_app.profiles.plan import variant_info
from serve_app.routing.latency import estimate_ms
from serve_app.routing.router import Choice, NoEligibleVariant, choose_variant
from serve_app.routing.types import RoutingQuery, VariantState

IDLE = VariantState()
DEPLOYED = {"fast": IDLE, "accurate": IDLE}
FAST = Profile({1: 90.0}, {1: 10.0}, {"box": 0.80, "point": 0.70}, cold_start_s=4)
ACCURATE = Profile({1: 980.0}, {1: 20.0}, {"box": 0.90, "point": 0.85}, cold_start_s=9)
MEASURED = {"fast": FAST, "accurate": ACCURATE}
"""Alone, one prompt on a new image takes 100 ms and 1000 ms."""


def choose(
    variants: Mapping[str, VariantState] = DEPLOYED,
    profiles: Mapping[str, Profile] = MEASURED,
    router: RouterSettings | None = None,
    **ask: Any,
) -> Choice:
    return choose_variant(RoutingQuery(**ask), variants, profiles, router or RouterSettings())


def refusal(**given: Any) -> tuple[SamServeError, str | None]:
    """What the caller is told, and who is to be woken."""
    with pytest.raises(NoEligibleVariant) as caught:
        choose(**given)
    return caught.value.error, caught.value.scale_from_zero


# Without hints.


@pytest.mark.parametrize("default", DEPLOYED)
@pytest.mark.parametrize("profiles", [{}, MEASURED])
def test_auto_is_the_configured_default(default: str, profiles: Mapping[str, Profile]) -> None:
    choice = choose(profiles=profiles, router=RouterSettings(default=default))
    assert choice.variant == default
    assert choice.reason == "auto: the default variant"
    assert not choice.degraded
    assert choice.expected_ms == ({"fast": 100, "accurate": 1000}[default] if profiles else None)


def test_auto_leaves_the_default_for_one_as_good_that_is_clearly_sooner() -> None:
    router = RouterSettings(default="accurate")
    twin = replace(ACCURATE, encode_ms={1: 700.0})  # 720 ms: less than 80 % of 1000
    choice = choose(profiles={"accurate": ACCURATE, "fast": twin}, router=router)
    assert (choice.variant, choice.expected_ms) == ("fast", 720)
    assert choice.reason == "auto: fast is at least as good as accurate and has a shorter queue"
    for profile, why in [
        (replace(ACCURATE, encode_ms={1: 800.0}), "not clearly sooner"),
        (replace(twin, quality={"box": 0.899}), "not as good"),
        (replace(twin, quality={"point": 0.99}), "not measured on such prompts"),
    ]:
        other = choose(profiles={"accurate": ACCURATE, "fast": profile}, router=router)
        assert other.variant == "accurate", why


def test_auto_leaves_a_queue_for_a_better_variant_that_is_idle() -> None:
    busy = {"fast": VariantState(images=20), "accurate": IDLE}
    assert choose(busy).variant == "accurate"
    assert choose({"fast": VariantState(images=5), "accurate": IDLE}).variant == "fast"
    # Waking one is for those who ask for it, however long the queue.
    asleep = VariantState(encoders=0, decoders=0)
    assert choose({"fast": VariantState(images=10_000), "accurate": asleep}).variant == "fast"


def test_auto_takes_the_variant_that_has_the_image() -> None:
    known = {"fast": IDLE, "accurate": VariantState(cached=True)}
    choice = choose(known)
    assert (choice.variant, choice.expected_ms) == ("accurate", 20)
    assert (
        choice.reason == "auto: accurate is at least as good as fast and has the image's embedding"
    )


def test_a_default_that_has_nothing_to_do_is_the_default() -> None:
    known = {"fast": VariantState(cached=True), "accurate": IDLE}
    choice = choose(known, prompts=0)
    assert (choice.variant, choice.expected_ms) == ("fast", 0)
    assert choice.reason == "auto: the default variant"


def test_scores_that_thresholds_are_made_for_stay_the_defaults() -> None:
    known = {"fast": IDLE, "accurate": VariantState(cached=True)}
    assert choose(known, filtered=True).variant == "fast"
    assert choose(known, filtered=True, variant="accurate").variant == "accurate"


def test_without_a_measured_quality_nobody_is_as_good_as_the_default() -> None:
    profiles = {"fast": replace(ACCURATE, quality={}), "accurate": replace(FAST, quality={})}
    assert choose(profiles=profiles).variant == "fast"
    profiles["accurate"] = FAST
    assert choose(profiles=profiles).variant == "fast"


# A named variant.


@pytest.mark.parametrize("asked", DEPLOYED)
@pytest.mark.parametrize("hints", [{}, {"max_latency_ms": 5000}, {"min_quality": 0.5}])
def test_a_pinned_variant_is_never_changed(asked: str, hints: dict[str, float]) -> None:
    # The other one is awake and idle, this one has a queue and sleeps.
    variants = {**DEPLOYED, asked: VariantState(images=3)}
    choice = choose(variants, variant=asked, **hints)
    assert choice.variant == asked
    assert choice.reason.startswith("requested")
    assert not choice.degraded


def test_hints_decide_whether_a_pinned_variant_may_answer() -> None:
    choice = choose(variant="accurate", max_latency_ms=1000, min_quality=0.9)
    assert choice.reason == (
        "requested; accurate: mean IoU 0.900 reaches min_quality 0.9, "
        "expected in 1000 ms of the 1000 ms allowed"
    )
    slow, _ = refusal(variant="accurate", max_latency_ms=999)
    assert (type(slow), slow.field) == (HintsUnmet, "max_latency_ms")
    assert "accurate takes about 1000 ms" in slow.message
    poor, _ = refusal(variant="fast", min_quality=0.85)
    assert (type(poor), poor.field) == (HintsUnmet, "min_quality")
    assert "fast reaches 0.800" in poor.message
    busy, _ = refusal(
        variants={**DEPLOYED, "fast": VariantState(images=9)}, variant="fast", max_latency_ms=150
    )
    assert type(busy) is Overloaded


def test_a_pinned_variant_needs_no_measurement_but_its_hints_do() -> None:
    assert choose(profiles={"fast": FAST}, variant="accurate") == Choice("accurate", "requested")
    for hint in ("min_quality", "max_latency_ms"):
        error, _ = refusal(profiles={"fast": FAST}, variant="accurate", **{hint: 0.5})
        assert (type(error), error.field) == (HintsUnmet, hint)
        assert "this variant was not measured" in error.message
        error, _ = refusal(profiles={}, **{hint: 0.5})
        assert (type(error), error.field) == (HintsUnmet, hint)
        assert "the variants were not measured" in error.message


@pytest.mark.parametrize("asked", ["", "Fast", "quantized", "../fast", "a" * 10_000])
@pytest.mark.parametrize("hints", [{}, {"max_latency_ms": 5000}])
def test_what_is_not_deployed_is_refused_without_an_echo(
    asked: str, hints: dict[str, float]
) -> None:
    error, wake = refusal(variant=asked, **hints)
    assert isinstance(error, UnknownVariant)
    assert (error.field, wake) == ("variant", None)
    assert "auto, accurate, fast" in error.message
    assert len(error.message) < 100


def test_an_alias_is_answered_by_its_variant_and_told() -> None:
    router = RouterSettings(aliases={"quantized": "fast"})
    choice = choose(variant="quantized", router=router)
    assert (choice.variant, choice.reason) == (
        "fast",
        "requested as quantized, which fast serves here",
    )
    hinted = choose(variant="quantized", router=router, max_latency_ms=9999)
    assert hinted.variant == "fast"
    assert "quantized" in hinted.reason
    with pytest.raises(NoEligibleVariant) as caught:
        choose(variant="huge", router=router)
    assert "auto, accurate, fast, quantized" in caught.value.error.message


# max_latency_ms.


@pytest.mark.parametrize(("most", "variant"), [(100, "fast"), (999, "fast"), (1000, "accurate")])
def test_within_a_time_the_best_that_is_in_time(most: float, variant: str) -> None:
    choice = choose(max_latency_ms=most)
    assert choice.variant == variant
    assert choice.expected_ms is not None
    assert choice.expected_ms <= most
    assert not choice.degraded  # even alone, the better one would be too slow
    assert f"of the {most:g} ms allowed" in choice.reason


def test_of_equally_good_variants_the_sooner() -> None:
    twin = replace(ACCURATE, encode_ms={1: 500.0}, quality={"box": 0.896})
    assert choose(profiles={"accurate": ACCURATE, "fast": twin}, max_latency_ms=2000).variant == (
        "fast"
    )
    worse = replace(twin, quality={"box": 0.89})
    assert choose(profiles={"accurate": ACCURATE, "fast": worse}, max_latency_ms=2000).variant == (
        "accurate"
    )


def test_the_kind_of_prompt_decides_what_is_best() -> None:
    odd = {"fast": replace(FAST, quality={"box": 0.7, "point": 0.9}), "accurate": ACCURATE}
    assert choose(profiles=odd, max_latency_ms=2000, kind="point").variant == "fast"
    assert choose(profiles=odd, max_latency_ms=2000, kind="box").variant == "accurate"
    assert choose(profiles=odd, min_quality=0.87, kind="point").variant == "fast"


def test_more_prompts_take_longer() -> None:
    assert choose(max_latency_ms=1000, prompts=1).variant == "accurate"
    assert choose(max_latency_ms=1000, prompts=2).variant == "fast"


def test_an_embedding_that_is_there_makes_a_variant_cheap() -> None:
    known = {**DEPLOYED, "accurate": VariantState(cached=True)}
    choice = choose(known, max_latency_ms=50)
    assert (choice.variant, choice.expected_ms) == ("accurate", 20)
    # What waits for the encoder is then not in the way, nor is an encoder needed.
    busy = VariantState(cached=True, images=100, encoders=0)
    assert choose({**DEPLOYED, "accurate": busy}, max_latency_ms=50).variant == "accurate"


@pytest.mark.parametrize(
    "load",
    [
        VariantState(images=5),
        VariantState(prompts=50),
        VariantState(oldest_ms=400),
        VariantState(slowdown=1.5),
        VariantState(encoders=0),
        VariantState(decoders=0),
    ],
    ids=["images", "prompts", "age", "slow", "no encoder", "no decoder"],
)
def test_load_degrades_to_fast_before_it_refuses_and_says_so(load: VariantState) -> None:
    choice = choose({"fast": IDLE, "accurate": load}, max_latency_ms=1300)
    assert (choice.variant, choice.degraded) == ("fast", True)
    assert choice.scale_from_zero == ("accurate" if load.scaled_to_zero else None)
    assert "accurate would be better, but its wait is too long now" in choice.reason
    error, wake = refusal(variants={"fast": load, "accurate": load}, max_latency_ms=120)
    assert isinstance(error, Overloaded)
    assert wake == ("fast" if load.scaled_to_zero else None)


def test_replicas_share_the_queue_and_batches_shorten_it() -> None:
    assert choose({**DEPLOYED, "accurate": VariantState(images=5)}, max_latency_ms=2500).degraded
    shared = VariantState(images=5, encoders=4)
    assert not choose({**DEPLOYED, "accurate": shared}, max_latency_ms=2500).degraded
    batched = replace(ACCURATE, encode_ms={1: 980.0, 4: 1000.0})
    queue = VariantState(images=5, encoder_batch=4)
    profiles = {"fast": FAST, "accurate": batched}
    assert not choose({**DEPLOYED, "accurate": queue}, profiles, max_latency_ms=2500).degraded


def test_a_time_nobody_can_meet_is_refused_with_what_is_possible() -> None:
    # Whatever the load: it is the hint that is at fault.
    busy = {"fast": VariantState(images=99), "accurate": VariantState(decoders=0)}
    for variants in (DEPLOYED, busy):
        error, wake = refusal(variants=variants, max_latency_ms=50)
        assert (type(error), error.field, wake) == (HintsUnmet, "max_latency_ms", None)
        assert "at most 50 ms" in error.message
        assert "fast takes about 100 ms" in error.message


def test_what_only_load_prevents_is_overload_and_tells_who_would_be_soonest() -> None:
    busy = {"fast": VariantState(images=9), "accurate": VariantState(images=9)}
    error, wake = refusal(variants=busy, max_latency_ms=150)
    assert (type(error), wake) == (Overloaded, None)
    assert "fast would in about 910 ms" in error.message


def test_a_sleeping_variant_that_alone_could_is_woken() -> None:
    asleep = {"fast": VariantState(encoders=0, decoders=0), "accurate": IDLE}
    error, wake = refusal(variants=asleep, max_latency_ms=500)
    assert (type(error), wake) == (Overloaded, "fast")
    # Its cold start of 4 s counts as waiting.
    assert choose(asleep, max_latency_ms=4200, variant="fast").expected_ms == 4100
    # Nobody is woken who would be too slow when awake.
    slow = {"fast": VariantState(images=99), "accurate": VariantState(decoders=0)}
    assert refusal(variants=slow, max_latency_ms=500)[1] is None


# min_quality.


@pytest.mark.parametrize(("least", "variant"), [(0.5, "fast"), (0.8, "fast"), (0.801, "accurate")])
def test_with_a_quality_the_soonest_that_reaches_it(least: float, variant: str) -> None:
    choice = choose(min_quality=least)
    assert choice.variant == variant
    assert f"reaches min_quality {least:g}" in choice.reason
    assert not choice.degraded


def test_with_a_quality_load_counts_too() -> None:
    assert (
        choose({**DEPLOYED, "fast": VariantState(images=20)}, min_quality=0.7).variant == "accurate"
    )
    # Without a time, one waits as long as it takes.
    assert choose({**DEPLOYED, "accurate": VariantState(decoders=0)}, min_quality=0.85).variant == (
        "accurate"
    )


def test_both_hints_bind() -> None:
    assert choose(min_quality=0.85, max_latency_ms=1200).variant == "accurate"
    assert choose(min_quality=0.5, max_latency_ms=1200).variant == "fast"
    slow, _ = refusal(min_quality=0.85, max_latency_ms=500)
    assert (type(slow), slow.field) == (HintsUnmet, "max_latency_ms")
    assert "accurate takes about 1000 ms" in slow.message
    # Who says what quality suffices is not degraded by getting it.
    loaded = {**DEPLOYED, "accurate": VariantState(images=5)}
    assert not choose(loaded, min_quality=0.5, max_latency_ms=1200).degraded
    # Degrading would break the caller's word on quality.
    busy = {**DEPLOYED, "accurate": VariantState(images=5)}
    assert type(refusal(variants=busy, min_quality=0.85, max_latency_ms=1200)[0]) is Overloaded


def test_a_quality_nobody_reaches_is_refused_with_the_best_there_is() -> None:
    error, _ = refusal(min_quality=0.95)
    assert (type(error), error.field) == (HintsUnmet, "min_quality")
    assert "0.95 for box prompts; accurate reaches 0.900" in error.message
    unmeasured = {name: replace(p, quality={}) for name, p in MEASURED.items()}
    error, _ = refusal(profiles=unmeasured, min_quality=0.1)
    assert "no quality was measured for box prompts" in error.message


@given(quality=st.floats(0.01, 0.99), ms=st.floats(0.01, 1e6))
def test_what_a_refusal_says_is_possible_is_granted(quality: float, ms: float) -> None:
    profiles = {"fast": Profile({1: ms}, {1: ms}, {"box": quality})}
    variants = {"fast": IDLE}
    error, _ = refusal(variants=variants, profiles=profiles, min_quality=1.0)
    told = re.search(r"reaches ([\d.]+)$", error.message)
    assert told is not None
    assert choose(variants, profiles, min_quality=float(told[1])).variant == "fast"
    error, _ = refusal(variants=variants, profiles=profiles, max_latency_ms=ms)
    told = re.search(r"about ([\d.]+) ms$", error.message)
    assert told is not None
    assert choose(variants, profiles, max_latency_ms=float(told[1])).variant == "fast"


NAMES = ("fast", "accurate", "slow")
positive = st.floats(1e-3, 1e7)
tables = st.dictionaries(st.sampled_from([1, 2, 4, 8, 32]), positive, min_size=1)
any_profile = st.builds(
    Profile,
    encode_ms=tables,
    decode_ms=tables,
    quality=st.dictionaries(st.sampled_from(["box", "point"]), st.floats(-1, 1)),
    cold_start_s=positive,
)
any_situation = st.builds(
    VariantState,
    encoders=st.integers(0, 5),
    decoders=st.integers(0, 5),
    images=st.floats(0, 1e6),
    prompts=st.floats(0, 1e6),
    oldest_ms=st.floats(0, 1e9),
    cached=st.booleans(),
    encoder_batch=st.integers(1, 64),
    decoder_batch=st.integers(1, 64),
    slowdown=st.floats(0.125, 8),
)
any_ask = st.builds(
    RoutingQuery,
    variant=st.sampled_from(["auto", "alias", *NAMES, "nobody"]),
    max_latency_ms=st.none() | positive,
    min_quality=st.none() | st.floats(0.001, 1),
    kind=st.sampled_from(["box", "point"]),
    prompts=st.integers(0, 5000),
)


@given(
    ask=any_ask,
    variants=st.fixed_dictionaries(dict.fromkeys(NAMES, any_situation)),
    profiles=st.dictionaries(st.sampled_from([*NAMES, "not deployed"]), any_profile),
)
def test_whatever_the_numbers_an_answer_keeps_its_hints_or_is_refused(
    ask: RoutingQuery, variants: dict[str, VariantState], profiles: dict[str, Profile]
) -> None:
    router = RouterSettings(default="fast", aliases={"alias": "slow"})
    choice, refused = None, None
    try:
        choice = choose_variant(ask, variants, profiles, router)
    except NoEligibleVariant as caught:
        refused = caught
    if choice is None:
        assert refused is not None
        assert isinstance(refused.error, UnknownVariant | HintsUnmet | Overloaded)
        assert isinstance(refused.error, UnknownVariant) == (ask.variant == "nobody")
        assert refused.scale_from_zero is None or variants[refused.scale_from_zero].scaled_to_zero
        # Without hints nothing is refused that is deployed.
        assert ask.variant == "nobody" or ask.max_latency_ms or ask.min_quality
        return
    assert choice.variant in variants
    if ask.variant != "auto":
        assert choice.variant == {"alias": "slow"}.get(ask.variant, ask.variant)
        assert not choice.degraded
    if ask.max_latency_ms is not None or ask.min_quality is not None:
        profile = profiles[choice.variant]
        time = estimate_ms(profile, variants[choice.variant], ask.prompts)
        assert choice.expected_ms == time
        assert ask.max_latency_ms is None or time <= ask.max_latency_ms
        assert ask.min_quality is None or profile.quality[ask.kind] >= ask.min_quality


# What is deployed.


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
    assert (info["model"], info["family"], info["description"]) == ("vit_t", "sam", "quick")
    assert info["dtype"] == "bfloat16"
    assert info["weights_hash"] == registry.get("vit_t").weights_hash
    # Fused, the encoder runs where the decoder does.
    fused = split.model_copy(update={"layout": "fused", "decoder": DecoderSettings()})
    assert variant_info("fast", fused, registry)["dtype"] == "float32"


def test_a_model_that_does_not_segment_is_no_variant() -> None:
    with pytest.raises(ValueError, match="do not segment"):
        variant_info("fast", VariantSettings(model="efficientdet_lite2"), load_registry())


def test_of_mixed_prompts_the_worse_kind_counts() -> None:
    profiles = {"accurate": replace(ACCURATE, quality={"box": 0.9, "point": 0.8})}
    alone = {"accurate": IDLE}
    assert choose(alone, profiles, min_quality=0.8, mixed=True).variant == "accurate"
    error, _ = refusal(variants=alone, profiles=profiles, min_quality=0.85, mixed=True)
    assert "0.800" in error.message


def test_crops_are_images_of_their_own() -> None:
    one = choose(max_latency_ms=1200, images=1)
    assert one.variant == "accurate"
    several = choose(max_latency_ms=1200, images=5)
    assert several.variant == "fast"
    assert several.expected_ms == 5 * 90 + 10


def test_time_already_spent_counts() -> None:
    assert choose(max_latency_ms=1200, spent_ms=150).variant == "accurate"
    assert choose(max_latency_ms=1200, spent_ms=250).variant == "fast"
