"""The ``open_clip`` engine with the project's tiny model, and the choice between engines."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.inference import Candidate, ScorerInfo, TextScores
from serve_app.core.rle import encode_rle
from serve_app.core.settings import Compute, OpenClipSettings, TextSettings
from serve_app.core.types import ProposalSource
from serve_app.engines.family import TextScoring
from serve_app.engines.open_clip import weights as open_clip_weights
from serve_app.engines.open_clip.scorer import OpenClipScorer, masked_crop, mean_colour
from serve_app.engines.open_clip.weights import find_weights
from serve_app.models import families
from serve_app.models.factory import ModelSource
from serve_tools.synthetic.scenes import COLOURS, SHAPES, all_captions, draw_scene
from serve_tools.workshop.tiny_clip import FIRST_SCENE
from tests.tiny_clip import TINY_CLIP, captions, scene_candidates, tiny_clip_settings

SETTINGS = tiny_clip_settings()
HUB_TAG = {"hf_hub": "somebody/a-model/"}


@pytest.fixture(scope="module")
def scorer() -> OpenClipScorer:
    return OpenClipScorer(SETTINGS, Compute())


# -- scenes and crops ------------------------------------------------------------------------


def test_scenes_are_reproducible_with_exact_disjoint_masks() -> None:
    scene, again = draw_scene(5), draw_scene(5)
    np.testing.assert_array_equal(scene.pixels, again.pixels)
    assert captions(scene) == captions(again)
    assert captions(scene) != captions(draw_scene(6))
    assert len(set(captions(scene))) == len(scene.objects) == 8
    assert np.sum([o.mask for o in scene.objects], axis=0).max() == 1
    for item in scene.objects:
        colour = scene.pixels[item.mask].mean(axis=0)
        assert np.abs(colour - COLOURS[item.colour]).max() < 40
        assert item.shape in SHAPES
        assert item.mask.sum() > 100


def test_a_crop_shows_the_masked_object_alone() -> None:
    pixels = np.full((60, 80, 3), (10, 200, 30), np.uint8)
    pixels[20:40, 30:70] = (250, 0, 0)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:70] = True
    candidate = Candidate(bbox=(30, 20, 40, 20), mask=encode_rle(mask))
    crop = masked_crop(pixels, candidate, 48, fill=(122, 116, 104))
    assert crop.shape == (48, 48, 3)
    # 40 x 20 pixels in a square of 48: the aspect is kept, with a margin of 4 at the sides.
    np.testing.assert_array_equal(crop[24, 24], (250, 0, 0))
    for row, column in ((2, 24), (45, 24), (24, 1), (24, 46)):
        np.testing.assert_array_equal(crop[row, column], (122, 116, 104))
    bare = masked_crop(pixels, Candidate(bbox=(30, 20, 40, 20)), 48, fill=(122, 116, 104))
    np.testing.assert_array_equal(bare[24, 24], (250, 0, 0))
    np.testing.assert_array_equal(bare[2, 24], (10, 200, 30))


def test_a_crop_over_the_border_is_filled() -> None:
    pixels = np.full((30, 30, 3), 200, np.uint8)
    for bbox in ((-10, -10, 20, 20), (20, 20, 20, 20), (100, 100, 5, 5), (0, 0, 0, 0)):
        crop = masked_crop(pixels, Candidate(bbox=bbox), 16, fill=(1, 2, 3))
        assert crop.shape == (16, 16, 3)
    corner = masked_crop(pixels, Candidate(bbox=(-10, -10, 20, 20)), 24, fill=(1, 2, 3))
    np.testing.assert_array_equal(corner[1, 1], (1, 2, 3))
    np.testing.assert_array_equal(corner[-4, -4], (200, 200, 200))


# -- the scores ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_right_object_of_100_new_scenes_and_absent_ones_rejected(
    scorer: OpenClipScorer,
) -> None:
    rng = np.random.default_rng(0)
    right = rejected = 0
    for seed in range(100):
        assert seed < FIRST_SCENE  # unseen in training
        scene = draw_scene(seed, objects=6 + seed % 4)
        target = int(rng.integers(len(scene.objects)))
        shown = scene.objects[target]
        # The hardest absent ones share a colour and a shape with what is there.
        absent = next(
            name
            for name in rng.permutation(all_captions()).tolist()
            if name not in captions(scene)
            and any(name.endswith(o.shape) for o in scene.objects)
            and any(f" {o.colour} " in name for o in scene.objects)
        )
        result = scorer.score(scene.pixels, scene_candidates(scene), [shown.caption, absent])
        present, missing = result.scores
        right += int(present.argmax()) == target and present.max() >= result.threshold
        rejected += missing.max() < result.threshold
    print(f"\nright object in {right} of 100 scenes; absent one rejected in {rejected} of 100")
    assert right >= 90
    assert rejected >= 90


def test_wordings_and_unknown_words(scorer: OpenClipScorer) -> None:
    scene = draw_scene(3)
    names = [n.split(" ", 1)[1] for n in captions(scene)]
    candidates = scene_candidates(scene)
    bare = scorer.score(scene.pixels, candidates, names)
    assert bare.scores.argmax(axis=1).tolist() == list(range(len(names)))
    assert (bare.scores.max(axis=1) > 0.5).all()
    strange = scorer.score(scene.pixels, candidates, ["a giraffe", "submarine", "a pink circle"])
    assert strange.scores.max() < 0.5


def test_negation_and_no_words_are_unknown_and_the_vocabulary_is_open(
    scorer: OpenClipScorer,
) -> None:
    texts = ["no cat", "everything except the cat", "without dogs", "?", "猫"]
    reasons = [why and why.reason for why in scorer.unknown(texts)]
    assert reasons == ["negation"] * 3 + ["no_words", "language"]
    texts = ["cat ear", "ear of a cat", "helmet", "stainless steel", "cat food", "a red circle"]
    texts += ["hairless cat", "no parking sign", "non-stick pan", "hands free headset", "123", "7"]
    assert scorer.unknown(texts) == (None,) * len(texts)
    assert scorer.info.vocabulary is None


def test_a_kind_of_the_text_does_not_speak_against_it(scorer: OpenClipScorer) -> None:
    scene = draw_scene(3)
    assert "a red circle" in captions(scene)
    result = scorer.score(scene.pixels, scene_candidates(scene), ["a circle"])
    assert int(result.scores[0].argmax()) == captions(scene).index("a red circle")
    assert result.scores.max() >= 0.5


def test_negatives_are_what_rejects() -> None:
    scene = draw_scene(3)
    absent = [name for name in all_captions() if name not in captions(scene)]
    few = SETTINGS.model_copy(update={"negatives": ("background",)})
    loose = OpenClipScorer(few, Compute()).score(scene.pixels, scene_candidates(scene), absent)
    assert (loose.scores.max(axis=1) >= 0.5).mean() > 0.5
    none = SETTINGS.model_copy(update={"negatives": ()})
    always = OpenClipScorer(none, Compute()).score(scene.pixels, scene_candidates(scene), absent)
    np.testing.assert_array_equal(always.scores, np.ones_like(always.scores))


def test_a_score_depends_on_its_own_text_and_crop_alone(scorer: OpenClipScorer) -> None:
    scene = draw_scene(9)
    candidates, texts = scene_candidates(scene), [*captions(scene)[:3], "a white ring"]
    together = scorer.score(scene.pixels, candidates, texts).scores
    single = OpenClipScorer(SETTINGS.model_copy(update={"batch_size": 1}), Compute())
    for i, text in enumerate(texts):
        for j, candidate in enumerate(candidates):
            alone = single.score(scene.pixels, [candidate], [text]).scores[0, 0]
            assert alone == pytest.approx(together[i, j], abs=1e-4)


def test_texts_are_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    templates = ("{}", "a photo of {}")
    own = OpenClipScorer(SETTINGS.model_copy(update={"templates": templates}), Compute())
    passes: list[int] = []
    encode = own._model.encode_text

    def counted(tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        passes.append(len(tokens))
        return encode(tokens, **options)

    monkeypatch.setattr(own._model, "encode_text", counted)
    scene = draw_scene(1)
    candidates = scene_candidates(scene)
    first = own.score(scene.pixels, candidates, ["a red circle", "a blue star"]).scores
    # Both texts are among the negatives.
    assert sum(passes) == len(templates) * len(SETTINGS.negatives)
    passes.clear()
    again = own.score(scene.pixels, candidates, ["a blue star", "a red circle"]).scores
    assert passes == []
    np.testing.assert_array_equal(first[::-1], again)


def test_shapes_of_answers(scorer: OpenClipScorer) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    assert scorer.score(pixels, [], ["a", "b"]).scores.shape == (2, 0)
    result = scorer.score(pixels, [Candidate(bbox=(0, 0, 5, 5))] * 70, ["word " * 50])
    assert result.scores.shape == (1, 70)
    assert result.scores.dtype == np.float32
    assert np.isfinite(result.scores).all()
    assert (result.engine, result.threshold) == ("open_clip", 0.5)
    assert scorer.info.needs_masks
    assert scorer.info.proposals is ProposalSource.GRID
    assert str(TINY_CLIP.parent) not in scorer.info.model


def test_braces_in_a_text_are_only_text(scorer: OpenClipScorer) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    texts = ["{0}", "{text.__class__}", "%s {} {{"]
    assert scorer.score(pixels, [Candidate(bbox=(0, 0, 9, 9))], texts).scores.shape == (3, 1)


def test_bfloat16_chooses_the_same() -> None:
    scene = draw_scene(4)
    half = OpenClipScorer(SETTINGS, Compute(dtype="bfloat16"))
    scores = half.score(scene.pixels, scene_candidates(scene), captions(scene)).scores
    assert scores.argmax(axis=1).tolist() == list(range(len(scene.objects)))


# -- the weights -----------------------------------------------------------------------------


def changed(**values: Any) -> OpenClipSettings:
    return SETTINGS.model_copy(update=values)


def test_the_configured_hash_is_checked(tmp_path: Path) -> None:
    digest = hashlib.sha256(Path(SETTINGS.pretrained).read_bytes()).hexdigest()
    assert OpenClipScorer(changed(sha256=digest), Compute()).info.engine == "open_clip"
    with pytest.raises(WeightsUnavailable, match="SHA-256"):
        OpenClipScorer(changed(sha256="0" * 64), Compute())


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(torch, "load", refuse)
    weights = load_file(SETTINGS.pretrained)
    for name in ("weights.pt", "weights.bin", "weights.pth"):
        torch.save(weights, tmp_path / name)
        with pytest.raises(WeightsUnavailable, match="safetensors"):
            OpenClipScorer(changed(pretrained=str(tmp_path / name)), Compute())
    # Nor is one under another name.
    disguised = tmp_path / "weights.safetensors"
    torch.save(weights, disguised)
    with pytest.raises(WeightsUnavailable, match="do not load"):
        OpenClipScorer(changed(pretrained=str(disguised)), Compute())


def test_weights_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    weights = load_file(SETTINGS.pretrained)
    del weights["visual.proj"]
    save_file(weights, tmp_path / "part.safetensors")
    cases = {
        "do not load": changed(pretrained=str(tmp_path / "part.safetensors")),
        "neither a tag": changed(pretrained=str(tmp_path / "none.safetensors")),
        "named like": changed(architecture="other"),
        "must exist": changed(model_config_path=str(tmp_path / "tiny_clip.json")),
        "no such architecture": changed(architecture="ViT-Q-99", model_config_path=None),
    }
    for message, settings in cases.items():
        with pytest.raises(WeightsUnavailable, match=message) as caught:
            OpenClipScorer(settings, Compute())
        assert str(tmp_path) not in caught.value.message


def test_the_hubs_local_cache_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def cached(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return SETTINGS.pretrained if name.startswith("open_clip_pytorch") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    settings = OpenClipSettings(pretrained="a_tag")
    assert find_weights(settings, HUB_TAG, offline=True) == Path(SETTINGS.pretrained)
    assert {repository for repository, _ in asked} == {"somebody/a-model"}
    assert all(name.endswith(".safetensors") for _, name in asked)


def test_the_hub_is_asked_once_and_then_fetched_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    def metadata(url: str, **options: Any) -> None:
        asked.append(url.rsplit("/", 1)[-1])
        if "pytorch" not in url:
            raise EntryNotFoundError("none")

    def download(repository: str, name: str) -> str:
        assert (repository, name) == ("somebody/a-model", "open_clip_pytorch_model.safetensors")
        return SETTINGS.pretrained

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    settings = OpenClipSettings(pretrained="a_tag")
    assert find_weights(settings, HUB_TAG, offline=False) == Path(SETTINGS.pretrained)
    assert asked == ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"]


def test_a_hub_that_hangs_or_fails_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    released = threading.Event()
    monkeypatch.setattr(open_clip_weights, "HUB_TIMEOUT_S", 0.05)
    settings = OpenClipSettings(pretrained="a_tag")
    try:
        ended: list[bool] = []
        monkeypatch.setattr(
            huggingface_hub,
            "get_hf_file_metadata",
            lambda *a, **k: ended.append(released.wait(600)),
        )
        with pytest.raises(WeightsUnavailable, match="out of reach"):
            find_weights(settings, HUB_TAG, offline=False)
        assert not ended, "it was not waited for"
    finally:
        released.set()

    def fail(*args: object, **options: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(open_clip_weights, "HUB_TIMEOUT_S", 30)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    with pytest.raises(WeightsUnavailable, match="out of reach"):
        find_weights(settings, HUB_TAG, offline=False)
    with pytest.raises(WeightsUnavailable, match="offline"):
        find_weights(settings, HUB_TAG, offline=True)
    with pytest.raises(WeightsUnavailable, match="no safetensors"):
        find_weights(settings, {"url": "https://example.org/weights.pt"}, offline=False)


# -- the choice of an engine -----------------------------------------------------------------


class OtherEngine:
    """A stand-in for ``labels``."""

    def __init__(self) -> None:
        self.info = ScorerInfo(
            engine="labels",
            model="m",
            needs_masks=False,
            proposals=ProposalSource.DETECTOR,
            threshold=0.5,
        )

    def unknown(self, texts: Any) -> Any:
        raise AssertionError("not asked")

    def score(self, pixels: Any, candidates: Any, texts: Any) -> TextScores:
        raise AssertionError("not asked")


@pytest.mark.parametrize("choice", ["auto", "open_clip"])
def test_open_clip_runs_without_sentence_transformers(
    choice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # its import would fail
    settings = TextSettings.model_validate({"engine": choice, "open_clip": SETTINGS})
    with caplog.at_level(logging.INFO):
        engine = ModelSource(offline=True).load_text(settings)
    assert engine.info.engine == "open_clip"
    assert engine.info.reason == {"auto": "auto: its weights load"}.get(choice, "configured")
    assert any("open_clip" in r.message and "tiny_clip" in r.message for r in caplog.records)


def test_auto_falls_back_to_labels_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    labels = families.FAMILIES["sentence_transformer"]
    text = TextScoring(engine="labels", model=lambda _: None, load=lambda *_: OtherEngine())
    monkeypatch.setitem(families.FAMILIES, labels.name, replace(labels, text=text))
    settings = TextSettings(open_clip=changed(sha256="0" * 64))
    with caplog.at_level(logging.INFO):
        engine = ModelSource(offline=True).load_text(settings)
    assert engine.info.engine == "labels"
    assert "SHA-256" in engine.info.reason
    assert any("SHA-256" in r.message for r in caplog.records)


def test_open_clip_alone_does_not_fall_back() -> None:
    settings = TextSettings(engine="open_clip", open_clip=changed(sha256="0" * 64))
    with pytest.raises(WeightsUnavailable):
        ModelSource(offline=True).load_text(settings)


def test_the_engines_libraries_are_imported_late() -> None:
    code = (
        "import sys, serve_app.models.factory\n"
        "print([m for m in ('torch', 'open_clip', 'sentence_transformers', 'huggingface_hub')"
        " if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_shipped_model_is_small_and_holds_unused_words_as_zeros() -> None:
    path = Path(SETTINGS.pretrained)
    assert path.stat().st_size < 4 * 2**20
    words = load_file(path)["token_embedding.weight"].float()
    assert (words.abs().sum(dim=1) > 0).sum() < 100


def test_the_fill_is_what_the_model_sees_as_zero(scorer: OpenClipScorer) -> None:
    assert scorer.fill == mean_colour((0.48145466, 0.4578275, 0.40821073)) == (123, 117, 104)
