"""The ``open_clip`` engine: compares crops of the candidates with texts by an OpenCLIP model.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", 2021, for templates and the softmax over texts; the ``open-clip-torch`` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.inference import Candidate, ScorerInfo, TextScores
from serve_app.core.rle import decode_rle
from serve_app.core.settings import Compute, OpenClipSettings
from serve_app.core.types import Float32Array, RgbArray, UnknownText
from serve_app.engines.devices import apply_compute, torch_dtype, use_threads
from serve_app.engines.open_clip.weights import find_weights
from serve_app.engines.phrases import unreadable
from serve_app.engines.text_embeddings import EmbeddingLru

CONTEXT = 0.1
"""Margin on each side of a candidate's box, as a share of its longer side."""

_PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_EMPTY_WORDS = frozenset({"a", "an", "the"})


class OpenClipScorer:
    """Scores the appearance of candidates against texts.

    A candidate's crop (`masked_crop`) and each text, as the mean over the templates, are
    embedded; the score is the text's share in the softmax, at the model's own temperature, over
    the text and the negatives.  It does not depend on the other texts of a request.  At the default
    threshold of 0.5 the text must outweigh all negatives together.  A negative that contains all
    words of the text is ignored.

    Args:
        settings: the model, templates, negatives and threshold.
        compute: device, precision and threads.
        offline: use only the local cache of the hub.

    Raises:
        WeightsUnavailable: the architecture is unknown, or weights are missing, not
            safetensors, have another hash than configured, or do not fit the architecture.
    """

    def __init__(self, settings: OpenClipSettings, compute: Compute, offline: bool = False) -> None:
        self._settings = settings
        self.device = compute.device
        self._device = torch.device(compute.device)
        self._threads = compute.threads
        self._dtype = torch_dtype(compute.dtype)
        apply_compute(compute)
        self._model, self._tokenizer = _load(settings, compute, offline)
        # Its own tokenizer is of the models trained on English; others bring one of their own.
        self._english = isinstance(self._tokenizer, open_clip.SimpleTokenizer)
        shown: dict[str, Any] = open_clip.get_model_preprocess_cfg(self._model)
        size = shown["size"]
        self.crop_side = int(size[0] if isinstance(size, (tuple, list)) else size)
        mean, std = ([float(v) for v in shown[key]] for key in ("mean", "std"))
        self._mean = torch.tensor(mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self._device).view(1, 3, 1, 1)
        self.fill = mean_colour(mean)
        self._embed_texts = EmbeddingLru(self._encode_texts)
        self._negatives = tuple(dict.fromkeys(settings.negatives))
        self.info = ScorerInfo(
            engine="open_clip",
            model=f"{settings.architecture}/{Path(settings.pretrained).stem}",
            needs_masks=True,
            proposals=settings.proposals,
            threshold=settings.threshold,
        )

    def unknown(self, texts: Sequence[str]) -> tuple[UnknownText | None, ...]:
        """See `TextScorer.unknown`: the vocabulary is open, but negation is not understood."""
        return tuple(unreadable(text, english=self._english) for text in texts)

    def score(
        self, pixels: RgbArray, candidates: Sequence[Candidate], texts: Sequence[str]
    ) -> TextScores:
        """See `TextScoringEngine.score`; candidates have masks where they are known."""
        use_threads(self._threads)
        scores = np.zeros((len(texts), len(candidates)), np.float32)
        if candidates and texts:
            of_crops = self._encode_candidates(pixels, candidates)
            of_negatives = self._embed_texts(self._negatives) if self._negatives else None
            scale = float(self._model.logit_scale.detach().exp())
            for i, row in enumerate(self._embed_texts([" ".join(t.split()) for t in texts])):
                logits = scale * (of_crops @ row)
                against = np.full(len(candidates), -np.inf)
                if of_negatives is not None:
                    words = _words(texts[i])
                    counted = [not words <= _words(negative) for negative in self._negatives]
                    others = scale * (of_crops @ of_negatives[counted].T).astype(np.float64)
                    against = np.logaddexp.reduce(others, axis=1)
                scores[i] = 1 / (1 + np.exp(np.clip(against - logits, -60, 60)))
        return TextScores(
            scores=scores, engine=self.info.engine, threshold=self._settings.threshold
        )

    @torch.inference_mode()
    def _encode_candidates(self, pixels: RgbArray, candidates: Sequence[Candidate]) -> Float32Array:
        step = self._settings.batch_size
        parts = []
        for start in range(0, len(candidates), step):
            some = candidates[start : start + step]
            crops = [masked_crop(pixels, c, self.crop_side, self.fill) for c in some]
            batch = torch.from_numpy(np.stack(crops)).to(self._device).permute(0, 3, 1, 2).float()
            batch = ((batch / 255 - self._mean) / self._std).to(self._dtype)
            parts.append(_array(self._model.encode_image(batch, normalize=True)))
        return np.concatenate(parts)

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> Float32Array:
        templates = self._settings.templates
        filled = [template.replace("{}", text) for text in texts for template in templates]
        rows = []
        step = self._settings.batch_size
        for start in range(0, len(filled), step):
            tokens = self._tokenizer(filled[start : start + step]).to(self._device)
            rows.append(_array(self._model.encode_text(tokens, normalize=True)))
        means = np.concatenate(rows).reshape(len(texts), len(templates), -1).mean(axis=1)
        unit: Float32Array = means / np.linalg.norm(means, axis=1, keepdims=True)
        return unit


def _load(settings: OpenClipSettings, compute: Compute, offline: bool) -> tuple[Any, Any]:
    architecture = settings.architecture
    if settings.model_config_path is not None:
        config = Path(settings.model_config_path).expanduser()
        if not config.is_file() or config.stem != architecture:
            raise WeightsUnavailable(
                "the OpenCLIP architecture file must exist and be named like the architecture"
            )
        open_clip.add_model_config(config)
    if open_clip.get_model_config(architecture) is None:
        raise WeightsUnavailable("open_clip knows no such architecture")
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, settings.pretrained)
    weights = find_weights(settings, tag, offline)
    preprocessing = {key: tag[key] for key in ("mean", "std") if key in tag}
    try:
        model = open_clip.create_model(
            architecture,
            pretrained=str(weights),
            precision=_PRECISION[compute.dtype],
            device=compute.device,
            force_quick_gelu=bool(tag.get("quick_gelu", False)),
            force_preprocess_cfg=preprocessing,
            pretrained_image=False,
            pretrained_text=False,
            weights_only=True,
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    # The libraries raise exceptions of many types if a file does not fit its architecture.
    except Exception as exc:
        raise WeightsUnavailable("the OpenCLIP weights do not load into that architecture") from exc
    return model.eval(), tokenizer


def _array(tensor: Tensor) -> Float32Array:
    return np.asarray(tensor.float().cpu().numpy(), np.float32)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().split()) - _EMPTY_WORDS


def mean_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """The RGB colour that preprocessing with this ``mean`` (0-1) maps to zero."""
    r, g, b = (round(255 * v) for v in mean)
    return r, g, b


def masked_crop(
    pixels: RgbArray, candidate: Candidate, side: int, fill: tuple[int, int, int]
) -> RgbArray:
    """Crop a candidate on a uniform background: a ``(side, side, 3) uint8`` RGB square.

    The square is centred on the candidate's box and wider than its longer side by twice
    `CONTEXT`, so the aspect ratio is preserved.  Pixels outside the mask or the image
    are ``fill``; without a mask the surroundings stay visible.

    Args:
        pixels: ``(H, W, 3) uint8``, the upright image.
        candidate: its box, and its mask at the image's full size, if known.
        side: of the result in pixels.
        fill: RGB, best the model's `mean_colour`.
    """
    x, y, w, h = candidate.bbox
    extent = max(1, round(max(w, h) * (1 + 2 * CONTEXT)))
    left, top = round(x + w / 2 - extent / 2), round(y + h / 2 - extent / 2)
    x0, y0 = max(0, left), max(0, top)
    x1 = min(pixels.shape[1], left + extent)
    y1 = min(pixels.shape[0], top + extent)
    square = np.empty((extent, extent, 3), np.uint8)
    square[:] = fill
    if x0 < x1 and y0 < y1:
        part = pixels[y0:y1, x0:x1]
        if candidate.mask is not None:
            inside = decode_rle(candidate.mask)[y0:y1, x0:x1, None]
            part = np.where(inside, part, np.array(fill, np.uint8))
        square[y0 - top : y1 - top, x0 - left : x1 - left] = part
    resized = Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.uint8)
