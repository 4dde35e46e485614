"""Measures variants one after the other, each in processes of its own, and makes the ledger."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from serve_app.core.host import this_host
from serve_app.core.measurements import (
    Data,
    Escalation,
    MeasurementsFile,
    PromptType,
    VariantMeasurements,
)
from serve_app.core.settings import GraphSettings
from serve_app.models.registry import Registry
from serve_tools.evaluation.summary import versions_of
from serve_tools.profiling.cascade import fit_rules
from serve_tools.profiling.protocol import Effort, ProbeEvent, ProbeRequest, ProbeResult
from serve_tools.profiling.quality import QualityRecord, mean_iou
from serve_tools.profiling.timing import duration

PROBE = (sys.executable, "-m", "serve_tools.profiling.probe")
"""The command of one probe; tests put another in its place."""

_PACKAGES = ("serve-anything", "torch", "onnxruntime", "ray", "numpy")

Say = Callable[[str], None]


class ProbeFailed(Exception):
    """A variant could not be measured; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of a run.

    Attributes:
        ledger: of the variants that could be measured; None: of none.
        records: every prompt of every measured variant.
        failures: by variant, why it could not be measured.
    """

    ledger: MeasurementsFile | None
    records: tuple[QualityRecord, ...]
    failures: dict[str, str]


def measure(
    settings: GraphSettings, registry: Registry, names: Sequence[str], effort: Effort, say: Say
) -> Measured:
    """Measure configured variants on this host; a variant that fails does not stop the others.

    Args:
        say: called with lines of progress.
    """
    entries: dict[str, VariantMeasurements] = {}
    failures: dict[str, str] = {}
    records: list[QualityRecord] = []
    data: Data | None = None
    for name in names:
        started = time.monotonic()
        try:
            entry, result = _measure_one(settings, registry, name, effort, say)
        except ProbeFailed as exc:
            failures[name] = str(exc)
            say(f"{name}: failed: {exc}")
            continue
        entries[name] = entry
        records += result.records
        data = data or result.data
        say(f"{name}: measured in {time.monotonic() - started:.0f} s")
    if data is None:
        return Measured(None, (), failures)
    gpus = any(
        half.device != "cpu"
        for variant in settings.variants.values()
        for half in (variant.encoder_compute, variant.decoder.compute)
    )
    ledger = MeasurementsFile(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        host=this_host(gpus),
        versions=versions_of(_PACKAGES),
        data=data,
        entries=entries,
        escalation=_escalation(settings, records, effort.seed),
    )
    return Measured(ledger, tuple(records), failures)


def _escalation(
    settings: GraphSettings, records: Sequence[QualityRecord], seed: int
) -> dict[str, dict[PromptType, Escalation]]:
    """Rules for the configured cascade, as far as there are enough objects to fit them on."""
    first, second = settings.router.default, settings.router.cascade_to
    if second is None:
        return {}
    rules = fit_rules(records, first, second, seed)
    return {f"{first}>{second}": rules} if rules else {}


def _measure_one(
    settings: GraphSettings, registry: Registry, name: str, effort: Effort, say: Say
) -> tuple[VariantMeasurements, ProbeResult]:
    cold: list[float] = []
    loads: list[float] = []
    result: ProbeResult | None = None
    for turn in range(effort.cold_starts):
        last = turn == effort.cold_starts - 1
        request = ProbeRequest(settings=settings, variant=name, effort=effort if last else None)
        seen = run_probe(request, lambda text: say(f"{name}: {text}"))
        cold.append(seen.cold_start_s)
        loads.append(seen.load_s)
        result = seen.result
    if result is None:
        raise ProbeFailed("its process ended without a result")
    variant = settings.variants[name]
    compute, spec = variant.encoder_compute, registry.get(variant.model)
    entry = VariantMeasurements(
        model=variant.model,
        weights_hash=spec.weights_hash,
        preprocessing=spec.preprocessing,
        device=compute.device,
        dtype=compute.dtype,
        engine=spec.engine(compute),
        threads=compute.threads,
        cold_start_s=duration(cold, effort.seed),
        load_s=duration(loads, effort.seed),
        memory_bytes=result.memory_bytes,
        peak_memory_bytes=result.peak_memory_bytes,
        gpu_memory_bytes=result.gpu_memory_bytes,
        embedding_bytes=result.embedding_bytes,
        encode_ms={n: duration(ms, effort.seed) for n, ms in result.encode_ms.items()},
        decode_ms={n: duration(ms, effort.seed) for n, ms in result.decode_ms.items()},
        quality=mean_iou(result.records, effort.seed),
        agreement=result.agreement,
    )
    return entry, result


@dataclass(slots=True)
class _Seen:
    cold_start_s: float = 0.0
    load_s: float = 0.0
    result: ProbeResult | None = None


def run_probe(request: ProbeRequest, say: Say) -> _Seen:
    """Run one fresh process; its cold start is timed here, from before it exists.

    Raises:
        ProbeFailed: it reported a failure, crashed, or wrote invalid events.
    """
    with tempfile.TemporaryFile() as stdin:
        stdin.write(request.model_dump_json().encode())
        stdin.seek(0)
        started = time.monotonic()
        process = subprocess.Popen(PROBE, stdin=stdin, stdout=subprocess.PIPE)  # noqa: S603
        try:
            seen: _Seen | None = None
            for line in process.stdout or ():
                event = _event(line)
                if event.kind == "failed":
                    raise ProbeFailed(event.text)
                if event.kind == "first":
                    seen = _Seen(time.monotonic() - started, event.load_s or 0.0)
                    say(f"first masks {seen.cold_start_s:.1f} s after the start of a process")
                elif event.kind == "result" and seen is not None:
                    seen.result = event.result
                else:
                    say(event.text)
            if process.wait() != 0 or seen is None:
                raise ProbeFailed("its process ended early; see its output above")
            return seen
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _event(line: bytes) -> ProbeEvent:
    try:
        return ProbeEvent.model_validate_json(line)
    except ValidationError as exc:
        raise ProbeFailed("its process wrote an invalid event") from exc
