"""Which variant answers a request.  A pure function of the request and the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from serve_app.domain.errors import UnknownVariant

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant, and why it was chosen."""

    variant: str
    reason: str


def choose_variant(asked: str, deployed: Collection[str], default: str) -> Choice:
    """A pinned variant is never changed; ``auto`` is the configured default.

    Raises:
        UnknownVariant: ``asked`` is not deployed here.
    """
    if asked == AUTO:
        return Choice(default, "auto: the default variant")
    if asked not in deployed:
        names = ", ".join(sorted(deployed))
        raise UnknownVariant(f"this variant is not deployed; use auto, {names}", "variant")
    return Choice(asked, "asked for")
