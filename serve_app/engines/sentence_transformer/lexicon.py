"""Which of COCO's labels a noun names: names, synonyms, kinds and common modern words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from serve_app.engines.sentence_transformer.vocabulary import COCO_GROUPS, COCO_NAMES

KINDS: Mapping[str, str] = {
    "person": "human, somebody, someone, individual, adult, lady, gentleman, guy, girl, kid,"
    " toddler, baby, infant, teenager, teen, youngster, youth, schoolboy, schoolgirl, pedestrian,"
    " tourist, passerby, bystander, father, mother, dad, mom, mum, brother, sister, son, daughter,"
    " grandfather, grandmother, grandpa, grandma, husband, wife, uncle, aunt, cousin, nephew,"
    " niece, lad, lass, bloke, fellow, senior citizen, human figure, passenger, spectator, visitor,"
    " stranger, friend, neighbour, neighbor, folk, homo sapiens, citizen",
    "bicycle": "pushbike, push bike, mountain bike, road bike, racing bike, tandem, racing bicycle,"
    " road bicycle, two wheeler, bmx, ebike, e bike, electric bike, pedal cycle, city bike",
    "car": "auto, cab, convertible, hatchback, coupe, limousine, limo, station wagon, minivan, suv,"
    " jeep, roadster, sports car, race car, racing car, police car, motor car, motorcar, taxicab,"
    " cabriolet, passenger car, electric car, family car, compact car, rental car, saloon car,"
    " sport utility vehicle, panda car, ambulance",
    "motorcycle": "moped, motor cycle, motor bike, motor scooter, dirt bike, vespa, chopper bike,"
    " trail bike, minibike, sport bike, sports motorcycle, harley",
    "airplane": "airliner, jetliner, jumbo jet, passenger plane, passenger jet, fighter jet,"
    " biplane, seaplane, monoplane, glider plane, propeller plane, cargo plane, fighter plane,"
    " jet plane, warplane, private jet, airbus, passenger aircraft, commercial aircraft,"
    " reconnaissance plane, tanker plane",
    "bus": "coach, minibus, omnibus, school bus, double decker, double decker bus, trolleybus,"
    " autobus, tour bus, city bus, shuttle bus, motorcoach, passenger bus, articulated bus",
    "train": "steam train, subway train, metro train, freight train, passenger train, bullet train,"
    " commuter train, high speed train, railroad train, steam locomotive, tram, streetcar, railcar,"
    " steam engine, diesel locomotive, electric locomotive",
    "truck": "pickup, semi truck, semi trailer, tow truck, fire truck, fire engine, fire engine"
    " truck, garbage truck, dump truck, delivery truck, delivery van, tanker truck, motortruck,"
    " tractor trailer, food truck, trailer truck, camper van, moving van, panel van, big rig,"
    " ladder truck, passenger van, police van, ambulance",
    "boat": "sailboat, sailing boat, sailing ship, rowboat, rowing boat, yacht, ferry, ferryboat,"
    " motorboat, speedboat, dinghy, kayak, gondola, raft, cruise ship, fishing boat, catamaran,"
    " barge, tugboat, steamboat, lifeboat, steamship, schooner, trawler, houseboat, container ship,"
    " cargo ship, watercraft, paddle boat, pedal boat, motor boat, warship, sailing vessel,"
    " longboat, canoe, dugout canoe, cabin cruiser, dory",
    "traffic light": "stoplight, stop light, traffic lamp, traffic lights, street light signal",
    "fire hydrant": "fireplug, fire plug, water hydrant, street hydrant",
    "stop sign": "stop signal sign, octagonal stop sign",
    "parking meter": "parkometer, meter for parking, car park meter",
    "bench": "garden bench, settle bench, street bench, park seat, pew",
    "bird": "sparrow, seagull, gull, eagle, hawk, falcon, owl, parrot, crow, raven, robin, swan,"
    " goose, chicken, hen, rooster, cock, cockerel, turkey bird, peacock, flamingo, pelican, heron,"
    " stork, crane bird, dove, finch, canary, swallow bird, woodpecker, kingfisher, hummingbird,"
    " magpie, blackbird, blue jay, budgie, budgerigar, cockatoo, macaw, parakeet, ostrich, emu,"
    " mallard, duckling, chick, fowl, vulture, starling, thrush, wren, nightingale, toucan,"
    " cormorant, albatross, puffin, quail, pheasant, sandpiper, songbird, bird of prey, waterbird,"
    " barn owl, fish eagle, sea eagle, snow goose, brent goose, mute swan, whistling swan,"
    " wood duck, mandarin duck, musk duck, sea duck, diving duck, zebra finch, house finch,"
    " grass finch, house sparrow, hedge sparrow, mourning dove, rock dove, guinea hen,"
    " prairie chicken, bearded vulture, mountain quail, button quail, fish hawk, jay, grey jay,"
    " gray jay, house martin, barn swallow, bird of paradise",
    "cat": "kitten, pussycat, pussy cat, tomcat, tabby, tabby cat, siamese, siamese cat, persian"
    " cat, feline, housecat, moggy, maine coon, mouser, bengal cat, alley cat, tom cat, kitty cat,"
    " domestic cat, calico cat, ginger cat",
    "dog": "pup, doggy, doggie, canine, terrier, bulldog, poodle, labrador, retriever, golden"
    " retriever, german shepherd, german shepherd dog, sheepdog, spaniel, beagle, dachshund,"
    " collie,"
    " corgi, pug, husky, dalmatian, rottweiler, chihuahua, greyhound, whippet, mastiff, boxer dog,"
    " doberman, schnauzer, great dane, mutt, mongrel, pooch, sausage dog, sheep dog, guide dog,"
    " shih tzu, border collie, pit bull, watchdog, lapdog, guard dog, police dog, hunting dog,"
    " bloodhound, basset hound, pomeranian, samoyed, pointer dog, setter dog, newfoundland dog,"
    " fox terrier, rat terrier, cairn terrier, sled dog, gun dog, bird dog, cocker spaniel,"
    " springer spaniel, field spaniel, water spaniel, chow chow, toy poodle, miniature poodle,"
    " red setter",
    "horse": "foal, mare, colt, filly, gelding, steed, racehorse, race horse, mustang,"
    " thoroughbred,"
    " draft horse, workhorse, bronco, shetland pony, arabian horse, stud horse, broodmare,"
    " bucking bronco",
    "sheep": "ewe, ram, woolly sheep, mountain sheep, merino",
    "cow": "calf, heifer, ox, bullock, steer, bovine, dairy cow, milk cow, dairy cattle, milch cow",
    "elephant": "african elephant, asian elephant, indian elephant, elephant calf, pachyderm",
    "bear": "polar bear, brown bear, black bear, grizzly, kodiak bear, sun bear, bruin, ice bear",
    "zebra": "mountain zebra, plains zebra",
    "giraffe": "camelopard, reticulated giraffe",
    "backpack": "knapsack, back pack, haversack, school bag, schoolbag, book bag, day pack,"
    " daypack",
    "umbrella": "brolly, sunshade, sunshade umbrella, beach umbrella, gamp, bumbershoot",
    "handbag": "pocketbook, hand bag, shoulder bag, tote bag, clutch bag, tote, shopping bag,"
    " evening bag",
    "tie": "bow tie, bowtie, cravat, neck tie",
    "suitcase": "trolley case, traveling bag, travelling bag, baggage, carry on luggage, trunk"
    " case, overnight bag, overnight case, garment bag",
    "frisbee": "frisbee disc, flying disk, disc golf disc",
    "skis": "alpine skis, cross country skis, snow skis, snow ski, water skis, water ski",
    "snowboard": "snow board",
    "sports ball": "basketball, tennis ball, baseball, volleyball, golf ball, beach ball, rugby"
    " ball, cricket ball, american football, softball, handball, bowling ball, soccerball,"
    " cue ball, pool ball, billiard ball, squash ball, lacrosse ball, polo ball,"
    " field hockey ball, playground ball, medicine ball",
    "kite": "box kite, stunt kite, toy kite",
    "baseball bat": "baseball stick, softball bat",
    "baseball glove": "baseball mitt, mitt, catcher s mitt, fielder s glove, catching glove",
    "skateboard": "longboard, skate board",
    "surfboard": "surf board, paddleboard, bodyboard, boogie board",
    "tennis racket": "tennis racquet, racquet, badminton racket, squash racket, badminton racquet",
    "bottle": "water bottle, wine bottle, beer bottle, glass bottle, milk bottle, plastic bottle,"
    " baby bottle, flagon, carafe, soda bottle, perfume bottle, ketchup bottle, juice bottle,"
    " pill bottle, pocket flask, vacuum flask, vacuum bottle",
    "wine glass": "wineglass, champagne glass, champagne flute, stemware, red wine glass",
    "cup": "espresso cup, tea cup, coffee mug, beaker, tumbler, drinking cup, paper cup, plastic"
    " cup,"
    " beer mug, demitasse, travel mug, cup of coffee, cup of tea",
    "fork": "dinner fork, table fork, salad fork, dessert fork",
    "knife": "kitchen knife, butter knife, pocket knife, pocketknife, penknife, bread knife, steak"
    " knife, carving knife, chef s knife, table knife, cleaver, dagger, jackknife, switchblade,"
    " fish knife, paper knife, meat cleaver",
    "spoon": "soup spoon, tablespoon, dessert spoon, ladle, serving spoon, wooden spoon, soupspoon",
    "bowl": "soup bowl, salad bowl, cereal bowl, fruit bowl, mixing bowl, dog bowl, sugar bowl,"
    " punch bowl, rice bowl, porringer, fish bowl",
    "banana": "plantain",
    "apple": "granny smith, granny smith apple, crab apple, eating apple",
    "sandwich": "hamburger, cheeseburger, sub sandwich, panini, club sandwich, blt, ham sandwich,"
    " cheese sandwich, sandwiches, veggie burger, beefburger, submarine sandwich, toastie",
    "orange": "mandarin, mandarin orange, clementine, satsuma, navel orange, blood orange",
    "broccoli": "broccoli floret, broccoli florets, broccolini",
    "carrot": "baby carrot",
    "hot dog": "hotdog, frankfurter, chili dog, corn dog, frankfurter hot dog, wiener, frank",
    "pizza": "pizza pie, pepperoni pizza, margherita, cheese pizza, calzone, deep dish pizza",
    "donut": "glazed donut, cruller, jelly donut, jelly doughnut, ring doughnut",
    "cake": "cupcake, chocolate cake, cheesecake, wedding cake, fruitcake, sponge cake, gateau,"
    " layer cake, carrot cake, apple pie, pumpkin pie, cherry pie, muffin, brownie, tart, torte,"
    " pound cake, shortcake, angel food cake, cup cake, ice cream cake",
    "chair": "armchair, arm chair, office chair, rocking chair, dining chair, folding chair, desk"
    " chair, recliner, easy chair, highchair, high chair, swivel chair, lawn chair, deck chair,"
    " deckchair, bar stool, barstool, lounge chair, rocker chair, kitchen chair, garden chair,"
    " plastic chair, throne, beach chair, gaming chair, captain s chair",
    "couch": "settee, loveseat, love seat, divan, chesterfield, sectional sofa, futon, sofa bed,"
    " davenport, ottoman couch, chaise longue, leather sofa",
    "potted plant": "house plant, pot plant, flower pot, flowerpot, plant pot, indoor plant,"
    " bonsai,"
    " pot of flowers, potted flower, pot with a plant, flower pot with a plant, potted tree",
    "bed": "double bed, single bed, bunk bed, bunk, cot, crib, four poster, four poster bed, king"
    " size bed, queen size bed, twin bed, hospital bed, daybed, canopy bed, water bed, waterbed",
    "dining table": "kitchen table, dinner table, coffee table, diner table, desktop table, dining"
    " room table, wooden table, writing desk, breakfast table, end table, side table, picnic table",
    "toilet": "toilet bowl, commode, water closet, loo, wc, latrine, urinal, flush toilet",
    "tv": "television set, telly, tv set, flat screen tv, flat screen, flatscreen, monitor, lcd"
    " monitor, tv screen, television screen, plasma tv, smart tv, display screen, computer screen",
    "laptop": "macbook, notebook pc, laptop computer, chromebook, netbook, portable computer,"
    " macbook"
    " laptop, macbook pro",
    "mouse": "wireless mouse, optical mouse, pc mouse",
    "remote": "tv remote, television remote, remote controller, tv remote control, game controller,"
    " wii remote, wiimote, remote control unit",
    "keyboard": "pc keyboard, typing keyboard, wireless keyboard, mechanical keyboard",
    "cell phone": "cellphone, mobile, iphone, phone, handset, cellular phone, cellular telephone,"
    " android phone, flip phone, mobile telephone, smart phone, hand phone",
    "microwave": "microwave cooker",
    "oven": "gas oven, electric oven, gas stove, electric stove, cooker, kitchen stove, baking"
    " oven",
    "toaster": "bread toaster, electric toaster, toaster oven, pop up toaster",
    "sink": "kitchen sink, bathroom sink, wash basin, washbowl, wash bowl, hand basin, bath sink",
    "refrigerator": "freezer, icebox, ice box, mini fridge, minifridge, fridge freezer, deep"
    " freezer",
    "book": "textbook, hardcover, hardback, softcover, novel, cookbook, notebook, comic book,"
    " picture"
    " book, children s book, library book, school book, paperback book, novel book, dictionary,"
    " encyclopedia, storybook, story book, booklet, guidebook, hardcover book, desk dictionary,"
    " pocket dictionary, school dictionary, phone book, telephone book, telephone directory,"
    " prayer book, cookery book, handbook, yearbook, atlas, bible, field guide",
    "clock": "alarm clock, wristwatch, wrist watch, grandfather clock, timepiece, cuckoo clock,"
    " pocket watch, digital clock, desk clock, tower clock, table clock, pendulum clock",
    "vase": "flower vase, urn, glass vase",
    "scissors": "scissor, pair of scissors, clippers, garden shears, kitchen scissors",
    "teddy bear": "teddy, stuffed bear, cuddly bear, plush bear, stuffed toy, cuddly toy, toy bear,"
    " soft toy, plushie, cuddly bear toy, stuffed teddy bear, stuffed teddy",
    "hair drier": "blow dryer, blow drier, hairdryer, hairdrier, hand blower, blowdryer",
    "toothbrush": "electric toothbrush, tooth brush, manual toothbrush",
}  # fmt: skip
"""More nouns for each label, by commas.  Of persons only what does not depend on their trade:
the detector cannot tell an astronaut from a cook."""

GROUPS: Mapping[str, Sequence[str]] = {
    **COCO_GROUPS,
    "mammal": (
        "person", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"
    ),
    "creature": COCO_GROUPS["animal"],
    "living creature": ("person", *COCO_GROUPS["animal"]),
    "living thing": ("person", *COCO_GROUPS["animal"]),
    "living being": ("person", *COCO_GROUPS["animal"]),
    "farm animal": COCO_GROUPS["livestock"],
    "house pet": COCO_GROUPS["pet"],
    "motor vehicle": ("car", "motorcycle", "bus", "truck"),
    "home appliance": COCO_GROUPS["kitchen appliance"],
    "piece of furniture": COCO_GROUPS["furniture"],
    "something to eat": COCO_GROUPS["food"],
    "electronics": COCO_GROUPS["electronic device"],
    "flatware": COCO_GROUPS["cutlery"],
    "silverware": COCO_GROUPS["cutlery"],
    "crockery": ("cup", "bowl"),
}  # fmt: skip
"""Nouns that name several labels."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _nouns(text: str) -> frozenset[str]:
    return frozenset(text.split(", "))


OTHER_COMPOUNDS = _nouns(
    "adam s apple, agent orange, air bed, ant bear, baked chicken, ball boy, banana boat, bell"
    " boy, bicycle fork, big cat, bike fork, biological clock, bob cat, body clock, boneless"
    " chicken, bra cup, bumper car, cable car, cable tie, cadmium orange, carbon sink, cash cow,"
    " cat bear, cat bed, channel cat, charley horse, check book, civet cat, clay pigeon, clothes"
    " horse, cold duck, cooked chicken, copy cat, cotton ball, cotton cake, crab cake, custard"
    " apple, data bus, death cup, devil dog, dice cup, dining car, dog bed, dust bowl, dutch oven,"
    " early bird, egg cup, electric chair, elevator car, elf cup, exercise bike, filter bed, fire"
    " bird, fish cake, fisher cat, flower bed, flying cat, flying mouse, fork truck, fossa cat,"
    " fried chicken, front bench, gallows bird, game boy, garden bed, garden truck, gas bottle,"
    " gingerbread man, gravy boat, gravy train, greasy spoon, grilled chicken, gummy bear, hair"
    " tie, hand truck, heat sink, hobby horse, hot water bottle, hush puppy, iron horse, jail"
    " bird, klein bottle, koala bear, lady bird, love apple, mad apple, magnetic bottle, match"
    " book, may apple, mechanical man, memory bus, methyl orange, moon carrot, mud puppy, musical"
    " keyboard, native bear, oak apple, oil cake, optic cup, optical bench, osage orange, oyster"
    " bed, palm cat, panda bear, pet bed, piano keyboard, pommel horse, potato cake, power train,"
    " prairie dog, raccoon dog, rail tie, railroad car, railroad tie, railway car, raw chicken,"
    " rice cake, river bed, river fork, road fork, roast lamb, roasted chicken, rocking horse,"
    " rose apple, sand man, sea bed, sea cow, sea elephant, sea horse, sea purse, seed bed, side"
    " car, sitting duck, skinless chicken, skunk bear, sleeping car, snow man, soap cake, stick"
    " horse, stick man, stool pigeon, straw man, subway car, suction cup, sugar apple, sun dog,"
    " super bowl, synthesizer keyboard, test bed, test bench, thorn apple, tom boy, tongue tie,"
    " train car, trojan horse, truck bed, tuning fork, urinal cake, vaulting horse, vegetable"
    " sheep, water bear, water clock, wave train, weight bench, woolly bear, work bench, world"
    " cup, yard bird, yeast cake, zip tie"
)
"""Compounds whose last noun is a name above and that are other things."""

LOOSE = _words(
    "mouse seat stool screen blade bag ball dish plane jet vessel table desk computer watch cycle"
    " bull duck coach monitor tart phone ship van flask racket worker pie frank steer cot crib urn"
    " ram cab mobile pickup"
)
"""Names that mean something else in many compounds ("car seat", "satellite dish"): with another
noun before them they are the label only where the compound itself is a name."""

ANIMAL_FORMS = _words("cub pup foal calf chick lamb herd flock")
"""Nouns after an animal's name that are still it, and another thing after another noun: a "bear
cub", a "seal pup"."""

CONTAINERS = frozenset({"bottle", "cup", "wine glass", "bowl", "vase", "potted plant"})
"""Labels of which "a ... of something" is still one."""


def labels_by_noun(names: Iterable[str]) -> dict[tuple[str, ...], frozenset[str]]:
    """The labels that each noun names, for a detector with the labels ``names``."""
    known = frozenset(names)
    found: dict[tuple[str, ...], set[str]] = {}
    for label in known:
        kinds = KINDS.get(label, "")
        for noun in (label, *COCO_NAMES.get(label, ()), *filter(None, kinds.split(", "))):
            found.setdefault(tuple(noun.replace("'", " ").split()), set()).add(label)
    for noun, members in GROUPS.items():
        if shared := known & set(members):
            found.setdefault(tuple(noun.split()), set()).update(shared)
    return {noun: frozenset(labels) for noun, labels in found.items()}
