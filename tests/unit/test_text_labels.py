"""The ``labels`` engine: a detector's labels against texts, by real sentence embeddings."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from serve_app.core.errors import WeightsUnavailable
from serve_app.core.inference import Candidate
from serve_app.core.settings import LabelsSettings, TextSettings
from serve_app.core.types import ProposalSource, RgbArray
from serve_app.engines.efficientdet.detector import EfficientDet
from serve_app.engines.phrases import normalize
from serve_app.engines.sentence_transformer import scorer as labels_module
from serve_app.engines.sentence_transformer.scorer import LabelsScorer, objectness_factor
from serve_app.engines.sentence_transformer.vocabulary import (
    COCO_GROUPS,
    COCO_NAMES,
    OTHER_THINGS,
    names_of,
)
from serve_app.engines.text_embeddings import EmbeddingLru
from serve_app.models.factory import ModelSource
from serve_tools.workshop.calibrate_labels import fit, measure, quality
from serve_tools.workshop.label_words import MATCHES, UNRELATED

WeightPaths = Callable[[str], dict[str, Path]]
PIXELS = np.zeros((8, 8, 3), np.uint8)
PHOTOS: dict[str, Callable[[], RgbArray]] = {
    "cat": data.chelsea,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "cup": data.coffee,
    "person": data.astronaut,
}


@pytest.fixture(scope="module")
def sentence_model(weight_paths: WeightPaths) -> Path:
    return weight_paths("minilm_l6_v2")["config"].parent


@pytest.fixture(scope="module")
def scorer(sentence_model: Path) -> LabelsScorer:
    return LabelsScorer(sentence_model, LabelsSettings(), threads=1)


@pytest.fixture(scope="module")
def found(weight_paths: WeightPaths) -> dict[str, list[Candidate]]:
    """What the real detector finds on each photo."""
    detector = EfficientDet(weight_paths("efficientdet_lite2")["model"], threads=1)
    return {
        name: [
            Candidate(bbox=(0, 0, 8, 8), label=d.label, objectness=d.score)
            for d in detector.detect(photo())
        ]
        for name, photo in PHOTOS.items()
    }


def sure(*names: str | None) -> list[Candidate]:
    return [Candidate(bbox=(0, 0, 8, 8), label=name, objectness=0.95) for name in names]


@pytest.mark.parametrize(
    ("text", "thing"),
    [
        ("cat", "cat"),
        ("  A  Cat! ", "cat"),
        ("the red car", "red car"),
        ("a photo of a dog", "dog"),
        ("Find me all the people", "people"),
        ("an apple", "apple"),
        ("theatre", "theatre"),
        ("all", "all"),
        ("?", ""),
    ],
)
def test_phrases_are_reduced_to_the_thing(text: str, thing: str) -> None:
    assert normalize(text) == thing


def test_no_text_of_the_calibration_is_in_the_vocabulary() -> None:
    known = {*OTHER_THINGS, *(name for label in COCO_NAMES for name in names_of(label))}
    texts = {*MATCHES, *UNRELATED}
    assert not known & {text.removeprefix("an ").removeprefix("a ") for text in texts}


def test_the_vocabulary_is_of_the_80_labels() -> None:
    assert len(COCO_NAMES) == 80
    assert {m for members in COCO_GROUPS.values() for m in members} <= COCO_NAMES.keys()
    assert {m for members in MATCHES.values() for m in members} <= COCO_NAMES.keys()
    assert not set(OTHER_THINGS) & {name for label in COCO_NAMES for name in names_of(label)}
    assert names_of("scratch on steel") == ("scratch on steel",)


def test_the_factor_rises_with_the_detectors_score() -> None:
    factors = [objectness_factor(v) for v in (0.0, 0.2, 0.3, 0.5, 0.7, 1.0)]
    assert factors == sorted(factors)
    assert factors[0] < 0.05
    assert factors[2] == pytest.approx(0.5)
    assert factors[4] > 0.95


def test_text_embeddings_are_computed_once_and_bounded() -> None:
    calls: list[list[str]] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return np.array([[len(t), 1] for t in texts], np.float32)

    lru = EmbeddingLru(embed, capacity=2)
    np.testing.assert_array_equal(lru(["a", "bb", "a"]), [[1, 1], [2, 1], [1, 1]])
    lru(["bb", "a"])
    assert calls == [["a", "bb"]]
    lru(["ccc"])  # "bb" is the least recently used
    lru(["a", "ccc"])
    assert calls == [["a", "bb"], ["ccc"]]
    lru(["bb"])
    assert calls[-1] == ["bb"]
    assert len(lru._known) == 2
    assert lru(["v", "w", "x", "y", "z"]).shape == (5, 2)
    assert len(lru._known) == 2


@pytest.mark.weights
@pytest.mark.parametrize(
    ("photo", "text"),
    [
        ("cat", "cat"),
        ("cat", "kitten"),
        ("cat", "an animal"),
        ("motorcycle", "motorcycle"),
        ("motorcycle", "motorbike"),
        ("cup", "cup"),
        ("cup", "mug"),
        ("person", "person"),
        ("person", "woman"),
    ],
)
def test_the_right_object_of_a_real_photo_is_chosen(
    scorer: LabelsScorer, found: dict[str, list[Candidate]], photo: str, text: str
) -> None:
    result = scorer.score(PIXELS, found[photo], [text])
    assert found[photo][int(result.scores[0].argmax())].label == photo
    assert result.scores[0].max() >= result.threshold


@pytest.mark.weights
@pytest.mark.parametrize("photo", PHOTOS)
def test_what_is_not_on_a_real_photo_is_not_present(
    scorer: LabelsScorer, found: dict[str, list[Candidate]], photo: str
) -> None:
    absent = ["giraffe", "a bulldog", "pizza", "black bears", "a horse on the beach"]
    absent += [name for name in PHOTOS if name != photo]
    result = scorer.score(PIXELS, found[photo], absent)
    print(photo, dict(zip(absent, result.scores.max(axis=1).round(3).tolist(), strict=True)))
    assert (result.scores.max(axis=1) < result.threshold / 2).all()
    assert scorer.unknown(absent) == (None,) * len(absent)


@pytest.mark.weights
@pytest.mark.parametrize("photo", PHOTOS)
def test_what_only_holds_a_word_of_a_real_photo_is_unknown(
    scorer: LabelsScorer, found: dict[str, list[Candidate]], photo: str
) -> None:
    texts = [f"no {photo}", f"everything except the {photo}", f"{photo} ear", f"ear of the {photo}"]
    texts += [
        f"the {photo}'s shadow",
        f"{photo} food",
        "helmet",
        "Katze",
        "猫",
        f"behind the {photo}",
    ]
    result = scorer.score(PIXELS, found[photo], texts)
    assert not result.scores.any()
    reasons = [why and why.reason for why in scorer.unknown(texts)]
    assert reasons[:2] == ["negation"] * 2
    assert reasons[8:] == ["language", "no_thing"]
    assert set(reasons[2:8]) == {"vocabulary"}


@pytest.mark.weights
def test_a_score_needs_a_label_and_a_detection(scorer: LabelsScorer) -> None:
    candidates = [
        *sure("cat", None),
        Candidate(bbox=(0, 0, 8, 8), label="cat", objectness=0.2),
        Candidate(bbox=(0, 0, 8, 8), label="cat", objectness=0.5),
    ]
    scores = scorer.score(PIXELS, candidates, ["cat"]).scores[0]
    assert scores[1] == 0
    assert scores[2] < 0.5 < scores[3] < scores[0]


@pytest.mark.weights
def test_near_labels_are_told_apart(scorer: LabelsScorer) -> None:
    candidates = sure("cat", "dog", "car", "truck", "bear", "teddy bear", "orange", "apple")
    texts = ["cat", "puppy", "a red car", "lorry", "grizzly bear", "teddy bear", "an orange"]
    scores = scorer.score(PIXELS, candidates, texts).scores
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert ((scores >= 0.5).sum(axis=1) == 1).all()


@pytest.mark.weights
def test_other_labels_than_cocos_match_by_their_own_name(sentence_model: Path) -> None:
    names = ("scratch", "grain boundary")
    scorer = LabelsScorer(sentence_model, LabelsSettings(names=names), threads=1)
    assert scorer.info.vocabulary == names
    assert [why and why.reason for why in scorer.unknown(["deep scratches", "cat"])] == [
        None,
        "vocabulary",
    ]
    candidates = sure(*names)
    scores = scorer.score(PIXELS, candidates, ["a scratch", "grain boundaries"]).scores
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert (scores.max(axis=1) > 0.5).all()
    assert (scores.min(axis=1) < 0.2).all()


@pytest.mark.weights
def test_shapes_of_answers(scorer: LabelsScorer) -> None:
    assert scorer.score(PIXELS, [], ["cat", "dog"]).scores.shape == (2, 0)
    assert scorer.score(PIXELS, sure(None), ["cat"]).scores.tolist() == [[0.0]]
    result = scorer.score(PIXELS, sure("cat", "dog", "dog"), ["cat", "x" * 256])
    assert result.scores.shape == (2, 3)
    assert result.scores.dtype == np.float32
    assert (result.engine, result.threshold) == ("labels", 0.5)
    assert not scorer.info.needs_masks
    assert scorer.info.proposals is ProposalSource.DETECTOR


@pytest.mark.weights
def test_the_calibration_is_what_the_fit_gives(scorer: LabelsScorer) -> None:
    pairs = measure(scorer)
    fitted, shipped = fit(pairs), labels_module.CALIBRATION
    assert fitted.own == pytest.approx(shipped.own, abs=0.05)
    assert fitted.other == pytest.approx(shipped.other, abs=0.05)
    assert fitted.bias == pytest.approx(shipped.bias, abs=0.05)
    found = quality(pairs)
    print(found)
    assert found.recall > 0.9
    assert found.false_pairs < 0.003


@pytest.mark.weights
def test_labels_loads_without_network_and_without_open_clip(
    sentence_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the labels engine reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delitem(sys.modules, "serve_app.engines.open_clip.scorer", raising=False)
    monkeypatch.setitem(sys.modules, "open_clip", None)  # its import would fail
    engine = ModelSource().load_text(TextSettings(engine="labels"))
    assert engine.info.engine == "labels"
    assert engine.info.reason == "configured"


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable):
        LabelsScorer(tmp_path, LabelsSettings(), threads=1)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(WeightsUnavailable) as caught:
        LabelsScorer(tmp_path, LabelsSettings(), threads=1)
    assert str(tmp_path) not in caught.value.message
