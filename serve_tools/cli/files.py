"""Files and choices that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serve_app.cli import CommandError

M = TypeVar("M", bound=BaseModel)


def natural(text: str) -> int:
    """An integer of at least 0, for `argparse`."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def make_folder(path: Path) -> Path:
    """Create a folder if it does not exist, and return it.

    Raises:
        CommandError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CommandError(f"{path} cannot be created") from exc
    return path


def read_json(path: Path, model: type[M], what: str) -> M:
    """A file of a schema.

    Args:
        what: the kind of file, for the message.

    Raises:
        CommandError: it cannot be read or does not match the schema.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise CommandError(f"{path} cannot be read") from exc
    except ValidationError as exc:
        raise CommandError(f"{path} is no {what}") from exc


def write_json(path: Path, content: Any) -> None:
    """Write a pydantic model, or anything that orjson serialises, with indentation.

    Raises:
        CommandError: it cannot be written.
    """
    import orjson

    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json")
    make_folder(path.parent)
    try:
        path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    except OSError as exc:
        raise CommandError(f"{path} cannot be written") from exc


def check_variants(wanted: Iterable[str], known: Mapping[str, object]) -> None:
    """Check that a configuration has all variants.

    Raises:
        CommandError: it does not.
    """
    if unknown := set(wanted) - set(known):
        raise CommandError(
            f"the config has no variant {', '.join(sorted(unknown))}; it has {', '.join(known)}"
        )
