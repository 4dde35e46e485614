"""The request context of Serve, which carries request ids into log lines and calls."""

from __future__ import annotations

import asyncio
from contextvars import Context

from ray.serve.context import _RequestContext, _serve_request_context

from serve_app.deployments.compat.runtime import RequestContext


async def test_serves_request_is_carried_without_what_cancels_it() -> None:
    known = RequestContext()
    assert known.request_id() == ""
    _serve_request_context.set(
        _RequestContext(
            route="/v1/segment",
            request_id="raw",
            _internal_request_id="internal",
            app_name="sam",
            cancel_on_parent_request_cancel=True,
        )
    )
    known.rename("ours")
    assert known.request_id() == "ours"
    carry, carried = known.carry(), None

    async def elsewhere() -> None:
        nonlocal carried
        carry()
        carried = _serve_request_context.get()

    await asyncio.create_task(elsewhere(), context=Context())
    assert carried == _RequestContext(route="/v1/segment", request_id="ours", app_name="sam")
