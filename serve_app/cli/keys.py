"""``key``: a new API key, shown once, and its entry for the configuration."""

from __future__ import annotations

import argparse
import hashlib
import secrets

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError, positive
from serve_app.core.settings import ApiKey

_PREFIX = "sam_"
"""Prefix by which secret scanners of repositories and logs recognise a key."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("name", help="of the caller, as it appears in the audit log")
    add(
        "--requests-per-minute", type=positive, metavar="N",
        help="rate limit of one ingress replica (default: none)",
    )  # fmt: skip
    add("--burst", type=positive, metavar="N", help="requests allowed at once after a quiet time")


def run(args: argparse.Namespace) -> int:
    """Print a new key, and its hash for the configuration."""
    key = _PREFIX + secrets.token_urlsafe(32)
    rate = {"requests_per_minute": args.requests_per_minute, "burst": args.burst}
    entry = {
        "name": args.name,
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        **{name: value for name, value in rate.items() if value is not None},
    }
    try:
        ApiKey.model_validate(entry)
    except ValidationError as exc:
        raise CommandError(
            "a name has at most 64 letters, digits and ._@-, and begins with a letter or digit"
        ) from exc
    entries = yaml.safe_dump({"security": {"api_keys": [entry]}}, sort_keys=False)
    print(f"The key, for its owner; it is shown once and stored nowhere:\n\n{key}\n")
    print(f"For the configuration, under args:\n\n{entries}", end="")
    return 0
