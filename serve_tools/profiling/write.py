"""Writes a ledger atomically and keeps variants that were not measured again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from serve_app.core.measurements import MeasurementsFile


def merged(new: MeasurementsFile, old: MeasurementsFile | None) -> MeasurementsFile:
    """The new ledger with the entries of the old one that are still comparable.

    They do if host, versions and data are the same; rules of escalation are kept where neither
    of their variants was measured again.
    """
    if old is None or (old.host, old.versions, old.data) != (new.host, new.versions, new.data):
        return new
    kept = {
        pair: rules
        for pair, rules in old.escalation.items()
        if not new.entries.keys() & set(pair.split(">"))
    }
    return new.model_copy(
        update={
            "entries": {**old.entries, **new.entries},
            "escalation": {**kept, **new.escalation},
        }
    )


def write_ledger(path: Path, ledger: MeasurementsFile) -> None:
    """Write a temporary file and rename it: a reader sees the old file or the new one.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(ledger.model_dump_json(indent=2, exclude_none=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are readable by their owner only; replicas may run as another user.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
