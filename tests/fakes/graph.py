"""The real graph with fake models of fixed service time, for tests of faults.

    ingress ─┬─▶ proposals ×2
             ├─▶ text ×2
             └─▶ fast-decoder ×2 ─▶ fast-encoder ×2

Ingress, routers, batches, caches and handle adapters are the project's own; a pass of a model is
a sleep (`tests.fakes.engines`).  Masks are rectangles drawn from a digest of image and prompt, so
that responses can be compared.  Neither weights nor torch are needed.

In a Serve config: `application` gives the whole entry; its ``args`` are `GraphSettings` with one
more member, ``fakes`` (`ServiceTimes`).

    cluster.deploy({"http_options": {...}, "applications": [application("faults", graph())]})
"""

import os
import threading
from pathlib import Path
from typing import Any

from pydantic import Field
from ray.serve import Application

from graphs.nodes import deployed, ingress_node
from serve_app.batching.engine_thread import EngineThread
from serve_app.core.settings import GraphSettings
from serve_app.deployments.compat.affinity import affinity
from serve_app.deployments.decoder import DecoderReplica
from serve_app.deployments.engines import EncoderReplica, ProposalsReplica, TextReplica
from serve_app.profiles.plan import resolve

from .engines import FakeSource, PassCounts, ServiceTimes

ROOT = Path(__file__).resolve().parents[2]
_SLOT = 0.01
"""CPUs, in Ray's bookkeeping, of a replica: many fit on any machine."""


def _of_environment() -> ServiceTimes:
    return ServiceTimes.model_validate_json(os.environ.get("SAM_SERVE_FAKES", "{}"))


class FaultSettings(GraphSettings):
    """All of a graph, and the service times of its fakes.

    Where something else reads the same ``args`` as `GraphSettings`, which would refuse one more
    member, the application's environment has them: ``SAM_SERVE_FAKES``, as JSON.
    """

    fakes: ServiceTimes = Field(default_factory=_of_environment)


class _Watched:
    """What a replica holds at present, for tests that want to see it empty."""

    threads: list[EngineThread]

    async def held(self) -> dict[str, int]:
        """Items in the batcher or engine thread, threads and descriptors of this process.

        "done 64x48" is what was done for images of that width and height, "begun 64x48" what is
        or was in a pass.
        """
        waiting = sum(thread._pool._work_queue.qsize() for thread in self.threads)
        batcher = getattr(self, "_batcher", None)
        load = None if batcher is None else batcher.load()
        return {
            "pid": os.getpid(),
            "waiting": waiting + (load.waiting if load else 0),
            "running": load.running if load else 0,
            "done": PassCounts.items,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            **{f"done {w}x{h}": n for (w, h), n in list(PassCounts.by_size.items())},
            **{f"begun {w}x{h}": n for (w, h), n in list(PassCounts.begun.items())},
        }


class WatchedEncoder(_Watched, EncoderReplica):
    pass


class WatchedDecoder(_Watched, DecoderReplica):
    pass


class WatchedProposals(_Watched, ProposalsReplica):
    pass


class WatchedText(_Watched, TextReplica):
    pass


def graph(
    *,
    replicas: int = 2,
    ingresses: int = 1,
    encoder_batch: int = 2,
    fakes: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The application's ``args``: ``replicas`` of each role; ``more`` replaces members."""

    def role(count: int, **rest: Any) -> dict[str, Any]:
        scaling = {"min_replicas": count, "max_replicas": count, "target_ongoing_requests": 1000}
        return {"ray_actor_options": {"num_cpus": _SLOT}, "autoscaling_config": scaling, **rest}

    variant = {
        "model": "vit_t",
        "encoder": role(replicas, batching={"max_batch_size": encoder_batch}),
        "decoder": role(replicas, batching={"max_batch_size": 32, "batch_wait_timeout_s": 0.0}),
    }
    return {
        "variants": {"fast": variant},
        "ingress": role(ingresses, request_timeout_s=30.0),
        "proposals": role(replicas, detector=None),
        "text": role(replicas),
        # There are no measurements of fakes.
        "measurements": {"path": "/nonexistent/ledger.json"},
        **({} if fakes is None else {"fakes": fakes}),
        **more,
    }


def application(
    name: str, args: dict[str, Any], prefix: str | None = None, **more: Any
) -> dict[str, Any]:
    """An application of a Serve config; ``prefix`` None: ``/<name>``."""
    return {
        "name": name,
        "route_prefix": f"/{name}" if prefix is None else prefix,
        "import_path": f"{__name__}:build",
        "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        "args": args,
        **more,
    }


def build(settings: FaultSettings) -> Application:
    """The application builder."""
    source = FakeSource(times=settings.fakes)
    decoders = {}
    for name, variant in settings.variants.items():
        encoder: Any = None
        if variant.layout == "split":
            encoder = deployed(WatchedEncoder, f"{name}-encoder", variant.encoder).bind(
                variant.model, variant.encoder, source
            )
        router = affinity(variant.decoder)
        decoder = deployed(WatchedDecoder, f"{name}-decoder", variant.decoder, router)
        decoders[name] = decoder.bind(variant, settings.cache, source, encoder)
    proposals = deployed(WatchedProposals, "proposals", settings.proposals).bind(
        settings.proposals, source
    )
    text: Any = None
    if settings.text is not None:
        text = deployed(WatchedText, "text", settings.text).bind(settings.text, source)
    application: Application = ingress_node(resolve(settings), decoders, proposals, text)
    return application
