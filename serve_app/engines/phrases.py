"""A small reader of English noun phrases: what a text asks for, as a phrase and not by its words.

The thing that a phrase names is its head, the last noun before any preposition or clause: "cat
ear" and "ear of a cat" name ears, "black cat on a sofa" names a cat.  Where a reading would be a
guess (a negation, several things, a place) there is none, and a reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.core.types import UnknownText

NEGATION = UnknownText(
    reason="negation",
    message="negation is not understood; name what to find, not what to leave out",
)
NO_WORDS = UnknownText(reason="no_words", message="the text holds no word")
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
_OPERATOR = re.compile(r"(?:^[-–—!~^¬≠∖\\]+\s*|\s[-!~^¬≠∖\\]+)(?=\w)|!=")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*'?|[,;&+/|]")

_DETERMINED = r"(?= (?:the|an?|all|any|every|each|this|that|these|those|both|my|our)\b)"
_NEGATIONS = re.compile(
    # Requests to leave something out; a "drop earring" and a "cancel button" are none.
    r"^(?:(?:please|just|do|now|then) )*(?:(?:avoid|deselect|unselect|disregard|eliminate|forbid"
    r"|forget|invert|negate|subtract|suppress)(?= \w)|(?:ban|cancel|discard|dismiss|drop|exempt"
    rf"|hide|reject|take out|take away){_DETERMINED})"
    r"|\b(?:no|not|non|nor|none|never|neither|nothing|nobody|nowhere|zero|without|w/o|sans"
    r"|except|excepting|exclude[sd]?|excluding|exclusive of|minus|lack(?:s|ing)?|absen(?:t|ce)"
    r"|missing|cannot|hardly|instead of|rather than|other than|different from|apart from"
    r"|aside from|besides|opposite of|inverse of|complement of|rest of|free of|void of|devoid"
    r"|unlike|anti|omit(?:s|ted|ting)?|ignor(?:e[sd]?|ing)|remov(?:e[sd]?|ing)"
    r"|skip(?:s|ped|ping)?|delet(?:e[sd]?|ing)|eras(?:e[sd]?|ing)|subtract(?:ed|ing)|deselected"
    r"|unselected|rid of|barring|save for|every(?:thing|body|one) (?:bar|save)"
    r"|(?:leav(?:e|ing)|left|filter(?:ed|ing)?|crop(?:ped|ping)?|mask(?:ed|ing)?|edit(?:ed|ing)?"
    r"|tak(?:en|ing)|block(?:ed|ing)?|rul(?:e|ed|ing)|cross(?:ed|ing)?) out"
    r"|(?:any|every|all|some)\w*(?: \w+){0,2} but|nothing but|(?:all|everything|anything) else"
    r"|\w+n't|(?:do|does|is|are|was|were|has|have|ca|wo|did)nt|\w+ free|\w+less)\b"
)
_NOT_NEGATIVE = frozenset({"cordless", "wireless", "stainless", "seamless", "cloudless", "unless"})

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
    rf"|(?:extract|isolate|count|crop|track|recogni[sz]e|choose|capture|annotate){_DETERMINED}"
    r"|both|many|several|few|more|most|much|another|other|same|such"
    r"|two|three|four|five|six|seven|eight|nine|ten|\d+)\s+)+(?=\S)"
)
_FILLERS = _words(
    "the a an all any some every each this that these those my your his her its our their both many"
    " several few one two three four five six seven eight nine ten very really quite rather so too"
    " just only please here there"
)
_LINKS = _words(
    "with in on at near by under behind beside next from that which who whose whom between over"
    " above below inside within outside to against along around across through into onto upon"
    " beneath underneath atop among amongst amid off out up down towards toward during before after"
    " while when where is are was were has have having being filled called named as belonging"
    " doing hanging leaning wearing holding carrying using looking pulling pushing catching"
    " throwing hitting kicking eating drinking playing chasing containing showing facing pointing"
    " waiting"
)
"""Words that end a noun phrase where more follows: "cat in a box", but not "duck down"."""

_STATES = _words(
    "sleeping standing lying smiling grazing resting parked seated covered dressed made asleep"
    " driven seen shown lit tied eaten located placed stacked running swimming flying galloping"
    " barking floating hovering"
)
"""Those that do at its end, too: "cat sleeping", "car made of wood", but not "man made lake"."""

_ACTIVITIES = _words(
    "riding walking watching racing driving reading writing crossing surfing skating sitting"
)
"""Those of people end it before a bare object: "man riding horse", not "horse riding school"."""

_ACTIONS = (_ACTIVITIES - {"crossing", "racing"}) | _words(
    "arriving bathing bending biting chewing climbing coming cooking crawling crouching crying"
    " cycling dancing departing diving drying entering fishing gliding going grabbing hiding"
    " hiking jogging jumping kneeling laughing leaping leaving licking listening making moving"
    " passing perching posing relaxing rolling sailing shopping singing skiing sliding sniffing"
    " snowboarding soaring speaking staring stepping stopping stretching studying swinging taking"
    " talking trotting turning typing waiting working yawning"
)
"""Those of anything before a preposition: "jet taking off", but not "zebra crossing in a city"."""

_SIDES = _words("far top bottom upper lower")
_POSITIONS = _words("close closer closest nearest farthest furthest adjacent high low alone")
"""Adjectives after a noun: "car nearest to the camera"."""

_PEOPLE = _words(
    "man men woman women person people boy boys girl girls child children kid kids lady guy player"
)


def read(text: str) -> Phrase | UnknownText:
    """The noun phrase of a query, or why there is none.

    ``"Find the red cars in the street!"`` becomes ``red cars``.
    """
    if (problem := unreadable(text)) is not None:
        return problem
    return _noun_phrase([m.group() for m in _TOKEN.finditer(normalize(text))])


def normalize(text: str) -> str:
    """A text in lower case and one spelling, without articles and requests before it."""
    plain = " ".join(_plain(text).translate(_DASHES).split()).strip(" .,;:!?\"'()[]{}")
    plain = _CONTRACTED.sub(r"\1 is", plain)
    return _LEAD_IN.sub("", plain)


def unreadable(text: str, *, english: bool = True) -> UnknownText | None:
    """Why a text names no thing, for any engine: a negation, no word, or another script.

    Args:
        english: whether other scripts than the Latin one are not understood.
    """
    plain = _plain(text)
    letters = [c for c in plain if c.isalpha()]
    if not letters:
        return NO_WORDS
    if english and not all(_is_latin(c) for c in letters):
        return SCRIPT
    if english and plain.split()[0] in _FOREIGN_ARTICLES:
        return SCRIPT
    found = _NEGATIONS.findall(" ".join(plain.translate(_DASHES).split()))
    if _OPERATOR.search(plain) or not set(found) <= _NOT_NEGATIVE:
        return NEGATION
    return None


_FOREIGN_ARTICLES = _words(
    "der das ein eine einen einem einer le la les un une des el los las una unos unas il lo gli"
    " uno uma um os het een de en ett"
)
"""Articles of other languages that begin no English phrase: their "car" and "mare" are others."""

_ARTICLES = frozenset({"a", "an", "the"})
_JOINTS = frozenset({"and", "or", "&", "+", "/", ",", ";", "|", "plus", "then", "vs", "versus"})


def _noun_phrase(tokens: list[str]) -> Phrase | UnknownText:
    if "like" in tokens:  # "something like a cat" is none
        return NO_THING
    end = next((i for i in range(len(tokens)) if _ends(tokens, i)), len(tokens))
    tokens = tokens[:end]
    related = [i for i, token in enumerate(tokens) if token in {"of", "for"}]
    tokens = tokens[: related[0]] if related else tokens
    words: list[str] = []
    owner: tuple[str, ...] = ()
    joint = 0
    for token in tokens:
        if token in _JOINTS:
            joint = len(words)
        elif token in _ARTICLES and not all(word in ATTRIBUTES for word in words[joint:]):
            return NO_THING  # "resembling a cat": another part of speech, or a list
        elif token not in _FILLERS and not token.isdecimal():
            # "black and white cat" is one thing, "cat and dog" are two.
            if not all(word in ATTRIBUTES for word in words[:joint]):
                return SEVERAL
            if token.endswith(("'s", "s'")):
                owner, words, joint = (*words, token.removesuffix("'s").rstrip("'")), [], 0
            else:
                words.append(token)
    words = _without_side(words)
    colours = joint == len(words) - 1 and all(word in ATTRIBUTES for word in words)
    if not words or (joint and colours):  # "black and orange"
        return NO_THING
    return Phrase(tuple(words), owner, bool(related))


def _without_side(words: list[str]) -> list[str]:
    """The words without a side of the picture after the noun: "dog bottom left"."""
    if len(words) < 2 or words[-1] not in {"left", "right"}:
        return words
    return words[:-2] if len(words) > 2 and words[-2] in _SIDES else words[:-1]


def _ends(tokens: list[str], i: int) -> bool:
    """Whether the noun phrase ends before this word."""
    if i and tokens[i].endswith("ing") and tokens[i + 1 : i + 2] in ([a] for a in _ARTICLES):
        return True  # "girl feeding a horse"
    token, rest = tokens[i], tokens[i + 1 :]
    if token in ATTRIBUTES and all(t in _BEFORE_NOUN for t in tokens[:i]):
        return False  # "running dog"
    followed = bool(rest) and rest[0] in _FOLLOWERS
    of_people = tokens[i - 1 : i] in _AFTER
    return (
        (token in _LINKS and bool(rest))
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


IMITATIONS = _words(
    "toy fake pretend imaginary artificial mock model miniature statue plush stuffed inflatable"
    " cartoon origami lego toylike paper cardboard rubber painted drawn virtual former ex would"
    " imitation replica faux decoy dummy sculpted carved balloon chocolate gingerbread crochet"
    " knitted printed word letter name logo icon emoji symbol"
)
"""Adjectives and nouns before a noun after which it need not be the thing: "a toy car"."""

ATTRIBUTES = _words(
    # colours and looks
    "black white red green blue yellow brown gray grey orange pink purple golden gold silver beige"
    " tan cream turquoise violet navy maroon dark light bright pale colorful colourful colored"
    " coloured multicolored striped spotted dotted plain shiny glossy matte transparent clear"
    " blonde blond ginger grayish reddish bluish greenish brownish blurry sharp tabby calico"
    # sizes and shapes
    " small big large little tiny huge giant tall short long wide narrow thin thick fat slim skinny"
    " round square rectangular flat curved oval medium sized mini enormous massive heavy chubby"
    # ages, states, sexes
    " young old new antique vintage modern ancient elderly adult baby newborn male female mother"
    " father grown broken damaged rusty dirty clean wet dry empty full open opened closed folded"
    " sleeping sitting standing lying running walking jumping flying swimming smiling laughing"
    " crying grazing moving parked burning hungry sleepy tired sick injured wild tame domestic"
    " stray"
    " cute pretty beautiful ugly lovely nice handsome fluffy furry hairy shaggy soft hard smooth"
    " rough leafy fresh ripe unripe rotten raw cooked baked fried roasted grilled sliced cut peeled"
    " glazed half eaten bitten whole frozen hot cold warm spicy sweet delicious tasty homemade"
    " expensive cheap luxury fancy simple ordinary typical common classic main single nearest"
    " closest left right leftmost rightmost front rear top bottom middle central first second third"
    " last biggest smallest largest tallest shortest upper lower visible blurred distant nearby"
    # materials of which such things are made
    " wooden metal metallic steel iron brass copper aluminum aluminium glass ceramic porcelain"
    " leather wool woolen woollen cotton silk silken velvet denim fabric plastic wicker bamboo"
    " marble stone concrete"
    # uses
    " electric electrical electronic portable wireless cordless digital analog analogue manual"
    " automatic mechanical foldable folding wooden upholstered padded comfortable cosy cozy open"
    " adjustable used fast slow speeding happy sad angry"
)
"""Words before a noun after which it is still that thing."""

_BEFORE_NOUN = ATTRIBUTES | _FILLERS
_AFTER = [[word] for word in sorted(_PEOPLE)]
_FOLLOWERS = _LINKS | _FILLERS | {"of", "for"}
