"""What replicas of the local application have logged, as JSON lines in the cluster's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .conftest import Served


def logs(served: Served) -> Path:
    return served.cluster.folder / "session_latest" / "logs" / "serve"


def whole_lines(path: Path) -> list[str]:
    """Not the one that is being written."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def lines(served: Served, *request_ids: str) -> Iterator[dict[str, Any]]:
    """Log lines of some requests, in all replicas of the application."""
    for path in logs(served).glob("replica_sam_*.log"):
        for line in whole_lines(path):
            fields = json.loads(line)
            if fields.get("request_id") in request_ids:
                yield fields


def who_wrote(served: Served, request_id: str) -> set[str]:
    """The deployments that logged something of a request."""
    return {f["deployment"].removeprefix("sam_") for f in lines(served, request_id)}


def calls(served: Served, deployment: str, *request_ids: str) -> int:
    """Calls of a deployment that were made for some requests, and are over."""
    return sum(
        fields["deployment"] == f"sam_{deployment}" and fields["message"].startswith("CALL ")
        for fields in lines(served, *request_ids)
    )
