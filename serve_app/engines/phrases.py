"""A small reader of English noun phrases: what a text asks for, as a phrase and not by its words.

The thing that a phrase names is its head, the last noun before any preposition or clause: "cat
ear" and "ear of a cat" name ears, "black cat on a sofa" names a cat.  Where a reading would be a
guess (a negation, several things, a place) there is none, and a reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.core.types import UnknownText
from serve_app.engines.negations import DETERMINED, is_negated
from serve_app.engines.words import (
    ARTICLES,
    ATTRIBUTES,
    DEGREES,
    FILLERS,
    JOINTS,
    LINKS,
    PEOPLE,
    PERSONAL,
    THINGS,
    are_alike,
    is_attribute,
    word_set,
)

NEGATION = UnknownText(
    reason="negation",
    message="negation is not understood; name what to find, not what to leave out",
)
NO_WORDS = UnknownText(reason="no_words", message="the text holds no word and no number")
SCRIPT = UnknownText(reason="language", message="only English is understood")
SEVERAL = UnknownText(
    reason="several_things",
    message="the text names several things; send a text for each",
)
NO_THING = UnknownText(
    reason="no_thing", message="no name of a thing was found in the text; send a noun phrase"
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase in lower case, without articles, requests, prepositions and clauses.

    Attributes:
        words: up to the head, which is the last.
        owner: the noun of a possessive before it: "dog" of "the dog's bowl".
        related: whether "of ..." or "for ..." follows, which may make it another thing.
    """

    words: tuple[str, ...]
    owner: tuple[str, ...] = ()
    related: bool = False


_APOSTROPHES = str.maketrans("’‘`´ʼ", "'''''")
_DASHES = str.maketrans(dict.fromkeys("-‐‑‒–—_", " "))
_CONTRACTED = re.compile(r"\b(who|that|which|where|what|there|here|it)'s\b")
_OPERATOR = re.compile(r"(?:^[-–—!~^¬≠∖\\]+\s*|\s[-!~^¬≠∖\\]+)(?=[^\W\d_])|!=")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*'?|[,;&+/|]|(?<!\bmr)(?<!\bst)(?<!\bdr)(?<!\bno)\.(?=\s)")

_LEAD_IN = re.compile(
    r"^(?:(?:please|hey|hi|ok|now|just|only|also|find|show|segment|select|highlight|locate|detect"
    r"|mask|outline|identify|mark|spot|pick|cut out|give|get|me|us|i|we|you|can|could|would|will"
    r"|want(?: to)?|need|see|like to|look(?:ing)? for|search(?:ing)? for|is|are|do|does|where"
    r"|what|how many|there|here|it|contains?|(?:a |an |the |this )?(?:close up )?"
    r"(?:photo|photograph|picture|image|snapshot|shot|view|close up)s? (?:of|with|showing)"
    r"|(?:an? |the |one |two |three )?(?:pair|group|bunch|couple|kind|type|sort|set|lot|number|herd"
    r"|flock|crowd|pack|row|line|pile|stack|dozen|variety|swarm|team|family|example"
    r"|instance|outline|mask|silhouette)s? of"
    r"|the|an?|all|any|some|every|each|this|that|these|those|my|your|his|her|its|our|their|of|one"
    rf"|(?:extract|isolate|count|crop|track|recogni[sz]e|choose|capture|annotate){DETERMINED}"
    r"|both|many|several|few|more|most|much|another|other|same|such"
    r"|two|three|four|five|six|seven|eight|nine|ten|\d+)\s+)+(?=\S)"
)
_STATES = word_set(
    "sleeping standing lying smiling grazing resting parked seated covered dressed made asleep"
    " driven seen shown lit tied eaten located placed stacked running swimming flying galloping"
    " barking floating hovering"
)
"""Those that do at its end, too: "cat sleeping", "car made of wood", but not "man made lake"."""

_ACTIVITIES = word_set(
    "riding walking watching racing driving reading writing crossing surfing skating sitting"
)
"""Those of people end it before a bare object: "man riding horse", not "horse riding school"."""

_ACTIONS = (_ACTIVITIES - {"crossing", "racing"}) | word_set(
    "arriving bathing bending biting chewing climbing coming cooking crawling crouching crying"
    " cycling dancing departing diving drying entering fishing gliding going grabbing hiding"
    " hiking jogging jumping kneeling laughing leaping leaving licking listening making moving"
    " passing perching posing relaxing rolling sailing shopping singing skiing sliding sniffing"
    " snowboarding soaring speaking staring stepping stopping stretching studying swinging taking"
    " talking trotting turning typing waiting working yawning"
)
"""Those of anything before a preposition: "jet taking off", but not "zebra crossing in a city"."""

_SIDES = word_set("far top bottom upper lower")
_POSITIONS = word_set("close closer closest nearest farthest furthest adjacent high low alone")
"""Adjectives after a noun: "car nearest to the camera"."""


def read(text: str) -> Phrase | UnknownText:
    """The noun phrase of a query, or why there is none.

    ``"Find the red cars in the street!"`` becomes ``red cars``.
    """
    if (problem := unreadable(text)) is not None:
        return problem
    return _noun_phrase([m.group() for m in _TOKEN.finditer(normalize(text))])


def normalize(text: str) -> str:
    """A text in lower case and one spelling, without articles and requests before it."""
    plain = _flat(_plain(text)).strip(" .,;:!?\"'()[]{}")
    plain = _CONTRACTED.sub(r"\1 is", plain)
    return _LEAD_IN.sub("", plain)


def unreadable(text: str, *, english: bool = True) -> UnknownText | None:
    """Why a text names no thing, for any engine: a negation, no word, or another script.

    Args:
        english: whether other scripts than the Latin one are not understood.
    """
    plain = _plain(text)
    if not any(c.isalnum() for c in plain):
        return NO_WORDS
    letters = [c for c in plain if c.isalpha()]
    if english and not all(_is_latin(c) for c in letters):
        return SCRIPT
    if english and plain.split()[0] in _FOREIGN_ARTICLES:
        return SCRIPT
    if _OPERATOR.search(plain) or is_negated(_flat(plain)):
        return NEGATION
    return None


_FOREIGN_ARTICLES = word_set(
    "der das ein eine einen einem einer le la les un une des el los las una unos unas il lo gli"
    " uno uma um os het een de en ett"
)
"""Articles of other languages that begin no English phrase: their "car" and "mare" are others."""


def _noun_phrase(tokens: list[str]) -> Phrase | UnknownText:
    if "like" in tokens:  # "something like a cat" is none
        return NO_THING
    end = next((i for i in range(len(tokens)) if _ends(tokens, i)), len(tokens))
    tokens = tokens[:end]
    related = [i for i, token in enumerate(tokens) if token in {"of", "for"}]
    tokens = tokens[: related[0]] if related else tokens
    words: list[str] = []
    owner: tuple[str, ...] = ()
    joints: list[int] = []
    for token in tokens:
        if token in JOINTS:
            joints.append(len(words))
        elif token in FILLERS or token.isdecimal():
            new = joints and joints[-1] == len(words) and token not in DEGREES
            if new and words and words[-1] in THINGS:
                return SEVERAL  # "an orange and a red apple"
            start = joints[-1] if joints else 0
            if token in ARTICLES and not _are_adjectives(words[start:]):
                return NO_THING  # "resembling a cat": another part of speech, or a list
        elif token.endswith(("'s", "s'")):
            owner = (*words, token.removesuffix("'s").rstrip("'"))
            if _are_several(owner, joints):
                return SEVERAL
            words, joints = [], []
        else:
            words.append(token)
    words = _without_side(words)
    bare = len(words) - 1 in joints[-1:] and len(words) > 1 and _are_attributes(words)
    if not words or (bare and words[-1] not in THINGS):  # "big and small"
        return NO_THING
    if _are_several(words, joints):
        return SEVERAL
    return NO_THING if bare else Phrase(tuple(words), owner, bool(related))  # "black and orange"


def _are_attributes(words: Sequence[str]) -> bool:
    return all(is_attribute(word) for word in words)


def _are_adjectives(words: Sequence[str]) -> bool:
    return _are_attributes(words) and not THINGS.intersection(words[-1:])


def _are_several(words: Sequence[str], joints: Sequence[int]) -> bool:
    """Whether a joint is after a noun: "cat and dog", "baby and dog", but not "orange and white
    cat", of which both sides are colours."""
    for joint in joints:
        if 0 < joint < len(words):
            last = _without_side(list(words[:joint]))[-1]
            alike = any(are_alike(last, word) for word in words[joint:-1])
            persons = {last, words[-1]} <= PERSONAL  # "mother and newborn baby"
            if not _are_attributes(words[:joint]) or (last in THINGS and (persons or not alike)):
                return True
    return False


def _without_side(words: list[str]) -> list[str]:
    """The words without a side of the picture after the noun: "dog bottom left"."""
    if len(words) < 2 or words[-1] not in {"left", "right"}:
        return words
    return words[:-2] if len(words) > 2 and words[-2] in _SIDES else words[:-1]


def _ends(tokens: list[str], i: int) -> bool:
    """Whether the noun phrase ends before this word."""
    if i and tokens[i].endswith("ing") and tokens[i + 1 : i + 2] in ([a] for a in ARTICLES):
        return True  # "girl feeding a horse"
    token, rest = tokens[i], tokens[i + 1 :]
    if token in ATTRIBUTES and all(t in _BEFORE_NOUN for t in tokens[:i]):
        return False  # "running dog"
    followed = bool(rest) and rest[0] in _FOLLOWERS
    of_people = tokens[i - 1 : i] in _AFTER
    return (
        (token in LINKS and bool(rest))
        or (token in _STATES and (not rest or followed))
        or (token in _ACTIONS and (followed or (of_people and not rest)))
        or (token in _ACTIVITIES and of_people)
        or (bool(i) and followed and (token in _POSITIONS or _is_participle(token)))
    )


def _is_participle(word: str) -> bool:
    """Whether a word is one like "perched", and no noun like "bed", "shed" or "seed"."""
    return word.endswith("ed") and not word.endswith(("bed", "eed", "shed", "sled", "red", "moped"))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()


def _flat(plain: str) -> str:
    """A text without dashes and with single spaces; "hair-less" is one word."""
    return " ".join(plain.replace("-less", "less").translate(_DASHES).split())


def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN", "FEMININE", "MASCULINE"))


_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "oxen": "ox", "teeth": "tooth", "feet": "foot", "gentlemen": "gentleman",
    "buses": "bus", "ladies": "lady", "policemen": "policeman",
}  # fmt: skip


def singulars(word: str) -> Iterator[str]:
    """The word itself and what it may be the plural of."""
    yield word
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    for ending, instead in (
        ("ies", ("y", "ie")), ("ves", ("f", "fe", "ve")), ("es", ("", "e")), ("s", ("",))
    ):  # fmt: skip
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            for other in instead:
                yield word.removesuffix(ending) + other


_BEFORE_NOUN = ATTRIBUTES | FILLERS
_AFTER = [[word] for word in sorted(PEOPLE)]
_FOLLOWERS = LINKS | FILLERS | {"of", "for"}
