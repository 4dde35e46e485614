"""Reading a ledger: only what was measured with these weights, on this host, counts.

Imports no model library: graph builders and the ingress use it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pydantic import ValidationError

from serve_app.core.host import this_host
from serve_app.core.measurements import (
    Measurements,
    MeasurementsFile,
    VariantMeasurements,
    dominated,
)
from serve_app.core.settings import GraphSettings, VariantSettings
from serve_app.models.registry import Registry, RegistryError
from serve_app.profiles.variants import encoder_compute

MEASUREMENTS_VARIABLE = "SAM_SERVE_LEDGER"
MAX_BYTES = 2**20
"""A ledger has some kilobytes; more than this is none."""

_COMMAND = "run 'python -m serve_app measure'"


class MeasurementsError(Exception):
    """The ledger cannot be used; the text says why."""


def measurements_path(settings: GraphSettings) -> Path:
    """Where the ledger is: the settings', else ``$SAM_SERVE_LEDGER``, else the user's cache.

    Raises:
        MeasurementsError: the path starts with ``~`` and there is no home folder.
    """
    named = settings.measurements.path or os.environ.get(MEASUREMENTS_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(named or f"{cache}/sam-serve/ledger.json").expanduser()
    except RuntimeError as exc:
        raise MeasurementsError(
            "the ledger's path names a home folder that cannot be found"
        ) from exc


def read_measurements(path: Path) -> MeasurementsFile | None:
    """The ledger in a file, checked for its form alone; None if there is no file.

    Raises:
        MeasurementsError: no plain file, too large, not readable, or not of this form.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise MeasurementsError("the ledger is not a plain file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as exc:  # ValueError: a path that no file can have
        raise MeasurementsError("the ledger cannot be read") from exc
    if len(content) > MAX_BYTES:
        raise MeasurementsError(f"the ledger is larger than {MAX_BYTES >> 20} MiB")
    try:
        return MeasurementsFile.model_validate_json(content)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "file"
        raise MeasurementsError(f"the ledger is not valid ({where}: {first['msg'][:120]})") from exc


def load_measurements(settings: GraphSettings, registry: Registry) -> Measurements:
    """The figures of the configured variants, as far as they can be believed.

    Never raises: a graph without figures works, it only knows less.  An entry whose model,
    weights, preprocessing, device, dtype or threads are not those configured is ignored, and
    unless ``ledger.trust_host`` is set everything that was measured on another host.
    """
    try:
        ledger = read_measurements(measurements_path(settings))
    except MeasurementsError as exc:
        return _nothing(settings, f"{exc}", f"{exc}: it is ignored; {_COMMAND} for a new one")
    if ledger is None:
        text = f"no variant of this host was measured yet; {_COMMAND}"
        return _nothing(settings, "not measured", text)
    if (other := _other_host(ledger, settings)) is not None:
        text = f"the ledger is of another host ({other}) and is ignored; {_COMMAND} here"
        return _nothing(settings, "measured on another host", text, ledger)
    entries: dict[str, VariantMeasurements] = {}
    ignored: dict[str, str] = {}
    warnings = []
    for name, variant in settings.variants.items():
        entry = ledger.entries.get(name)
        if entry is None:
            ignored[name] = "not measured"
            warnings.append(f"the ledger has no figures for {name}; {_COMMAND}")
        elif (reason := mismatch(entry, variant, registry)) is not None:
            ignored[name] = reason
            warnings.append(f"the ledger's figures for {name} are ignored: {reason}; {_COMMAND}")
        else:
            entries[name] = entry
    router = settings.router
    pair = f"{router.default}>{router.cascade_to}"
    if entries.keys() >= _ends(pair) and not ledger.escalation.get(pair):
        warnings.append(f"the ledger has no rules for the cascade {pair}: it is off; {_COMMAND}")
    profiles = {name: entry.profile for name, entry in entries.items()}
    return Measurements(
        profiles=profiles,
        entries=entries,
        escalation={
            pair: rules
            for pair, rules in ledger.escalation.items()
            if entries.keys() >= _ends(pair)
        },
        warnings=tuple(warnings),
        dominated=dominated(profiles),
        ignored=ignored,
        file=ledger,
    )


def _ends(pair: str) -> set[str]:
    return set(pair.split(">"))


def mismatch(
    entry: VariantMeasurements, variant: VariantSettings, registry: Registry
) -> str | None:
    """In what an entry differs from a configured variant; None if it is of this variant."""
    try:
        spec = registry.get(variant.model)
    except RegistryError:
        return "its model is not in the registry"
    compute = encoder_compute(variant)
    try:
        engine = spec.engine(compute)
    except ValueError as exc:
        return str(exc)
    wanted = {
        "model": (entry.model, variant.model),
        "weights": (entry.weights_hash, spec.weights_hash),
        "preprocessing": (entry.preprocessing, spec.preprocessing),
        "device": (entry.device, compute.device),
        "dtype": (entry.dtype, compute.dtype),
        "engine": (entry.engine, engine),
        "threads": (entry.threads, compute.threads),
    }
    for what, (measured, configured) in wanted.items():
        if measured != configured:
            return f"measured with {what} {measured!s:.32}, configured is {configured!s:.32}"
    return None


def _other_host(ledger: MeasurementsFile, settings: GraphSettings) -> str | None:
    """What of the ledger's host differs from this one; None if nothing does, or it is trusted."""
    if settings.measurements.trust_host:
        return None
    there = ledger.host
    here = this_host(gpus=bool(there.gpus))
    if there.cpu != here.cpu:
        return f"processor {there.cpu:.64}, here {here.cpu:.64}"
    if there.cores != here.cores:
        return f"{there.cores} cores, here {here.cores}"
    if there.gpus != here.gpus:
        return f"GPUs {', '.join(there.gpus):.64}, here {', '.join(here.gpus) or 'none':.64}"
    return None


def _nothing(
    settings: GraphSettings, reason: str, warning: str, ledger: MeasurementsFile | None = None
) -> Measurements:
    ignored = dict.fromkeys(settings.variants, reason)
    return Measurements(warnings=(warning,), ignored=ignored, file=ledger)
