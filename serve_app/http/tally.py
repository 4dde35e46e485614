"""What is known of the present request by now, for the audit line and those who charge for it.

`Account` puts a tally into the request's scope; whoever learns something writes it there.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

NONE = "-"
UNKNOWN_ROUTE = "unknown"
PROBES = frozenset({"/healthz", "/readyz", "/health"})
"""Answered whoever asks and however full the service is."""


@dataclass(slots=True)
class Tally:
    """One request's facts: nothing of its image, its texts or its image ids.

    Attributes:
        route: template of the route, not the path that was asked for.
        key: name of the API key.
        code: of the error that was answered; empty: none.
        variant: that answered; not what was asked for, which may be anything.
        prompts: prompts and texts, of all images.
        images: images of the call.
        charge: takes so many more requests from the key's rate.
    """

    route: str = UNKNOWN_ROUTE
    key: str = NONE
    code: str = ""
    variant: str = NONE
    prompts: int = 0
    images: int = 0
    charge: Callable[[int], None] | None = None

    def work(self, *, images: int, prompts: int) -> None:
        """What the call asks for, known once it is read; images beyond the first are charged."""
        self.images, self.prompts = images, prompts
        if self.charge is not None and images > 1:
            self.charge(images - 1)


def tally_of(scope_or_request: Request | MutableMapping[str, Any]) -> Tally:
    """The request's tally; a new one where nobody keeps it."""
    if isinstance(scope_or_request, Request):
        scope_or_request = scope_or_request.scope
    tally = scope_or_request.get("state", {}).get("tally")
    return tally if isinstance(tally, Tally) else Tally()
