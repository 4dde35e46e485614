"""The registered model families.  A new one is a folder in `serve_app.engines` and a line here."""

from __future__ import annotations

from serve_app.core.settings import TextSettings
from serve_app.engines.efficientdet.family import EFFICIENTDET
from serve_app.engines.family import Family, TextScoring
from serve_app.engines.open_clip.family import OPEN_CLIP
from serve_app.engines.sam.family import SAM
from serve_app.engines.sam2.family import SAM2_ONNX
from serve_app.engines.sentence_transformer.family import SENTENCE_TRANSFORMER

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (SAM, SAM2_ONNX, EFFICIENTDET, OPEN_CLIP, SENTENCE_TRANSFORMER)
}
"""Families by name.  ``text.engine: auto`` prefers earlier ones."""


def get_family(name: str) -> Family:
    """The family of that name; ValueError, with the known ones, if there is none."""
    try:
        return FAMILIES[name]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"no model family {name[:64]!r}; known: {known}") from None


def text_families(settings: TextSettings) -> list[TextScoring]:
    """The families that may score texts, the preferred one first; the last one is always usable.

    ``auto`` uses another than the last only if its weights are on this machine.
    """
    known = [family.text for family in FAMILIES.values() if family.text is not None]
    return [text for text in known if settings.engine in ("auto", text.engine)]


def text_model(settings: TextSettings) -> str | None:
    """Registry name of the weights that text scoring needs; None: they are not in the registry."""
    return text_families(settings)[-1].model(settings)
