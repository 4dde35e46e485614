"""What the ``labels`` engine takes phrases for, by kind, on both halves of both sets of phrases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.core.settings import LabelsSettings
from serve_app.core.types import UnknownText
from serve_app.engines.sentence_transformer.lexicon import KINDS, LOOSE, OTHER_COMPOUNDS
from serve_app.engines.sentence_transformer.scorer import LabelsScorer
from serve_app.engines.sentence_transformer.vocabulary import COCO_NAMES, OTHER_THINGS
from serve_tools.workshop.measure_phrases import SETS, Reading, readings, share_right

LEAST = {"names": 1.0, "synonyms": 1.0, "places and adversarial": 0.9}


@pytest.fixture(scope="module")
def scorer(weight_paths: Callable[[str], dict[str, Path]]) -> LabelsScorer:
    folder = weight_paths("minilm_l6_v2")["config"].parent
    return LabelsScorer(folder, LabelsSettings(), threads=1)


@pytest.fixture(scope="module")
def found(scorer: LabelsScorer) -> dict[str, list[Reading]]:
    return {author: list(readings(scorer, phrases)) for author, phrases in SETS.items()}


@pytest.mark.weights
@pytest.mark.parametrize(
    ("author", "kind"), [(author, kind) for author in SETS for kind in SETS[author].kinds]
)
@pytest.mark.parametrize("held_out", [False, True])
def test_phrases_are_read_as_phrases(
    found: dict[str, list[Reading]], author: str, kind: str, held_out: bool
) -> None:
    right, count = share_right(found[author], kind, held_out=held_out)
    print(f"{author}, {kind}: {right} of {count}")
    least = LEAST.get(kind, 0.9 if kind in SETS[author].naming else 0.95)
    assert right >= least * count


@pytest.mark.weights
@pytest.mark.parametrize("name", COCO_NAMES)
def test_what_holds_a_name_is_not_the_thing(scorer: LabelsScorer, name: str) -> None:
    for text in (
        f"no {name}", f"a picture without the {name}", f"anything but the {name}",
        f"{name} handle", f"the {name}'s handle", f"handle of the {name}", f"{name} shop",
        f"{name} factory worker's hat", f"toy {name}", f"under the {name}", f"{name} and tree",
        f"painting of a {name}", f"{name}-shaped cookie", f"{name}ish",
    ):  # fmt: skip
        if text not in ("toy kite", "toy bear"):  # which are such things
            assert isinstance(scorer.labels_of(text), UnknownText), text
    for text in (
        f"the {name}", f"a small red {name}", f"Find the {name}!", f"{name} on a table",
        f"black and white {name}", f"the {name} next to the tree",
    ):  # fmt: skip
        assert name in scorer.labels_of(text), text


@pytest.mark.weights
def test_young_and_herds_are_the_animal_before_them(scorer: LabelsScorer) -> None:
    assert scorer.labels_of("two bear cubs") == {"bear"}
    assert scorer.labels_of("elephant herd") == {"elephant"}
    assert scorer.labels_of("cute pup") == {"dog"}
    for text in ("seal pup", "lion cub", "person calf"):
        assert isinstance(scorer.labels_of(text), UnknownText), text


@pytest.mark.weights
def test_things_in_lists_are_not_dropped_and_lacks_are_attributes(scorer: LabelsScorer) -> None:
    for text in ("baby and dog", "orange and apple", "orange, banana", "mother or cat"):
        assert isinstance(found := scorer.labels_of(text), UnknownText), text
        assert found.reason == "several_things", text
    for text, label in {
        "hairless cat": "cat", "driverless cars": "car", "a backless bench": "bench",
        "a free bird": "bird", "restless dog on a bed": "dog", "homeless man": "person",
        "orange and white cat": "cat", "mother and baby elephant": "elephant",
        "non-fiction book": "book", "gluten free pizza": "pizza",
    }.items():  # fmt: skip
        assert scorer.labels_of(text) == {label}, text
    for text in ("no parking sign", "do not enter sign", "missing cat poster", "fried chicken"):
        assert isinstance(found := scorer.labels_of(text), UnknownText), text
        assert found.reason == "vocabulary", text


def test_the_lexicon_is_of_the_80_labels_and_holds_no_other_thing() -> None:
    assert KINDS.keys() == COCO_NAMES.keys()
    kinds = {noun for nouns in KINDS.values() for noun in nouns.split(", ")}
    assert not kinds & {*OTHER_THINGS}
    assert not kinds & OTHER_COMPOUNDS
    assert all(noun == noun.strip().lower() and noun for noun in kinds)
    names = {*kinds, *COCO_NAMES, *(n for names in COCO_NAMES.values() for n in names)}
    assert names >= LOOSE
