"""Which variant answers a request.  A pure function of the request and the configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from serve_app.domain.errors import UnknownVariant
from serve_app.domain.settings import RouterSettings

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant, and why it was chosen."""

    variant: str
    reason: str


def choose_variant(asked: str, deployed: Collection[str], router: RouterSettings) -> Choice:
    """A pinned variant is never changed; ``auto`` is the configured default.

    An alias is answered by the variant that it stands for, and the reason says so.

    Raises:
        UnknownVariant: ``asked`` is not deployed here.
    """
    if asked == AUTO:
        return Choice(router.default, "auto: the default variant")
    if asked in router.aliases:
        variant = router.aliases[asked]
        return Choice(variant, f"asked for {asked}, for which {variant} answers here")
    if asked not in deployed:
        names = ", ".join(sorted({*deployed, *router.aliases}))
        raise UnknownVariant(f"this variant is not deployed; use auto, {names}", "variant")
    return Choice(asked, "asked for")
