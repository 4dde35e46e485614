"""The version of this project."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "serve-anything"


def project_version() -> str:
    """The installed version; ``0`` where the code runs without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0"
