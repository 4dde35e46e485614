"""Settings for golden tests: one variant, in this process, on two threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from serve_app.core.settings import (
    DecoderSettings,
    EncoderSettings,
    GraphSettings,
    ProposalsSettings,
    RouterSettings,
    VariantSettings,
)

from .cases import TWO_THREADS


@pytest.fixture(scope="session")
def one_variant() -> Callable[..., GraphSettings]:
    """Settings of a graph with one variant, without detector and text."""

    def settings(model: str, registry: str | None = None) -> GraphSettings:
        variant = VariantSettings(
            model=model,
            encoder=EncoderSettings(compute=TWO_THREADS),
            decoder=DecoderSettings(compute=TWO_THREADS),
        )
        return GraphSettings(
            registry=registry,
            variants={"golden": variant},
            router=RouterSettings(default="golden"),
            proposals=ProposalsSettings(detector=None),
            text=None,
        )

    return settings
