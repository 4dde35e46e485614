"""A whole capability in one file: the mean brightness of an image's columns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from serve_app.core.capability import Capability, Context, Outcome
from serve_app.core.request import Task
from serve_app.core.wire import AtMost, Whole


class Brightness(Task):
    """The mean brightness of an image, in equal columns."""

    name = "brightness"
    columns: Annotated[Whole, Field(ge=1), AtMost("max_points_per_side")] = 2
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0


@dataclass(frozen=True)
class BrightnessResult:
    levels: list[float]


async def run(task: Brightness, context: Context) -> Outcome:
    with context.stage("measure"):
        pixels = await context.image.pixels()
        await asyncio.sleep(task.wait_s)
        columns = [pixels[:, i :: task.columns] for i in range(task.columns)]
    return Outcome(results=(BrightnessResult([float(c.mean()) for c in columns]),))


CAPABILITY = Capability(task=Brightness, run=run, result=BrightnessResult)
