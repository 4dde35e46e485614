"""NDJSON: one line for each job, sent as soon as it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Job = Callable[[], Awaitable[bytes]]


class NdjsonResponse(Response):
    """Runs jobs, at most ``concurrency`` at once, and sends each one's line when it is done.

    A slow client delays further jobs.  If the client disconnects, running jobs are cancelled and
    the others never start.  (Starlette's ``StreamingResponse`` leaves a generator's tasks to the
    garbage collector.)

    Args:
        jobs: each returns its line, errors included; a job that raises ends the response.
        concurrency: maximum number of jobs that run at once.
    """

    media_type = "application/x-ndjson"

    def __init__(self, jobs: Iterable[Job], concurrency: int) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._jobs = iter(jobs)
        self._concurrency = concurrency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responding = asyncio.create_task(self._respond(send))
        disconnecting = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((responding, disconnecting), return_when=asyncio.FIRST_COMPLETED)
            if responding.done():
                responding.result()
        finally:
            responding.cancel()
            disconnecting.cancel()
            await asyncio.gather(responding, disconnecting, return_exceptions=True)

    async def _respond(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        sending = asyncio.Lock()

        async def work() -> None:
            for job in self._jobs:
                line = await job()
                async with sending:
                    await send(
                        {"type": "http.response.body", "body": line + b"\n", "more_body": True}
                    )

        disconnected = False
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(work())
        except* ClientDisconnect:
            disconnected = True
        if disconnected:
            raise ClientDisconnect
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
