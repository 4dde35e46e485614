"""Finds an OpenCLIP model's weights: a local safetensors file, or a tag's on the hub.

Only safetensors files are loaded: they hold tensors and nothing that could run.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.settings import OpenClipSettings

logger = logging.getLogger(__name__)

HUB_TIMEOUT_S = 4.0
"""Timeout of the check whether the hub has a file; after it the hub counts as unreachable."""

_HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


def find_weights(settings: OpenClipSettings, tag: dict[str, Any], offline: bool) -> Path:
    """The verified safetensors file of ``settings.pretrained``.

    Args:
        settings: the architecture and its weights.
        tag: open_clip's entry of the pretrained tag; empty if there is none.
        offline: look in the hub's local cache only.

    Raises:
        WeightsUnavailable: not found, hub unreachable, no safetensors file, or another hash.
    """
    path = _from_hub(tag, offline) if tag else _local(settings.pretrained)
    if settings.sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != settings.sha256:
            raise WeightsUnavailable("the OpenCLIP weights do not have the configured SHA-256")
    return path


def _local(pretrained: str) -> Path:
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise WeightsUnavailable(
            "the OpenCLIP weights are neither a tag of that architecture nor a local file"
        )
    if path.suffix != ".safetensors":
        raise WeightsUnavailable("local OpenCLIP weights must be a .safetensors file")
    return path


def _from_hub(tag: dict[str, Any], offline: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    location = str(tag.get("hf_hub", "")).rsplit("/", 1)
    repository, named = location[0], location[-1]
    if not repository:
        raise WeightsUnavailable("this OpenCLIP tag has no safetensors weights on the hub")
    names = [f"{Path(named).stem}.safetensors", *_HUB_NAMES] if named else [*_HUB_NAMES]
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    if offline or constants.HF_HUB_OFFLINE:
        raise WeightsUnavailable("the OpenCLIP weights are not on this machine, which is offline")
    name = _probe(repository, names)
    try:
        return Path(hf_hub_download(repository, name))
    # The client's exception types differ by its version and by the cause.
    except Exception as exc:
        raise WeightsUnavailable("the OpenCLIP weights could not be fetched from the hub") from exc


def _probe(repository: str, names: Sequence[str]) -> str:
    """The first of ``names`` that the hub has; each is requested once.

    The hub's own download retries for half a minute where there is no network, and a resolver
    may hang without end; this waits `HUB_TIMEOUT_S` at most.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    found: Future[str] = Future()

    def probe() -> None:
        try:
            for name in names:
                with suppress(EntryNotFoundError):
                    get_hf_file_metadata(hf_hub_url(repository, name), timeout=HUB_TIMEOUT_S)
                    found.set_result(name)
                    return
            raise WeightsUnavailable("this OpenCLIP tag has no safetensors weights on the hub")
        except Exception as exc:
            found.set_exception(exc)

    threading.Thread(target=probe, name="open-clip-hub-probe", daemon=True).start()
    try:
        return found.result(HUB_TIMEOUT_S)
    except WeightsUnavailable:
        raise
    except Exception as exc:
        logger.debug("the hub is out of reach", exc_info=True)
        raise WeightsUnavailable("the hub of the OpenCLIP weights is out of reach") from exc
