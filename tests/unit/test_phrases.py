"""What English phrases name: heads, negations, places, several things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.types import UnknownText
from serve_app.engines.phrases import NEGATION, SCRIPT, Phrase, read, unreadable
from serve_app.engines.words import ATTRIBUTES, THINGS, are_alike

NOUNS = st.sampled_from(["cat", "dogs", "hot dog", "wine glasses", "person", "grain boundary"])
ARTICLES = st.sampled_from(["", "a ", "the ", "any ", "my ", "two ", "all the "])
NEGATIONS = [
    "no {}", "not {}", "without {}", "everything except {}", "anything but {}", "NOT {}!",
    "there is no {}", "there isn't {}", "don’t show {}", "nothing like {}", "all but {}", "-{}",
    "everything other than {}", "the absence of {}", "lack of {}", "exclude {}", "!{}",
    "neither {}",
    "{} is not there", "a street without {}", "a room with no {}", "apart from {}", "minus {}",
    "please hide the {}", "deselect {}", "invert the {}", "{} filtered out", "everything bar {}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat", ["cat"]),
        ("  Find me the RED cars, please! ", ["red", "cars"]),
        ("a photo of two hot dogs", ["hot", "dogs"]),
        ("cat ear", ["cat", "ear"]),
        ("cat on a sofa", ["cat"]),
        ("man riding a horse", ["man"]),
        ("horse riding", ["horse", "riding"]),
        ("sleeping cat", ["sleeping", "cat"]),
        ("cat sleeping", ["cat"]),
        ("duck down", ["duck", "down"]),
        ("a black and white cat", ["black", "white", "cat"]),
        ("where is the cup?", ["cup"]),
        ("dog walking service", ["dog", "walking", "service"]),
        ("man made object", ["man", "made", "object"]),
        ("car made of wood", ["car"]),
        ("man riding horse", ["man"]),
        ("girl feeding a horse", ["girl"]),
        ("half a sandwich", ["half", "sandwich"]),
        ("cordless phone", ["cordless", "phone"]),
        ("notebook", ["notebook"]),
        ("jet taking off", ["jet"]),
        ("birds perched on a wire", ["birds"]),
        ("dog bed on the floor", ["dog", "bed"]),
        ("zebra crossing in a city", ["zebra", "crossing"]),
        ("car nearest to the camera", ["car"]),
        ("woman reading", ["woman"]),
        ("men running shoes", ["men", "running", "shoes"]),
        ("bird flying", ["bird"]),
        ("man who's wearing a hat", ["man"]),
        ("where's the dog?", ["dog"]),
        ("zebra bottom left", ["zebra"]),
        ("person #2", ["person"]),
        ("extract the dog", ["dog"]),
        ("track suit", ["track", "suit"]),
        ("drop earring", ["drop", "earring"]),
    ],
)
def test_the_phrase_ends_with_its_head(text: str, words: list[str]) -> None:
    assert read(text) == Phrase(tuple(words))


def test_owners_and_relations_are_told() -> None:
    assert read("the cat's ear") == Phrase(("ear",), owner=("cat",))
    assert read("dogs\u2019 bowls") == Phrase(("bowls",), owner=("dogs",))
    assert read("ear of a cat") == Phrase(("ear",), related=True)
    assert read("food for the cat") == Phrase(("food",), related=True)


@given(template=st.sampled_from(NEGATIONS), article=ARTICLES, noun=NOUNS, upper=st.booleans())
def test_a_negation_is_never_read(template: str, article: str, noun: str, upper: bool) -> None:
    text = template.format(article + noun)
    text = text.upper() if upper else text
    assert read(text) == NEGATION
    assert unreadable(text, english=False) == NEGATION


SEVERAL = (
    "cat and dog; baby and dog; orange and apple; orange, banana; orange or apple; mother and dog;"
    " glass and bottle; adult and child; mother and father; male and female; apple and orange;"
    " tabby and dog; calico or dog; baby/dog; mother + horse; the baby and the cat on the bed;"
    " glass, fork and knife; stone and bird; square and car; top and handbag; manual and laptop;"
    " ripe banana and orange; baby and dog's bowl; hairless baby and dog; baby left and dog right;"
    " an orange and a red apple; orange and two red apples; 1 orange and 2 red apples;"
    " baby and white cat; male, female and dog; cat. dog.; orange. apple. banana;"
    " old mother and young father; mother and newborn baby"
)
ONE = (
    "black and white cat; orange and white cat; orange, black and white cat; red or green apple;"
    " a black and a white cat; male and female lions; mother and baby elephant; black & white dog;"
    " glass and metal table; tabby and calico cat; small and furry dog; big and red car;"
    " round and square table; front and rear bench; young and playful cat; silver and blue bus;"
    " hairless and friendly cat; orange and white cat on the left; baby and; orange,; black. white."
    " cat"
)
COLOURS = "black and orange; orange and black; black, white; big and small; orange and very red"


@pytest.mark.parametrize("text", SEVERAL.split("; "))
def test_nouns_beside_a_joint_are_several_things(text: str) -> None:
    found = read(text)
    assert isinstance(found, UnknownText)
    assert found.reason == "several_things"


@pytest.mark.parametrize("text", ONE.split("; "))
def test_attributes_beside_a_joint_are_of_one_thing(text: str) -> None:
    assert isinstance(read(text), Phrase)


@pytest.mark.parametrize("text", COLOURS.split("; "))
def test_attributes_alone_name_no_thing(text: str) -> None:
    found = read(text)
    assert isinstance(found, UnknownText)
    assert found.reason == "no_thing"


@given(
    thing=st.sampled_from(sorted(THINGS)),
    joint=st.sampled_from([" and ", ", ", " or ", "/"]),
    noun=st.sampled_from(["cat", "the dogs", "wine glasses", "a person", "two cars"]),
)
def test_an_attribute_that_is_a_thing_is_one_before_a_joint(
    thing: str, joint: str, noun: str
) -> None:
    found = read(thing + joint + noun)
    assert isinstance(found, UnknownText)
    assert found.reason == "several_things"


def test_attributes_that_are_things_are_attributes() -> None:
    assert THINGS <= ATTRIBUTES
    assert all(are_alike(thing, thing) for thing in THINGS)


@given(
    before=st.lists(st.sampled_from(sorted(ATTRIBUTES)), max_size=3), article=ARTICLES, noun=NOUNS
)
def test_attributes_before_a_noun_leave_it_the_head(
    before: list[str], article: str, noun: str
) -> None:
    found = read(article + " ".join([*before, noun]))
    assert isinstance(found, Phrase)
    assert " ".join(found.words).endswith(noun)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("?", "no_words"),
        ("123", "no_thing"),
        ("7", "no_thing"),
        ("\N{CAT FACE}", "no_words"),
        ("猫", "language"),
        ("кошка", "language"),
        ("c\u0430t", "language"),  # a Cyrillic letter that looks Latin
        ("le car", "language"),
        ("un mare", "language"),
        ("cat and dog", "several_things"),
        ("cats, dogs", "several_things"),
        ("cat/dog", "several_things"),
        ("behind the cat", "no_thing"),
        ("next to the cat", "no_thing"),
        ("the cat's", "no_thing"),
        ("something like a cat", "no_thing"),
        ("a cat-like robot", "no_thing"),
        ("resembling a cat", "no_thing"),
    ],
)
def test_why_there_is_no_phrase(text: str, reason: str) -> None:
    found = read(text)
    assert isinstance(found, UnknownText)
    assert found.reason == reason
    assert text not in found.message


def test_other_scripts_are_for_models_that_know_them() -> None:
    assert unreadable("猫") == SCRIPT
    assert unreadable("猫", english=False) is None
    assert unreadable("le chat", english=False) is None


@given(st.text(max_size=256))
def test_any_text_is_read(text: str) -> None:
    found = read(text)
    assert isinstance(found, UnknownText) or found.words
