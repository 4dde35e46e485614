"""Hints on real weights: whoever answers is allowed to, and what nobody can do is refused."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ..golden.cases import photo
from .conftest import Served
from .test_http import new_photo, png, segment

pytestmark = [pytest.mark.cluster, pytest.mark.weights]

REQUESTS = 200
POINT = {"point_coords": [[200, 120]], "point_labels": [1]}
ONE_MASK = {**POINT, "multimask_output": False}
ANY = frozenset({"fast", "accurate"})


@dataclass(frozen=True)
class Hint:
    """Hints, and who may answer; nobody: it must be refused as unmet."""

    fields: dict[str, Any]
    allowed: frozenset[str]


# The ledger of these tests says of points: fast 0.6, accurate 0.8 (tests/cluster/ledger_file.py).
HINTS = (
    Hint({}, ANY),
    Hint({"variant": "fast"}, frozenset({"fast"})),
    Hint({"variant": "accurate"}, frozenset({"accurate"})),
    # Whoever has made an int8 model is answered by it.
    Hint({"variant": "quantized"}, frozenset({"fast", "quantized"})),
    Hint({"min_quality": 0.5}, ANY),
    Hint({"min_quality": 0.7}, frozenset({"accurate"})),
    Hint({"min_quality": 0.95}, frozenset()),
    Hint({"max_latency_ms": 100_000}, frozenset({"accurate"})),
    Hint({"max_latency_ms": 3}, frozenset()),
    Hint({"min_quality": 0.7, "max_latency_ms": 100_000}, frozenset({"accurate"})),
    Hint({"min_quality": 0.7, "max_latency_ms": 5}, frozenset()),
    Hint({"variant": "fast", "max_latency_ms": 100_000}, frozenset({"fast"})),
    Hint({"variant": "fast", "min_quality": 0.7}, frozenset()),
)


@pytest.fixture(scope="module")
def known(served: Served) -> str:
    """An image that both variants know; *accurate* is awake then."""
    with httpx.Client(base_url=served.url, timeout=300, trust_env=False) as client:
        for variant in ("accurate", "fast"):
            answer = segment(client, photo("chelsea"), prompts=[POINT], variant=variant)
        image_id: str = answer["image_id"]
    return image_id


def test_two_hundred_requests_with_mixed_hints(http: httpx.Client, known: str) -> None:
    def ask(turn: int) -> tuple[Hint, httpx.Response]:
        hint = HINTS[turn % len(HINTS)]
        body = {"image_id": known, "prompts": [POINT], **hint.fields}
        return hint, http.post("/v1/segment", json=body)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    seen: Counter[str] = Counter()
    for hint, answer in answers:
        content = answer.json()
        if hint.allowed:
            assert answer.status_code == 200, (hint, content)
            assert content["variant"] in hint.allowed, (hint, content["reason"])
            assert content["reason"]
            seen[content["variant"]] += 1
        else:
            assert answer.status_code == 422, (hint, content)
            assert content["error"]["code"] == "hints_unmet"
            assert content["error"]["field"] in hint.fields
            # What is possible: a figure of the ledger, or a time.
            assert any(c.isdigit() for c in content["error"]["message"].split(";")[-1])
            seen["refused"] += 1
    assert sum(seen.values()) == REQUESTS
    assert min(seen["fast"], seen["accurate"], seen["refused"]) >= REQUESTS // 10, seen


def test_a_new_image_goes_by_time(http: httpx.Client, known: str) -> None:
    """In 3 s of the ledger's time only fast can embed one; in a minute both can."""
    hasty = http.post(
        "/v1/segment",
        files={"file": png(new_photo())},
        data={"request": json.dumps({"prompts": [POINT], "max_latency_ms": 3000})},
    ).json()
    # On a busy machine the router has learnt that even that takes longer now.
    assert hasty.get("variant") == "fast" or hasty["error"]["code"] == "overloaded"
    answer = segment(http, new_photo(), prompts=[POINT], max_latency_ms=100_000)
    assert answer["variant"] == "accurate"
    assert answer["expected_ms"] > 0


def test_the_cascade_answers_by_the_second_variant(http: httpx.Client, known: str) -> None:
    answer = segment(http, new_photo(), prompts=[ONE_MASK])
    assert "degraded" not in answer
    assert answer["variant"] == "fast"
    assert answer["escalated"] == 1
    assert answer["results"][0]["variant"] == "accurate"
    plain = segment(http, new_photo(), prompts=[ONE_MASK], variant="fast")
    assert "escalated" not in plain
    assert "variant" not in plain["results"][0]


def test_the_models_route_shows_the_ledger(http: httpx.Client) -> None:
    told = http.get("/v1/models").json()
    measured = told["variants"]["accurate"]["measured"]
    assert measured["quality"]["point"]["value"] == 0.8
    assert measured["encode_ms"]["1"]["value"] == 4500
    assert told["cascade_to"] == "accurate"
