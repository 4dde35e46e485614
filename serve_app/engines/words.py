"""Lists of English words by what they do in a noun phrase; used to read texts."""

from __future__ import annotations


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written as a text."""
    return frozenset(text.split())


ARTICLES = frozenset({"a", "an", "the"})
JOINTS = frozenset({"and", "or", "&", "+", "/", ",", ";", ".", "|", "plus", "then", "vs", "versus"})
FILLERS = word_set(
    "the a an all any some every each this that these those my your his her its our their both many"
    " several few one two three four five six seven eight nine ten very really quite rather so too"
    " just only please here there"
)
DEGREES = word_set("very really quite rather so too just only please")
"""The fillers that begin no new noun phrase."""

LINKS = word_set(
    "with in on at near by under behind beside next from that which who whose whom between over"
    " above below inside within outside to against along around across through into onto upon"
    " beneath underneath atop among amongst amid off out up down towards toward during before after"
    " while when where is are was were has have having being filled called named as belonging"
    " doing hanging leaning wearing holding carrying using looking pulling pushing catching"
    " throwing hitting kicking eating drinking playing chasing containing showing facing pointing"
    " waiting"
)
"""Words that end a noun phrase where more follows: "cat in a box", but not "duck down"."""

PEOPLE = word_set(
    "man men woman women person people boy boys girl girls child children kid kids lady guy player"
)

IMITATIONS = word_set(
    "toy fake pretend imaginary artificial mock model miniature statue plush stuffed inflatable"
    " cartoon origami lego toylike paper cardboard rubber painted drawn virtual former ex would"
    " imitation replica faux decoy dummy sculpted carved balloon chocolate gingerbread crochet"
    " knitted printed word letter name logo icon emoji symbol"
)
"""Adjectives and nouns before a noun after which it need not be the thing: "a toy car"."""

PERSONAL = word_set("adult baby newborn male female mother father")
"""Ages, sexes and relations that are persons, too."""

_KINDS = (
    # colours and looks
    word_set(
        "black white red green blue yellow brown gray grey orange pink purple golden gold silver"
        " beige tan cream turquoise violet navy maroon dark light bright pale colorful colourful"
        " colored coloured multicolored striped spotted dotted plain shiny glossy matte transparent"
        " clear blonde blond ginger grayish reddish bluish greenish brownish blurry sharp tabby"
        " calico"
    ),
    # sizes
    word_set(
        "small big large little tiny huge giant tall short long wide narrow thin thick fat slim"
        " skinny medium sized mini enormous massive heavy chubby"
    ),
    # shapes
    word_set("round square rectangular flat curved oval"),
    # ages
    word_set("young old new antique vintage modern ancient elderly adult baby newborn grown"),
    PERSONAL,
    # states
    word_set(
        "broken damaged rusty dirty clean wet dry empty full open opened closed folded sleeping"
        " sitting standing lying running walking jumping flying swimming smiling laughing crying"
        " grazing moving parked burning hungry sleepy tired sick injured wild tame domestic stray"
        " free cute pretty beautiful ugly lovely nice handsome fluffy furry hairy shaggy soft hard"
        " smooth rough leafy fresh ripe unripe rotten raw cooked baked fried roasted grilled sliced"
        " cut peeled glazed half eaten bitten whole frozen hot cold warm spicy sweet delicious"
        " tasty homemade expensive cheap luxury fancy simple ordinary typical common classic main"
        " single visible blurred"
    ),
    # places
    word_set(
        "nearest closest left right leftmost rightmost front rear top bottom middle central first"
        " second third last biggest smallest largest tallest shortest upper lower distant nearby"
    ),
    # materials of which such things are made
    word_set(
        "wooden metal metallic steel iron brass copper aluminum aluminium glass ceramic porcelain"
        " leather wool woolen woollen cotton silk silken velvet denim fabric plastic wicker bamboo"
        " marble stone concrete"
    ),
    # uses
    word_set(
        "electric electrical electronic portable wireless cordless digital analog analogue manual"
        " automatic mechanical foldable folding upholstered padded comfortable cosy cozy adjustable"
        " used fast slow speeding happy sad angry"
    ),
)

ATTRIBUTES = frozenset[str]().union(*_KINDS)
"""Words before a noun after which it is still that thing; see also `is_attribute`."""

THINGS = PERSONAL | word_set(
    "orange gold silver cream navy turquoise violet light blonde blond ginger tabby calico giant"
    " square oval antique stray sweet front rear top bottom middle metal steel iron brass copper"
    " aluminum aluminium glass ceramic porcelain leather wool cotton silk velvet denim fabric"
    " plastic wicker bamboo marble stone concrete manual automatic"
)
"""The attributes that are names of things, too: "baby and dog" are two."""


def is_attribute(word: str) -> bool:
    """Whether a noun after the word is still that thing: "red", "hairless"."""
    return word in ATTRIBUTES or is_lack(word)


def is_lack(word: str) -> bool:
    """Whether a word is one like "hairless" and "dogless", and not "less", "bless" or "unless"."""
    return word.endswith("less") and len(word) > len("unless")


def are_alike(word: str, other: str) -> bool:
    """Whether two attributes are of one kind, as two colours are."""
    return any(word in kind and other in kind for kind in _KINDS)
