"""Fixtures that all tests may use."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

from serve_app.models.registry import load_registry
from serve_app.models.weights import WeightStore
from serve_app.telemetry import context, metrics
from serve_app.telemetry.metrics import Counter, Gauge, Histogram, set_collector

from .brevity import shorten
from .clocks import Clock, VirtualTime, use_clock

# Where this is set pytest prints whole differences, for which it needs minutes if they are large.
os.environ.pop("CI", None)

# A busy machine is no fault: how long a case takes says nothing.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Several processes share the processors here: a thread that waits must not keep one busy.
# Read when OpenMP is loaded, by replicas too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What was measured on this machine must not decide what tests see; replicas inherit this too.
os.environ["SAM_SERVE_LEDGER"] = str(Path(__file__).with_name("no-ledger.json"))

_EXIT_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        shorten(item, report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process that has been a driver of Ray without destroying its C++ objects.

    Threads of Ray and gRPC outlive ``ray.shutdown()`` and use these objects: presumably why a run
    of which all tests had passed ended with a segmentation fault.
    """
    drivers = sys.modules.get("tests.cluster.ray_cluster")
    status = config.stash.get(_EXIT_STATUS, None)
    if drivers is not None and drivers.RayCluster.drivers and status is not None:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.fixture(autouse=True)
def _telemetry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replica that a test makes in this process sets for the process ends with the test."""
    for module, name in ((context, "_requests"), (context, "_tracer"), (metrics, "_collector")):
        monkeypatch.setattr(module, name, getattr(module, name))


@pytest.fixture
def our_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[logging.LogRecord]]:
    """What this project's loggers have said; those of libraries may say something at any time."""
    # A replica that another test has made in this process writes where Serve does.
    monkeypatch.setattr(logging.getLogger("serve_app"), "parent", logging.getLogger())
    # Else the level is that of Serve, if a logger was asked for it before.
    caplog.set_level(logging.WARNING, "serve_app")
    return lambda: [r for r in caplog.records if r.name.startswith("serve_app")]


@pytest.fixture(scope="session")
def weight_paths() -> Callable[[str], dict[str, Path]]:
    """Paths of a model's real weights by file key; fetched where they are missing."""
    registry, store = load_registry(), WeightStore()
    return lambda name: store.ensure(name, registry.get(name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first; with several workers long ones, so that all workers end together."""
    items.sort(key=_weight, reverse=hasattr(config, "workerinput"))


def _weight(item: pytest.Item) -> int:
    marks = (item.get_closest_marker(name) is not None for name in ("weights", "slow", "cluster"))
    return sum(weight * mark for weight, mark in zip((1, 1, 4), marks, strict=True))


class Counted:
    """A collector of metrics that remembers them.

    Attributes:
        totals: of counters, and last values of gauges, by name and labels.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], float] = {}

    def of(self, instrument: Counter | Gauge, **labels: str) -> float:
        """The sum over all labels that are not given."""
        wanted = {f"{name}={value}" for name, value in labels.items()}
        return sum(v for k, v in self.totals.items() if k[0] == instrument.name and wanted <= {*k})

    def count(self, counter: Counter, amount: float, labels: Mapping[str, str]) -> None:
        key = _named(counter, labels)
        self.totals[key] = self.totals.get(key, 0) + amount

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        self.totals[_named(gauge, labels)] = value

    def observe(self, histogram: Histogram, value: float, labels: Mapping[str, str]) -> None:
        """No test asks for these yet."""


def _named(instrument: Counter | Gauge, labels: Mapping[str, str]) -> tuple[str, ...]:
    return instrument.name, *(f"{name}={value}" for name, value in labels.items())


@pytest.fixture
def counted() -> Iterator[Counted]:
    """The metrics that this process tells during a test."""
    collector = Counted()
    previous = set_collector(collector)
    yield collector
    set_collector(previous)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still, for all modules of the project."""
    made = Clock()
    use_clock(monkeypatch, made)
    return made


@pytest.fixture
async def virtual_time() -> AsyncIterator[VirtualTime]:
    """The test's event loop and all modules of the project on a clock that waits for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        made = VirtualTime(asyncio.get_running_loop(), patch)
        use_clock(patch, made)
        yield made
