"""What a capability is: a request model, a result model, a cost for the router, and a run.

A capability is one module under `serve_app.capabilities` and one line of its registry.  Routes,
form fields, the OpenAPI document, the client, limits, deadlines, metrics and the audit log come
from what is declared here.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serve_app.core.errors import InvalidRequest
from serve_app.core.inference import DecodeOptions, Proposal
from serve_app.core.ports import TextScorer
from serve_app.core.request import Task
from serve_app.core.types import Mask, Prompt, PromptResult, ProposalSource, RgbArray

PromptType = Literal["point", "box"]
Masks = tuple[tuple[Mask, ...], ...]
"""The masks of each prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """How much work a task is, for the router.

    Attributes:
        prompts: how many there will be, for the image and for each crop that is embedded too.
        prompt_type: of most of the prompts: the column of measured quality that applies.
        mixed: there are prompts of both types.
        filtered: low scores are dropped, so that the default variant's thresholds apply.
    """

    prompts: Sequence[int] = (0,)
    prompt_type: PromptType = "point"
    mixed: bool = False
    filtered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gives.

    Attributes:
        results: of the capability's ``result`` type, in the request's order.
        text_engine, threshold, escalated, degraded: see `SegmentResult`.
        note: added to the response's ``reason``.
    """

    results: tuple[Any, ...]
    text_engine: str | None = None
    threshold: float | None = None
    escalated: int = 0
    degraded: bool = False
    note: str = ""


class Image(Protocol):
    """The image of a request: named and measured, decoded when its pixels are needed."""

    @property
    def id(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...

    async def pixels(self) -> RgbArray:
        """The upright ``(H, W, 3) uint8`` RGB pixels."""

    async def crop(self, x: int, y: int, width: int, height: int) -> Image:
        """A part of the image, in pixels, as an image of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """What the cascade made of the masks of a variant.

    Attributes:
        masks: of each prompt, from whichever variant is better.
        replaced: indices of the prompts with masks of the second variant.
        variant: the second variant.
        sent: prompts that were sent to it.
        note: for the response's ``reason``; empty if the first variant was confident.
        degraded: load or time kept the second variant from responding.
    """

    masks: Masks
    replaced: frozenset[int] = frozenset()
    variant: str | None = None
    sent: int = 0
    note: str = ""
    degraded: bool = False


class Context(Protocol):
    """What a run works with: the request's image, the chosen variant, and the other deployments."""

    @property
    def image(self) -> Image: ...
    @property
    def scorer(self) -> TextScorer | None: ...  # None: not deployed here

    def warn(self, code: str, message: str, field: str | None = None) -> None:
        """Add a warning to the response; those of one code are one, which counts its fields."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block as a stage of the response's ``timings_ms``, and as a span."""

    async def predict(
        self, image: Image, prompts: Sequence[Prompt], options: DecodeOptions
    ) -> Masks:
        """Masks of each prompt by the chosen variant; without prompts the image is embedded.

        Prompts must lie inside the image: `Prompt.inside` clips a caller's.
        """

    async def propose(
        self, image: Image, source: ProposalSource, points_per_side: int
    ) -> tuple[Proposal, ...]:
        """Candidate regions of the image."""

    async def escalate(self, prompts: Sequence[Prompt], masks: Masks) -> Escalation:
        """Send prompts with unsure masks to the cascade's second variant, if there is time."""


async def _no_cost(task: Task, image: Image, scorer: TextScorer | None) -> Cost:
    return Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One thing that the service can do with an image.

    Attributes:
        task: the request model.
        run: does the task.
        cost: how much work a task is; it may call the text scorer (None: not deployed).
        result: the model of one result, a dataclass or pydantic model.
        route: served at ``POST /v1/{route}`` and ``/v1/{route}/batch``, with the other
            capabilities of the same route.
    """

    task: type[Task]
    run: Callable[[Any, Context], Awaitable[Outcome]]
    cost: Callable[[Any, Image, TextScorer | None], Awaitable[Cost]] = _no_cost
    result: type[Any] = PromptResult
    route: str = "segment"


class Capabilities(dict[type[Task], Capability]):
    """The registry: capabilities by their request model.

    Raises:
        InvalidRequest: at a lookup, for a task of a capability that is not registered.
        ValueError: two capabilities have the same task, name or the same member of a request.
    """

    def __init__(self, capabilities: Iterable[Capability]) -> None:
        found = list(capabilities)
        super().__init__({capability.task: capability for capability in found})
        tasks = [capability.task for capability in found]
        for task, other in itertools.combinations(reversed(tasks), 2):
            if shared := {task.name, *task.member_names} & {other.name, *other.member_names}:
                raise ValueError(f"{task.name} and {other.name} share the member {min(shared)}")

    def __missing__(self, task: type[Task]) -> Capability:
        raise InvalidRequest(f"this service has no capability {task.name}")

    def routes(self) -> dict[str, tuple[Capability, ...]]:
        """The capabilities of each route."""
        found: dict[str, tuple[Capability, ...]] = {}
        for capability in self.values():
            found[capability.route] = (*found.get(capability.route, ()), capability)
        return found
