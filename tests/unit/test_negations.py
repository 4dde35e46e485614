"""What leaves things out, and what is only named with such a word; for all text engines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engines.phrases import NEGATION, unreadable
from serve_app.engines.words import is_attribute, is_lack

NEGATED = {
    "lack": "dogless; catless room; a carless street; bikeless street; peopleless scene; dog-less"
    " park; treeless; the street is treeless; room dogless and dirty; roofless with a door; unless"
    " it is a cat",
    "free": "cat-free room; cat free room; a dog-free bench; people-free street; car free area;"
    " free of cats; a room free of people; free from dogs; a child-free zone; the bird free sky;"
    " baby free",
    "sign": "no sign; no signs; no stop sign; no stop signs; no street sign; no bus stop sign; no"
    " warning sign; no glass sign; no traffic light; no parking meter; no cars, stop sign; no dogs"
    " near the sign; don't select the sign; do not segment the stop sign; do not stop sign;"
    " without the no parking sign; no parking sign and no cat; do not touch the sign; not a sign",
    "non": "non-dog; non-cat; non-human; non red car; the non-bicycle region; non-stop sign",
    "anti": "anti cat; anti-dog; anti hot dog; anti stop sign",
    "sans": "cats sans dogs; room sans cat",
    "number": "zero cats; zero wine glasses; minus the dog; cat minus dog; no 3 cats; -cat; !cat",
    "missing": "missing dog; the missing poster; missing stop sign; missing cat on a poster",
    "requests": "skip cats; skip the dog; skipping the cat; forget the cat; delete the dog; remove"
    " the hat; people removed; absent dog; ignore the man",
    "general": "no cat; without a dog; anything but cats; everything except the cat; no people",
}
NAMES = {
    "lack": "hairless cat; sleeveless dress; homeless man; driverless car; backless bench;"
    " motionless cat; restless dog; strapless handbag; seedless orange; hair-less cat; a"
    " sleeveless and backless dress; leafless trees; headless horse; windowless room; homeless;"
    " the homeless; cat motionless on a mat; cordless phone; cloudless sky; horseless carriage;"
    " bless you card",
    "free": "a free bird; the free range chicken; hands free headset; hands-free phone; free"
    " seats; duty free shop; sugar-free drink; gluten free bread; two free chairs; find free"
    " seats; horse running free; basketball free throw; woman free climbing; a red free bird; for"
    " free; cage free chicken; totally free",
    "sign": "no parking sign; a red no parking sign on a pole; no smoking signs; no entry sign; no"
    " u turn sign; no dogs allowed sign; no pets sign; no food or drink sign; no fly zone; no"
    " smoking area; do not enter sign; do not disturb sign; don't walk sign; do not cross tape; do"
    " not feed the animals sign; not for sale sign; not in service bus; bus no 5; no. 7 jersey",
    "non": "non-stick pan; non-slip mat; non-fiction book; non-stop bus; non-alcoholic beer;"
    " non-fat milk",
    "anti": "anti aircraft gun; anti-tank missile; anti-theft device; anti glare screen; anti-war"
    " protest; anti-hero; anti bird spikes",
    "sans": "comic sans; comic sans text; sans serif font; noto sans",
    "number": "number zero; zero; zero on a jersey; zero gravity; zero emission bus; ground zero;"
    " minus sign; 7; 123; -5; ~50 cats; 3.14",
    "missing": "missing person poster; missing cat poster; missing dog flyer on a wall",
    "requests": "skipping rope; girl skipping rope; a skip bin; forget me not; delete key; man"
    " removing his hat; absent minded professor; drop earring; taking out the trash",
}


def _texts(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(kind, text) for kind, texts in table.items() for text in texts.split("; ")]


@pytest.mark.parametrize(("kind", "text"), _texts(NEGATED))
def test_what_leaves_things_out_is_refused(kind: str, text: str) -> None:
    assert unreadable(text) == NEGATION, kind
    assert unreadable(text.upper(), english=False) == NEGATION, kind


@pytest.mark.parametrize(("kind", "text"), _texts(NAMES))
def test_names_with_a_negative_word_are_passed_on(kind: str, text: str) -> None:
    assert unreadable(text) is None, kind
    assert unreadable(text.upper(), english=False) is None, kind


@given(
    names=st.lists(st.sampled_from([text for _, text in _texts(NAMES)]), min_size=1, max_size=3),
    negated=st.sampled_from(["no cat", "not a dog", "without people", "except the zebra"]),
)
def test_a_name_hides_no_negation_beside_it(names: list[str], negated: str) -> None:
    assert unreadable(", ".join([*names, negated])) == NEGATION


def test_words_of_lack_are_attributes() -> None:
    for word in ("hairless", "driverless", "endless"):
        assert is_lack(word), word
        assert is_attribute(word), word
    for word in ("less", "bless", "unless", "lessons", "chess"):
        assert not is_lack(word), word
        assert not is_attribute(word), word
