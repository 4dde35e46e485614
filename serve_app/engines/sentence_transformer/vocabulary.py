"""Synonyms of COCO's labels, and words for objects that are not COCO labels.

`LabelsScorer` compares a text with the names of a label and, for contrast, with those of all
other labels and with `OTHER_THINGS`: sentence embeddings alone put "dog" as near to the label
"cat" as "woman" is to "person".
"""

from __future__ import annotations

from collections.abc import Mapping

COCO_NAMES: Mapping[str, tuple[str, ...]] = {
    "person": ("people", "man", "woman", "child", "boy", "girl", "human being", "worker"),
    "bicycle": ("bike", "cycle"), "car": ("automobile", "sedan", "taxi"),
    "motorcycle": ("motorbike", "scooter"), "airplane": ("aeroplane", "plane", "jet", "aircraft"),
    "bus": ("coach bus",), "train": ("locomotive", "railway train"),
    "truck": ("lorry", "pickup truck", "van"), "boat": ("ship", "vessel"),
    "traffic light": ("traffic signal",), "fire hydrant": ("hydrant",), "stop sign": ("road sign",),
    "parking meter": (), "bench": ("park bench",), "bird": ("songbird", "duck", "pigeon"),
    "cat": ("kitty", "house cat"), "dog": ("puppy", "hound"), "horse": ("pony", "stallion"),
    "sheep": ("lamb",), "cow": ("cattle", "bull"), "elephant": (), "bear": ("grizzly bear",),
    "zebra": (), "giraffe": (), "backpack": ("rucksack",), "umbrella": ("parasol",),
    "handbag": ("purse", "bag"), "tie": ("necktie",), "suitcase": ("luggage",),
    "frisbee": ("flying disc",), "skis": ("ski",), "snowboard": (),
    "sports ball": ("ball", "football", "soccer ball"), "kite": (),
    "baseball bat": ("bat for baseball",), "baseball glove": ("catcher's mitt",), "skateboard": (),
    "surfboard": (), "tennis racket": ("racket",), "bottle": ("flask",), "wine glass": ("goblet",),
    "cup": ("mug", "teacup", "coffee cup"), "fork": (), "knife": ("blade",), "spoon": ("teaspoon",),
    "bowl": ("dish",), "banana": (), "apple": (), "sandwich": ("burger",),
    "orange": ("orange fruit", "tangerine"), "broccoli": (), "carrot": (),
    "hot dog": ("sausage in a bun",), "pizza": (), "donut": ("doughnut",),
    "cake": ("birthday cake", "pie"), "chair": ("seat", "stool"), "couch": ("sofa",),
    "potted plant": ("houseplant", "plant in a pot"), "bed": ("mattress",),
    "dining table": ("table", "desk"), "toilet": ("lavatory",),
    "tv": ("television", "computer monitor", "screen"), "laptop": ("notebook computer", "computer"),
    "mouse": ("computer mouse",), "remote": ("remote control",), "keyboard": ("computer keyboard",),
    "cell phone": ("mobile phone", "smartphone", "telephone"), "microwave": ("microwave oven",),
    "oven": ("stove",), "toaster": (), "sink": ("washbasin",), "refrigerator": ("fridge",),
    "book": ("paperback",), "clock": ("wall clock", "watch"), "vase": (), "scissors": ("shears",),
    "teddy bear": ("stuffed animal", "plush toy"), "hair drier": ("hair dryer",), "toothbrush": (),
}  # fmt: skip
"""Synonyms of each COCO label."""

COCO_GROUPS: Mapping[str, tuple[str, ...]] = {
    "animal": (
        "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"
    ),
    "pet": ("cat", "dog"),
    "livestock": ("horse", "sheep", "cow"),
    "vehicle": (
        "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"
    ),
    "furniture": ("bench", "chair", "couch", "bed", "dining table"),
    "food": (
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza",
        "donut", "cake",
    ),
    "fruit": ("banana", "apple", "orange"),
    "vegetable": ("broccoli", "carrot"),
    "cutlery": ("fork", "knife", "spoon"),
    "tableware": ("wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    "sports equipment": (
        "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
        "baseball glove", "skateboard", "surfboard", "tennis racket",
    ),
    "kitchen appliance": ("microwave", "oven", "toaster", "refrigerator"),
    "electronic device": ("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
}  # fmt: skip
"""Names that apply to several labels."""

OTHER_THINGS: tuple[str, ...] = (
    "submarine", "rocket", "helicopter", "tank", "tractor", "crane", "balloon", "satellite",
    "spaceship", "paddle", "sled", "wheelchair", "stroller", "wheel", "tire", "engine",
    "building", "house", "tower", "bridge", "castle", "church", "tent", "road", "street",
    "fence", "wall", "window", "door", "floor", "ceiling", "stairs", "roof", "mountain",
    "sky", "cloud", "sun", "moon", "star", "sea", "river", "lake", "beach", "snow", "forest",
    "tree", "grass", "leaf", "flower", "mushroom", "rock", "sand", "fire", "smoke",
    "lion", "tiger", "wolf", "fox", "monkey", "kangaroo", "camel", "deer", "pig", "goat",
    "rabbit", "rat", "squirrel", "hamster", "snake", "lizard", "crocodile", "turtle", "frog",
    "fish", "shark", "whale", "dolphin", "octopus", "crab", "spider", "insect", "butterfly",
    "bee", "penguin", "dinosaur", "dragon", "robot", "statue", "doll", "skeleton",
    "face", "hand", "foot", "eye", "hair", "hat", "helmet", "shoe", "shirt", "trousers",
    "dress", "jacket", "glove", "sock", "belt", "glasses", "ring", "necklace", "crown", "mask",
    "flag", "sign", "poster", "painting", "photograph", "newspaper", "map", "letter", "card",
    "pen", "pencil", "paper", "box", "basket", "barrel", "bucket", "can", "jar", "pot", "pan",
    "kettle", "plate", "napkin", "towel", "blanket", "pillow", "curtain", "carpet", "mirror",
    "lamp", "candle", "light bulb", "fan", "heater", "washing machine", "vacuum cleaner",
    "camera", "radio", "printer", "headphones", "microphone", "battery", "cable", "coin",
    "money", "key", "lock", "hammer", "saw", "drill", "screwdriver", "axe", "shovel", "ladder",
    "rope", "chain", "brush", "broom", "sword", "gun", "bomb", "guitar", "piano", "violin",
    "drum", "trumpet", "bread", "cheese", "egg", "meat", "soup", "rice", "pasta", "salad",
    "ice cream", "chocolate", "coffee", "milk", "juice", "beer", "tomato", "potato", "onion",
    "lemon", "grape", "strawberry", "pineapple", "pumpkin", "corn", "microscope", "telescope",
    "syringe", "pill", "cell nucleus", "scratch", "crack", "hole", "rust", "stain",
    "background", "texture", "shadow", "text",
)  # fmt: skip
"""Objects that are not COCO labels."""


def names_of(label: str) -> tuple[str, ...]:
    """All names of a label, itself first; a label that is not COCO's has no others."""
    groups = tuple(group for group, members in COCO_GROUPS.items() if label in members)
    return (label, *COCO_NAMES.get(label, ()), *groups)
