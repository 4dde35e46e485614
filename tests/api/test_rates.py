"""So many requests a minute for each key, told before the body is read."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from serve_app.core.limits import Limits
from serve_app.core.settings import ApiKey, SecuritySettings
from serve_app.http.app import create_app
from serve_app.http.gate import GateMiddleware, TokenBucket
from serve_app.http.request_info import RequestInfo

from .asgi import Clock, Exchange, fine


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


SECURITY = SecuritySettings(
    api_keys=(
        ApiKey(name="slow", sha256=sha256("slow"), requests_per_minute=6, burst=2),
        ApiKey(name="slower", sha256=sha256("slower"), requests_per_minute=1, burst=1),
        ApiKey(name="free", sha256=sha256("free")),
    )
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock: Clock) -> GateMiddleware:
    return gate(fine, SECURITY, clock)


def gate(app: Any, security: SecuritySettings, clock: Clock) -> GateMiddleware:
    return GateMiddleware(app, limits=Limits(), security=security, clock=clock)


async def ask(rates: GateMiddleware, key: str = "slow", **more) -> Exchange:
    info = RequestInfo(route="/v1/segment")
    return await Exchange(info=info, headers={"x-api-key": key}, **more).run(rates)


async def test_a_burst_passes_and_then_one_for_each_ten_seconds(rates, clock, figures):
    assert [(await ask(rates)).status for _ in range(3)] == [200, 200, 429]
    refused = await ask(rates)
    assert refused.answered["retry-after"] == "10"
    assert refused.error["code"] == refused.info.error_code == "rate_limited"
    assert refused.read == 0
    clock.now += 7.5
    assert (await ask(rates)).answered["retry-after"] == "3"
    clock.now += 2.5
    assert [(await ask(rates)).status for _ in range(2)] == [200, 429]
    # However long it is quiet, no more than the burst comes at once.
    clock.now += 3600
    assert [(await ask(rates)).status for _ in range(3)] == [200, 200, 429]
    assert figures.refused("rate") == 5


async def test_a_key_has_its_own_rate_or_none(rates):
    assert (await ask(rates, "slower")).status == 200
    assert (await ask(rates, "slower")).answered["retry-after"] == "60"
    assert (await ask(rates, "slow")).status == 200
    for _ in range(50):
        answer = await ask(rates, "free")
        assert answer.status == 200
        assert "ratelimit" not in answer.answered


async def test_those_without_a_key_share_one_rate(clock):
    rates = gate(fine, SecuritySettings(requests_per_minute=1, burst=1), clock)
    assert (await ask(rates, "-", client=("192.0.2.1", 1))).status == 200
    assert (await ask(rates, "-", client=("192.0.2.2", 1))).status == 429
    probe = await Exchange(info=RequestInfo(route="/readyz"), path="/readyz", method="GET").run(
        rates
    )
    assert probe.status == 200


async def test_answers_tell_what_is_left(rates, clock):
    answer = await ask(rates)
    assert answer.answered["ratelimit-policy"] == '"requests";q=6;w=60'
    assert answer.answered["ratelimit"] == '"requests";r=1;t=10'
    await ask(rates)
    assert (await ask(rates)).answered["ratelimit"] == '"requests";r=0;t=20'


async def test_the_images_of_a_batch_count_and_a_debt_is_paid_off_first(clock):
    async def batch(scope, receive, send):
        scope["state"]["request_info"].record_size(images=5, prompts=5)
        await fine(scope, receive, send)

    rates = gate(batch, SECURITY, clock)
    # 2 were there, 5 are taken: 4 are missing to the next.
    assert (await ask(rates)).status == 200
    assert (await ask(rates)).answered["retry-after"] == "40"
    clock.now += 39
    assert (await ask(rates)).status == 429
    clock.now += 1
    assert (await ask(rates)).status == 200


def test_a_bucket_never_gives_more_than_its_rate():
    for per_minute, burst in ((1, 1), (7, 3), (60, 20), (6000, 5)):
        bucket, taken = TokenBucket(per_minute, burst, now=0.0), 0
        for step in range(10_000):
            taken += bucket.take(step * 0.037)
        most = min(10_000, burst + per_minute * 9_999 * 0.037 / 60)
        assert most - 1.001 <= taken <= most + 1e-6


async def test_the_interface_charges_for_each_image(service, limits):
    security = SecuritySettings(requests_per_minute=1, burst=1)
    app = create_app(service, limits, metrics=None, version="1", security=security)
    transport = httpx.ASGITransport(app)
    item = {"image_id": "a", "text": "dog"}
    async with httpx.AsyncClient(transport=transport, base_url="http://sam") as client:
        answer = await client.post("/v1/segment/batch", json={"items": [item] * 3})
        assert answer.status_code == 200
        assert len(service.requests) == 3
        refused = await client.post("/v1/segment", json=item)
    assert refused.status_code == 429
    # One a minute, and three images: at least two minutes and a bit.
    assert 120 < int(refused.headers["retry-after"]) <= 180
    assert len(service.requests) == 3
