"""Whether a text says what not to find: "no cat", "everything except the cat", "cat-free".

A negative word inside of a name is none: "no parking sign", "non-stick pan", "hairless cat".
"""

from __future__ import annotations

import re

from serve_app.engines.words import (
    ARTICLES,
    FILLERS,
    JOINTS,
    LINKS,
    PEOPLE,
    THINGS,
    is_attribute,
    is_lack,
    word_set,
)

DETERMINED = r"(?= (?:the|an?|all|any|every|each|this|that|these|those|both|my|our)\b)"


def is_negated(text: str) -> bool:
    """Whether a text in lower case, without dashes and with single spaces, leaves things out."""
    plain = _NAMES.sub("", text)
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*|[,;&+/|]", plain)
    return bool(_NEGATIONS.search(plain)) or any(
        _is_lacking(words, i) or _is_freed(words, i) for i in range(len(words))
    )


_NEGATIONS = re.compile(
    # Requests to leave something out; a "drop earring" and a "cancel button" are none.
    r"^(?:(?:please|just|do|now|then) )*(?:(?:avoid|deselect|unselect|disregard|eliminate|forbid"
    r"|forget|invert|negate|subtract|suppress|skip)(?= \w)|(?:ban|cancel|discard|dismiss|drop"
    rf"|exempt|hide|reject|take out|take away){DETERMINED})"
    r"|\b(?:no|not|non|nor|none|never|neither|nothing|nobody|nowhere|zero|without|w/o|sans"
    r"|except|excepting|exclude[sd]?|excluding|exclusive of|minus|lack(?:s|ing)?|absen(?:t|ce)"
    r"|missing|cannot|hardly|instead of|rather than|other than|different from|apart from"
    r"|aside from|besides|opposite of|inverse of|complement of|rest of|free (?:of|from)|void of"
    r"|devoid|unless|unlike|anti|omit(?:s|ted|ting)?|ignor(?:e[sd]?|ing)|remov(?:e[sd]?|ing)"
    rf"|skip(?:s|ped|ping)?{DETERMINED}|delet(?:e[sd]?|ing)|eras(?:e[sd]?|ing)|subtract(?:ed|ing)"
    r"|deselected|unselected|rid of|barring|save for|every(?:thing|body|one) (?:bar|save)"
    r"|(?:leav(?:e|ing)|left|filter(?:ed|ing)?|crop(?:ped|ping)?|mask(?:ed|ing)?|edit(?:ed|ing)?"
    r"|tak(?:en|ing)|block(?:ed|ing)?|rul(?:e|ed|ing)|cross(?:ed|ing)?) out"
    r"|(?:any|every|all|some)\w*(?: \w+){0,2} but|nothing but|(?:all|everything|anything) else"
    r"|\w+n't|(?:do|does|is|are|was|were|has|have|ca|wo|did)nt)\b"
)


def _any_of(words: frozenset[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words))


_NOUN = rf"(?!(?:{_any_of(LINKS | FILLERS | {'of', 'for', 'stop'})})\b)\w+"
"""A word that may be inside of a name, but not that of a stop sign."""

_SIGN = (
    r"(?:sign|signpost|signboard|symbol|notice|sticker|placard|plaque|banner|icon|poster|logo)s?"
)
_SHEET = r"(?:poster|flyer|flier|leaflet|notice|alert|ad|advert|report)s?"
_WEAPON = (
    r"(?:gun|cannon|missile|rocket|mine|weapon|rifle|artillery|battery|net|netting|spike|spray"
    r"|fence|barrier|device|repellent|protest|protester|demonstration|rally|banner|campaign)s?"
)
_NAMES = re.compile(
    r"\b(?:"
    # Signs of what is forbidden: an activity or things; not "no stop sign", "no warning sign".
    r"no (?!(?:warning|advertising|building|crossing|railing|painting|lighting)\b)"
    r"(?:\w+ing|\w+[^\Wsuai]s|cameras|entry|entrance|exit|access|admittance|(?:left|right|u) turn"
    r"|(?:thru|through) traffic|outlet|vacancy|alcohol|food|drink|photography|standing|trespass)"
    rf"(?: (?:allowed|permitted|any ?time|zone|on red|here|(?:and|or) {_NOUN}))* {_SIGN}"
    r"|(?:do not|don't|dont) (?:enter|disturb|walk|cross|touch|feed|block|park|pass|litter|smoke"
    r"|swim|climb|run|drink|eat|dive|turn|sit|push|lean)"
    rf"(?: (?!stop\b)\w+){{0,3}}?(?<! the)(?<! a)(?<! any)(?<! this) (?:{_SIGN}|tape|hangers?)"
    r"|not (?:for sale|for hire|in service|in use) (?:sign|notice|bus|buses|board)s?"
    r"|no (?:smoking|vaping|parking|passing|swimming|fishing|hunting|fly|go|wake) "
    r"(?:zone|area|section|compartment|lane)s?"
    rf"|no (?:bake|knead|sew|name|frills|nonsense|contact) {_NOUN}|no ?\. ?\d+|no \d+$"
    # Products and other adjectives that have become words of their own.
    r"|non (?:stick|slip|skid|fiction|fictional|alcoholic|dairy|profit|smok(?:ing|ers?)|toxic"
    r"|woven|uniform|verbal|ferrous|flammable|refillable|lethal|native|invasive|venomous"
    r"|poisonous|reflective|fatal|league|stop(?! sign)|fat|perishable|linear|binary"
    r"|standard|contact|electric|motori[sz]ed)"
    r"|anti (?:theft|glare|slip|skid|war|virus|viral|aging|ageing|fog|lock|static|gravity|riot"
    r"|bacterial|social|clockwise|ballistic|climb|tarnish|wrinkle|fatigue|vibration|freeze|roll)"
    rf"|anti (?:{_NOUN} ){{1,2}}?{_WEAPON}"
    r"|anti hero(?:es)?|comic sans|sans(?: (?:serif|font|typeface|text|letters?)|$)|absent minded"
    r"|(?:forget|touch) me nots?|horseless carriages?|never ending|no man's land"
    # Numbers and signs; "zero cats" is none.
    r"|(?:number|digit|figure|numeral|ground|absolute|sub|coke|patient|day) zero"
    r"|zero(?= (?:gravity|emissions?|waste|calories?|sugar|turn|degrees?|tolerance|g|point)\b"
    rf"| (?:{_any_of(LINKS)})\b|$)"
    r"|(?:minus|zero|not equal) (?:sign|symbol|key|button|sticker)s?"
    r"|(?:delete|skip|remove|ignore) (?:key|button)s?"
    # What is looked for on a sheet, and what people do.
    rf"|missing (?:{_NOUN} ){{1,3}}?{_SHEET}"
    rf"|(?:{_any_of(PEOPLE)}) (?:is |are )?(?:removing|erasing|skipping|ignoring)"
    r"|taking out (?:the )?(?:trash|garbage|rubbish)"
    r"|skip (?:bin|rope|truck|lorry|loader|container|hire)s?|skipping(?: ropes?|$)"
    r")\b"
)
"""Names with a negative word in them."""

_SOUGHT = word_set(
    "animal bear bicycle bike bird boat bus car cat chair cow dog elephant giraffe horse human man"
    " motorcycle people person pet plane sheep train truck vehicle woman zebra"
)
"""Whole things: a "catless room" is no kind of room, as a "windowless room" is."""

_QUALITIES = word_set(
    "cloudless cordless endless fearless harmless helpless homeless lifeless motionless restless"
    " seamless shirtless stainless topless useless weightless wireless worthless"
)
"""Lacks that are said of a thing after it, too: "cat motionless", but not "room dogless"."""


def _is_lacking(words: list[str], i: int) -> bool:
    """Whether a word is a lack of what may be sought, or stands before no noun: "dogless"."""
    if not is_lack(words[i]) or words[i] in _QUALITIES:
        return False
    if words[i].removesuffix("less") in _SOUGHT:
        return True
    rest = [word for word in words[i + 1 :] if word not in JOINTS]
    return not rest or rest[0] in LINKS | FILLERS | {"of", "for"}


_FREE_OF = word_set(
    "acid ad alcohol allergen barrier caffeine cage calorie carbon care chemical commission cost"
    " crime cruelty dairy drug dust duty egg fat fee fragrance frost fuss gluten grain guilt hair"
    " hand hands hassle interest lactose latex lead line maintenance meat nickel nut odor odour"
    " oil pain peanut plastic rent risk royalty rust salt scent smoke soy stain stress sugar tax"
    " toll toxin trouble wheat worry wrinkle"
)
"""What a thing is said to be free of, as a kind of that thing: "sugar-free drink"."""

_FREE_THINGS = word_set(
    "climb climber climbers climbing dive diver divers diving fall faller falling form hand kick"
    " kicks radical range ride rider riding roam roaming run runner running sample samples style"
    " throw throws trade verse weight weights wheel wifi"
)
"""Words that "free" is the first part of: "basketball free throw"."""


def _is_freed(words: list[str], i: int) -> bool:
    """Whether this is the "free" of "cat-free room", not that of "a free bird", "running free"."""
    if words[i] != "free" or i == 0 or words[i + 1 : i + 2] in ([w] for w in _FREE_THINGS):
        return False
    before = words[i - 1]
    return not (
        before in _FREE_OF | _BEFORE_FREE
        or before.isdecimal()
        or before.endswith(("ing", "ly"))
        or (is_attribute(before) and before not in THINGS)
    )


_BEFORE_FREE = (
    ARTICLES
    | FILLERS
    | JOINTS
    | LINKS
    | word_set(
        "of for feel get gets got set sets break breaks roam roams run runs fly flies buy find show"
        " select segment detect highlight locate see want need me us more most other another such"
        " no wild born almost"
    )
)
"""Words after which "free" is an adjective of its own."""
