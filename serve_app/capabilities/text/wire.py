"""The request model of a text query."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from serve_app.core.errors import InvalidRequest
from serve_app.core.request import Members, Task
from serve_app.core.types import ProposalSource
from serve_app.core.wire import AtMost, Share, Whole, as_tuple, fault


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


def _not_blank(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts or any(not text.strip() for text in texts):
        raise fault(InvalidRequest.code, "text must hold at least one text, none of them empty")
    return texts


_TEXT = {"type": "string", "minLength": 1}


class TextQuery(Task):
    """Find the objects that texts name; each text has its own result."""

    name = "text"
    flat = True

    text: Annotated[
        tuple[str, ...],
        AfterValidator(_not_blank),
        AtMost("max_texts", "texts"),
        AtMost("max_text_chars", "characters in a text", each=True),
        BeforeValidator(_several),
        WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
    ] = Field(description="what to look for; each text has its own result", examples=["dog"])
    text_threshold: Share | None = Field(
        None, description="minimum calibrated score of a mask; default: the engine's"
    )
    max_masks: Annotated[Whole, Field(ge=1, le=1024)] = Field(
        16, description="maximum number of masks for each text, best first"
    )
    proposals: Annotated[ProposalSource, Field(strict=False)] | None = Field(
        None, description="source of the candidate regions; default: the engine's"
    )
    points_per_side: Annotated[Whole, Field(ge=1), AtMost("max_points_per_side")] = Field(
        16, description="of the grid, where the candidate regions come from it"
    )

    @property
    def size(self) -> int:
        return len(self.text)

    @classmethod
    def count(cls, members: Members) -> tuple[int, int]:
        text = members.get("text")
        return (len(text) if isinstance(text, list) else 1), 0
