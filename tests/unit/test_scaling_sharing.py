"""How a budget is shared where it does not suffice."""

from __future__ import annotations

from serve_app.scaling.sharing import ReplicaRequest, share
from serve_app.scaling.types import Pool, Role

PER_UNIT = {"encoder": 5.0, "decoder": 100.0}


def pool(variant: str, role: Role, least: int = 0) -> Pool:
    return Pool(f"{variant}-{role}", variant, role, 0.1, least, 1, 8, {1: 10.0}, 5.0)


def request(role: Role, need: int = 1) -> ReplicaRequest:
    return ReplicaRequest(need, need, need, need, PER_UNIT[role])


POOLS = {
    p.name: p
    for variant, least in (("fast", 1), ("accurate", 0), ("quantized", 0))
    for p in (pool(variant, "encoder", least), pool(variant, "decoder", least))
}
ALL = {name: request(p.role) for name, p in POOLS.items()}


def shared(budget: float, running: set[str]) -> set[str]:
    targets = {name: int(p.variant in running) for name, p in POOLS.items()}
    given = share(POOLS, targets, ALL, budget, reserve=0.9)
    return {name for name, replicas in given.items() if replicas}


def test_a_variant_gets_both_halves_or_none() -> None:
    both = {"fast-encoder", "fast-decoder"}
    for budget in (0.2, 0.3):
        assert shared(budget, {"fast"}) == both
    for budget in (0.4, 0.5):
        assert len({POOLS[name].variant for name in shared(budget, {"fast"})}) == 2
        assert len(shared(budget, {"fast"})) == 4
    assert shared(0.6, {"fast"}) == set(POOLS)


def test_who_runs_is_not_stopped_for_who_is_woken() -> None:
    for awake in ("accurate", "quantized"):
        assert shared(0.4, {"fast", awake}) == {
            n for n, p in POOLS.items() if p.variant in ("fast", awake)
        }
