"""Item 12: the configuration changes ten times under load, and wrong ones in between."""

from __future__ import annotations

import asyncio
import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve_tools.bench.load import Outcome

from ..cluster.ray_cluster import wait_until
from ..fakes.graph import graph
from ..faults.redis_server import RedisServer
from .client import Client, Ledger
from .kills import TIMES, half_load, note_causes
from .processes import pss_bytes
from .questions import Mix
from .report import Report
from .service import Service, serving

ITEM = "12 changes"
App = dict[str, Any]
"""An application of a Serve config."""
Change = Callable[[App], None]
Pids = Mapping[str, set[int]]
"""Process ids by role."""
STEADY = 3
"""Looks in a row at which nothing moved."""


def _override(role: str, **settings: Any) -> Change:
    """Of one deployment, beside ``args``: Serve takes it over and restarts nothing."""

    def change(app: App) -> None:
        for entry in app["deployments"]:
            if entry["name"] == role:
                entry.update(settings)
                return
        app["deployments"].append({"name": role, **settings})

    change.__name__ = f"{role} {' '.join(settings)}"
    return change


def _scaling(count: int) -> dict[str, int]:
    return {"min_replicas": count, "max_replicas": count, "target_ongoing_requests": 1000}


def _scaled(role: str, count: int) -> Change:
    return _override(role, autoscaling_config=_scaling(count))


SCALED = ("fast-encoder", "text", "fast-decoder", "ingress")


def beside_args() -> list[dict[str, Any]]:
    """What stands there from the start, since Serve restarts all when an autoscaling is added."""
    return [{"name": role, "autoscaling_config": _scaling(2)} for role in SCALED]


def add_variant(app: App) -> None:
    """Any change of ``args`` replaces all replicas, one by one."""
    app["args"]["variants"]["accurate"] = copy.deepcopy(app["args"]["variants"]["fast"])


def remove_variant(app: App) -> None:
    del app["args"]["variants"]["accurate"]


def other_batches_and_cache(app: App) -> None:
    app["args"]["variants"]["fast"]["encoder"]["batching"] = {"max_batch_size": 4}
    app["args"]["cache"]["embedding_bytes"] = 64 * 2**20


def other_limits(app: App) -> None:
    app["args"]["limits"] = {"max_prompts": 512}
    app["args"]["ingress"]["request_timeout_s"] = 25.0


CHANGES: tuple[Change, ...] = (
    _scaled("fast-encoder", 3), other_batches_and_cache, _scaled("text", 3), add_variant,
    _override("proposals", max_ongoing_requests=128), other_limits, _scaled("fast-decoder", 3),
    _override("fast-encoder", max_ongoing_requests=32), remove_variant, _scaled("ingress", 3),
)  # fmt: skip
WRONG: tuple[tuple[str, Change], ...] = (
    ("an unknown setting", lambda app: app["args"].update(colour="blue")),
    ("an absurd value", lambda app: app["args"]["cache"].update(embedding_bytes=-1)),
    ("a default that is not deployed", lambda app: app["args"].update(router={"default": "huge"})),
)


def run(report: Report, quick: bool) -> None:
    """All changes under one load."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder)) as redis,
        serving(
            graph(ingresses=2, fakes=TIMES, cache={"redis_url": redis.url}),
            deployments=beside_args(),
        ) as service,
    ):
        asyncio.run(_run(report, service, CHANGES[:3] if quick else CHANGES))
        if report.broken:
            note_causes(report, service)


async def _run(report: Report, service: Service, changes: tuple[Change, ...]) -> None:
    mix = Mix()
    async with Client(service.url) as client:
        rate = await half_load(client, mix)
        client.ledger = Ledger()
        work = asyncio.create_task(asyncio.to_thread(_change, service, changes))
        began, asks = time.monotonic(), list[asyncio.Task[Outcome]]()
        while not work.done():
            due = began + len(asks) / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asks.append(asyncio.create_task(client.ask(mix(), due)))
        outcomes = await asyncio.gather(*asks)
        took, effective, whole = await work
        ledger = client.ledger
    report.add(ITEM, "changes", len(took), f"each through within {max(took.values()):.0f} s")
    report.at_least(ITEM, "of them in effect", sum(effective.values()), len(changes))
    report.at_least(ITEM, "invalid configurations rejected whole", sum(whole.values()), len(WRONG))
    report.add(ITEM, "requests during the test, at half load", len(outcomes), f"{rate:.1f}/s")
    failed = [o for o in outcomes if o.status != 200]
    report.at_most(ITEM, "responses other than 200", len(failed), 0)
    report.at_most(ITEM, "ids without exactly one outcome", ledger.unanswered, 0)
    report.at_most(ITEM, "requests with two different results", ledger.contradictions(), 0)
    report.note(f"\nChanges, ledger:\n\n{ledger.table()}\n")
    without = [name for name, seen in effective.items() if not seen]
    if without:
        report.note("Without effect: " + ", ".join(without))
    report.note("Changes took: " + ", ".join(f"{n} {s:.0f} s" for n, s in took.items()))
    if failed:
        first = [f"- {o.done_s - began:.1f} s: {o.kind} {o.status} {o.code}" for o in failed[:20]]
        report.note("Failed:\n" + "\n".join(first))


def _change(
    service: Service, changes: tuple[Change, ...]
) -> tuple[dict[str, float], dict[str, bool], dict[str, bool]]:
    """One change after the other, each when the one before is through; wrong ones in between."""
    took, effective, whole = {}, {}, {}
    wrong, before = list(WRONG), service.roles()
    for change in changes:
        config = copy.deepcopy(service.config)
        change(service.app_of(config))
        old = service.app_of(service.config)
        took[change.__name__] = changed(service, config)
        after, found = service.roles(), service.told()["deployments"]
        seen = in_effect(old, service.app_of(config), before, after, found)
        effective[change.__name__] = seen
        if not seen:
            print(change.__name__, "from", before, "to", after, flush=True)
        before = after
        if wrong:
            name, spoil = wrong.pop(0)
            whole[name] = refused(service, spoil)
    changed(service, service.config)
    return took, effective, whole


def in_effect(
    old: App, new: App, before: Pids, after: Pids, deployments: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether a change did what it should.

    One of ``args`` replaces all replicas; one beside them restarts none, and the deployment has
    its number of replicas or its setting.
    """
    if new["args"] != old["args"]:
        return bool(before) and all(
            pids and pids.isdisjoint(after.get(role, set())) for role, pids in before.items()
        )
    if not all(pids <= after.get(role, set()) for role, pids in before.items()):
        return False
    (override,) = (entry for entry in new["deployments"] if entry not in old["deployments"])
    settings = dict(override)
    role, scaling = settings.pop("name"), settings.pop("autoscaling_config", None)
    if scaling and len(after[role]) != scaling["min_replicas"]:
        return False
    told = deployments[role]["deployment_config"]
    return all(told[name] == value for name, value in settings.items())


def changed(service: Service, config: dict[str, Any], timeout_s: float = 180.0) -> float:
    """Deploy a configuration; seconds until it runs and nothing moves any more."""
    before, steady, began = service.told()["last_deployed_time_s"], 0, time.monotonic()
    service.redeploy(config)

    def through() -> bool:
        nonlocal steady
        told = service.told()
        calm = told["status"] == "RUNNING" and told["last_deployed_time_s"] > before
        calm = calm and all(d["status"] == "HEALTHY" for d in told["deployments"].values())
        steady = steady + 1 if calm else 0
        return steady >= STEADY

    wait_until(through, "the change is through", timeout_s)
    return time.monotonic() - began


def refused(service: Service, spoil: Change) -> bool:
    """Whether a wrong configuration ends no process; that they go on answering, the load tells.

    Serve lists no replicas of an application whose last configuration failed, so the kernel is
    asked.
    """
    before = {pid for pids in service.roles().values() for pid in pids}
    config = copy.deepcopy(service.config)
    spoil(service.app_of(config))
    service.cluster.deploy(config)
    wait_until(lambda: service.status() == "DEPLOY_FAILED", "it is refused", 180.0)
    return bool(before) and all(map(pss_bytes, before))
