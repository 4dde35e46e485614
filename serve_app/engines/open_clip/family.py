"""The family ``open_clip``: crops of candidate regions are compared with texts."""

from __future__ import annotations

from serve_app.core.ports import TextScoringEngine
from serve_app.core.settings import TextSettings
from serve_app.engines.family import Family, TextScoring, Weights


def _load(weights: Weights | None, settings: TextSettings, offline: bool) -> TextScoringEngine:
    from serve_app.engines.open_clip.scorer import OpenClipScorer

    chosen = settings.open_clip
    if weights is not None:
        verified = {"pretrained": str(weights.paths["weights"]), "sha256": None}
        chosen = chosen.model_copy(update={"architecture": weights.architecture, **verified})
    return OpenClipScorer(chosen, settings.compute, offline)


OPEN_CLIP = Family(
    name="open_clip",
    file_keys=frozenset({"weights"}),
    needs_architecture=True,
    text=TextScoring(
        engine="open_clip",
        model=lambda settings: None if settings.open_clip.pretrained else settings.open_clip.model,
        load=_load,
    ),
)
