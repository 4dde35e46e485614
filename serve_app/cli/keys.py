"""``key``: a new API key, shown once, and the configuration's entry for it."""

from __future__ import annotations

import argparse
import hashlib
import secrets
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.cli import CommandError, positive
from serve_app.core.settings import ApiKey

_PREFIX = "sam_"
"""Lets scanners of repositories and logs know a key of ours."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("key", help="make an API key and the configuration's entry")
    parser.add_argument("name", help="who it is for, as the audit log is to say")
    parser.add_argument(
        "--requests-per-minute", type=positive, help="of one ingress replica; default: no bound"
    )
    parser.add_argument("--burst", type=positive, help="requests at once after a quiet time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a new key; only its hash is for keeping."""
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
    print(f"The key, for its owner; it is shown this once and kept nowhere:\n\n{key}\n")
    print(f"For the configuration, under args:\n\n{entries}", end="")
    return 0
