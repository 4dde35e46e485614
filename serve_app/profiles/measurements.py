"""Reads the measurements file: only figures of these weights and this host are valid.

Imports no model library, because graph builders and the ingress use it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pydantic import ValidationError

from serve_app.core.folders import user_cache
from serve_app.core.host import this_host
from serve_app.core.measurements import (
    Measurements,
    MeasurementsFile,
    VariantMeasurements,
    dominated,
)
from serve_app.core.settings import GraphSettings, VariantSettings
from serve_app.models.registry import Registry, RegistryError

MEASUREMENTS_VARIABLE = "SAM_SERVE_LEDGER"
MAX_BYTES = 2**20
"""Upper bound of the file's size, far above that of a valid file."""

_COMMAND = "run 'python -m serve_app measure'"


class MeasurementsError(Exception):
    """The measurements cannot be used; the text is the reason."""


def measurements_path(settings: GraphSettings) -> Path:
    """Path of the file: the settings', else ``$SAM_SERVE_LEDGER``, else in the user's cache.

    Raises:
        MeasurementsError: the path starts with ``~`` and there is no home folder.
    """
    named = settings.measurements.path or os.environ.get(MEASUREMENTS_VARIABLE)
    try:
        return Path(named).expanduser() if named else user_cache() / "ledger.json"
    except RuntimeError as exc:
        raise MeasurementsError("the path of the measurements has an unknown home folder") from exc


def read_measurements(path: Path) -> MeasurementsFile | None:
    """Read and validate a file; None if there is none.

    Raises:
        MeasurementsError: not a regular file, too large, unreadable, or invalid.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise MeasurementsError("the measurements are not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as exc:  # ValueError: an impossible path
        raise MeasurementsError("the measurements cannot be read") from exc
    if len(content) > MAX_BYTES:
        raise MeasurementsError(f"the measurements file is larger than {MAX_BYTES >> 20} MiB")
    try:
        return MeasurementsFile.model_validate_json(content)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "file"
        raise MeasurementsError(
            f"the measurements are invalid ({where}: {first['msg'][:120]})"
        ) from exc


def load_measurements(settings: GraphSettings, registry: Registry) -> Measurements:
    """The valid figures of the configured variants.

    Never raises: a graph works without figures.  An entry with another model, weights,
    preprocessing, device, dtype or threads than configured is ignored, and, unless
    ``measurements.trust_host`` is set, everything that was measured on another host.
    """
    try:
        file = read_measurements(measurements_path(settings))
    except MeasurementsError as exc:
        return _nothing(settings, f"{exc}", f"{exc} and are ignored; {_COMMAND}")
    if file is None:
        text = f"no variant was measured on this host yet; {_COMMAND}"
        return _nothing(settings, "not measured", text)
    if (other := _other_host(file, settings)) is not None:
        text = f"the measurements are of another host ({other}) and are ignored; {_COMMAND} here"
        return _nothing(settings, "measured on another host", text, file)
    entries: dict[str, VariantMeasurements] = {}
    ignored: dict[str, str] = {}
    warnings = []
    for name, variant in settings.variants.items():
        entry = file.entries.get(name)
        if entry is None:
            ignored[name] = "not measured"
            warnings.append(f"there are no figures for {name}; {_COMMAND}")
        elif (reason := mismatch(entry, variant, registry)) is not None:
            ignored[name] = reason
            warnings.append(f"the figures for {name} are ignored: {reason}; {_COMMAND}")
        else:
            entries[name] = entry
    router = settings.router
    pair = f"{router.default}>{router.cascade_to}"
    if entries.keys() >= _ends(pair) and not file.escalation.get(pair):
        warnings.append(f"there are no rules for the cascade {pair}, which is off; {_COMMAND}")
    profiles = {name: entry.profile for name, entry in entries.items()}
    return Measurements(
        profiles=profiles,
        entries=entries,
        escalation={
            pair: rules for pair, rules in file.escalation.items() if entries.keys() >= _ends(pair)
        },
        warnings=tuple(warnings),
        dominated=dominated(profiles),
        ignored=ignored,
        file=file,
    )


def _ends(pair: str) -> set[str]:
    return set(pair.split(">"))


def mismatch(
    entry: VariantMeasurements, variant: VariantSettings, registry: Registry
) -> str | None:
    """The difference of an entry from a configured variant; None if there is none."""
    try:
        spec = registry.get(variant.model)
    except RegistryError:
        return "its model is not in the registry"
    compute = variant.encoder_compute
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


def _other_host(file: MeasurementsFile, settings: GraphSettings) -> str | None:
    """The difference of the measured host from this one; None if there is none or it is trusted."""
    if settings.measurements.trust_host:
        return None
    there = file.host
    here = this_host(gpus=bool(there.gpus))
    if there.cpu != here.cpu:
        return f"processor {there.cpu:.64}, here {here.cpu:.64}"
    if there.cores != here.cores:
        return f"{there.cores} cores, here {here.cores}"
    if there.gpus != here.gpus:
        return f"GPUs {', '.join(there.gpus):.64}, here {', '.join(here.gpus) or 'none':.64}"
    return None


def _nothing(
    settings: GraphSettings, reason: str, warning: str, file: MeasurementsFile | None = None
) -> Measurements:
    ignored = dict.fromkeys(settings.variants, reason)
    return Measurements(warnings=(warning,), ignored=ignored, file=file)
