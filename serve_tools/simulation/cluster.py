"""Replica pools on a cluster of bounded capacity: cold starts, passes, draining, failures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from serve_app.core.measurements import pass_ms
from serve_tools.simulation.clock import Clock, Device, Noise
from serve_tools.simulation.scenario import Deployment

Phase = Literal["pending", "starting", "running", "draining", "gone"]


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """Requests that arrived together, equal in all but their images.

    Attributes:
        t: arrival time.
        weight: number of requests.
        kind: index into the classes of the report.
        goal_s: latency goal.
        row: index of its outcome.
        slots: how many pools hold a slot for it: the decoder's, then the encoder's too.
        items, left, flying: of the current stage: all, waiting, in passes.
        since: start of the wait for a pass.
        encodes: others with the same image wait for its embedding.
    """

    t: float
    weight: int
    kind: int
    goal_s: float
    prompts: int
    image: int
    row: int
    variant: str = ""
    slots: int = 0
    items: int = 0
    left: int = 0
    flying: int = 0
    since: float = 0.0
    encodes: bool = False
    done: bool = False


@dataclass(slots=True, eq=False)
class Replica:
    pool: ReplicaPool
    phase: Phase = "pending"
    started: float = 0.0
    batch: list[tuple[SimulatedRequest, int]] = field(default_factory=list)


class Cluster:
    """Capacity shared by the replicas of all pools, and its cost."""

    def __init__(
        self, clock: Clock, capacity: float, noise: Noise, device: Device | None = None
    ) -> None:
        self.clock, self.capacity, self.noise, self.device = clock, capacity, noise, device
        self.used = 0.0
        self.unit_s = 0.0
        self.pending: deque[Replica] = deque()
        self.placed: set[Replica] = set()

    def place(self) -> None:
        """Start pending replicas that fit; one that does not fit does not block others."""
        for _ in range(len(self.pending)):
            replica = self.pending.popleft()
            if replica.phase != "pending":
                continue
            cost = replica.pool.spec.cost
            if self.used + cost > self.capacity + 1e-9:
                self.pending.append(replica)
                continue
            self.used += cost
            self.placed.add(replica)
            replica.phase, replica.started = "starting", self.clock.now
            cold = replica.pool.spec.cold_start_s * (0.8 + 0.2 * self.noise())
            self.clock.at(self.clock.now + cold, replica.pool.ready, replica)

    def release(self, replica: Replica) -> None:
        """Account for a replica that ended, and start pending ones in its place."""
        self.placed.remove(replica)
        self.used -= replica.pool.spec.cost
        self.unit_s += replica.pool.spec.cost * (self.clock.now - replica.started)
        self.place()


class ReplicaPool:
    """One pool: its replicas, queues and metrics.

    A request takes a slot of a replica (`max_ongoing`) or waits at the handle; its items wait for
    a pass.  A free replica takes waiting items, up to a full batch.

    Args:
        admitted: a request got a slot.
        served: all items of a request were in passes.
        lost: a request's replica died, or it timed out.
    """

    def __init__(
        self,
        deployment: Deployment,
        cluster: Cluster,
        timeout_s: float,
        admitted: Callable[[SimulatedRequest], None],
        served: Callable[[SimulatedRequest], None],
        lost: Callable[[SimulatedRequest, str], None],
    ) -> None:
        self.spec, self.cluster, self.clock = deployment.pool, cluster, cluster.clock
        self.max_ongoing, self.max_queued = deployment.max_ongoing, deployment.max_queued
        self._timeout_s = timeout_s
        self._admitted, self._served, self._lost = admitted, served, lost
        most = self.spec.max_batch
        self.seconds = [pass_ms(self.spec.pass_ms, n) / 1e3 for n in range(most + 1)]
        self.handle: deque[SimulatedRequest] = deque()
        self.queue: deque[SimulatedRequest] = deque()
        self.replicas: list[Replica] = []
        self.idle: list[Replica] = []
        self.target = self.running = 0
        self.slots = self.queued = self.waiting = self.in_passes = 0
        self.items_in = self.passes = self.items_passed = 0
        self.lookups = self.hits = 0
        self.newest_at = 0.0
        self._dispatching = False
        self.starts = self.stops = self.changes = 0

    # -- requests

    @property
    def ongoing(self) -> int:
        """Requests at handles and in replicas."""
        return self.queued + self.slots

    def enter(self, request: SimulatedRequest) -> bool:
        """Take a slot or queue at the handle; False if rejected because the queue is full."""
        if not self.handle and self._has_slot(request):
            self._admit(request)
            return True
        if self.queued + request.weight > self.max_queued:
            return False
        self.queued += request.weight
        self.handle.append(request)
        return True

    def _has_slot(self, request: SimulatedRequest) -> bool:
        free = self.running * self.max_ongoing - self.slots
        return free >= request.weight or (self.running > 0 and self.slots == 0)

    def _admit(self, request: SimulatedRequest) -> None:
        self.slots += request.weight
        request.slots += 1
        self._admitted(request)

    def leave(self, request: SimulatedRequest) -> None:
        """Release the slot."""
        self.slots -= request.weight
        request.slots -= 1
        self.admit_queued()

    def admit_queued(self) -> None:
        """Move requests from the handle's queue into free slots; drop those that timed out."""
        while self.handle:
            request = self.handle[0]
            if self.clock.now - request.t > self._timeout_s:
                self.handle.popleft()
                self.queued -= request.weight
                self._lost(request, "timeout")
            elif self._has_slot(request):
                self.handle.popleft()
                self.queued -= request.weight
                self._admit(request)
            else:
                return

    def push(self, request: SimulatedRequest, items: int) -> None:
        """Queue the items of a request for a pass."""
        request.items = request.left = items
        request.flying, request.since = 0, self.clock.now
        self.queue.append(request)
        self.waiting += items
        self.items_in += items
        self._dispatch()

    def _dispatch(self) -> None:
        if self._dispatching:
            return
        self._dispatching = True
        while self.idle and self.queue:
            batch, items = self._collect()
            if not batch:
                break
            replica = self.idle.pop()
            replica.batch = batch
            self.in_passes += items
            self.passes += 1
            self.items_passed += items
            seconds = self.seconds[items] * self.cluster.noise()
            if self.cluster.device is None:
                self.clock.at(self.clock.now + seconds, self.finish, replica)
            else:
                self.cluster.device.start(seconds, self.finish, replica)
        self._dispatching = False

    def _collect(self) -> tuple[list[tuple[SimulatedRequest, int]], int]:
        queue, most = self.queue, self.spec.max_batch
        # A row stands for several requests that arrive one by one: spread them over idle replicas.
        unit = queue[0].items // queue[0].weight
        room = most = min(most, max(unit, -(-self.waiting // (len(self.idle) * unit)) * unit))
        batch: list[tuple[SimulatedRequest, int]] = []
        while queue and room:
            request = queue[0]
            if request.done:
                queue.popleft()
                continue
            if not request.flying and self.clock.now - request.t > self._timeout_s:
                queue.popleft()
                self._drop(request, "timeout")
                continue
            k = min(room, request.left)
            request.left -= k
            request.flying += k
            self.waiting -= k
            room -= k
            batch.append((request, k))
            if not request.left:
                queue.popleft()
        return batch, most - room

    def _drop(self, request: SimulatedRequest, why: str) -> None:
        self.waiting -= request.left
        request.left = 0
        self._lost(request, why)

    def finish(self, replica: Replica) -> None:
        """Handle the end of a pass."""
        if replica.phase == "gone":
            return
        batch, replica.batch = replica.batch, []
        if replica.phase == "draining":
            self._end(replica)
        else:
            self.idle.append(replica)
        for request, k in batch:
            self.in_passes -= k
            request.flying -= k
            if not request.left and not request.flying and not request.done:
                self._served(request)
        self._dispatch()

    # -- replicas

    def scale(self, target: int) -> None:
        """Start or stop replicas to reach ``target``."""
        if target != self.target:
            self.changes += 1
            self.starts += max(0, target - self.target)
            self.stops += max(0, self.target - target)
            self.target = target
        self._reconcile()

    def _reconcile(self) -> None:
        alive = len(self.replicas)
        if alive < self.target:
            for _ in range(self.target - alive):
                replica = Replica(self)
                self.replicas.append(replica)
                self.cluster.pending.append(replica)
            self.cluster.place()
        elif alive > self.target:
            rank = {"pending": 0, "starting": 1, "running": 2}
            by_loss = sorted(self.replicas, key=lambda r: (rank[r.phase], bool(r.batch)))
            for replica in by_loss[: alive - self.target]:
                self._stop(replica)

    def _stop(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        if replica.phase == "pending":
            replica.phase = "gone"
        elif replica.batch:
            replica.phase = "draining"
            self.running -= 1
        else:
            if replica.phase == "running":
                self.running -= 1
                self.idle.remove(replica)
            self._end(replica)

    def _end(self, replica: Replica) -> None:
        replica.phase = "gone"
        self.cluster.release(replica)

    def ready(self, replica: Replica) -> None:
        """Handle the end of a cold start."""
        if replica.phase != "starting":
            return
        replica.phase = "running"
        self.running += 1
        self.newest_at = self.clock.now
        self.idle.append(replica)
        self.admit_queued()
        self._dispatch()

    def warm(self, replicas: int) -> None:
        """Start with this number of running replicas."""
        self.target = replicas
        for _ in range(replicas):
            replica = Replica(self, "running", self.clock.now)
            self.replicas.append(replica)
            self.idle.append(replica)
            self.cluster.placed.add(replica)
            self.cluster.used += self.spec.cost
        self.running = replicas

    def die(self, _: object = None) -> None:
        """Kill a running replica with its batch; Serve starts another."""
        busy = [r for r in self.replicas if r.phase == "running" and r.batch]
        alive = busy or [r for r in self.replicas if r.phase == "running"]
        if not alive:
            return
        replica = alive[0]
        self.replicas.remove(replica)
        self.running -= 1
        if not replica.batch:
            self.idle.remove(replica)
        for request, k in replica.batch:
            self.in_passes -= k
            request.flying -= k
            if not request.done:
                self._drop(request, "lost")
        replica.batch = []
        self._end(replica)
        self._reconcile()

    def close(self) -> None:
        """Time out requests that are still queued because no replica started."""
        waiting = [*self.handle, *self.queue]
        self.handle.clear()
        self.queue.clear()
        self.queued = self.waiting = 0
        for request in waiting:
            request.left = 0
            if not request.done:
                self._lost(request, "timeout")

    def oldest_s(self) -> float:
        """Age of the oldest request that waits for a pass."""
        return self.clock.now - self.queue[0].since if self.queue else 0.0
