"""Facts that are hidden in a text, the questions for them, and the words that they and lists are made of.

The words are our own lists, so that no task depends on a package or a download. Every word is single, lower case unless
it is a name, and stands in its list once. Occupations and objects begin with a consonant, so that "a" fits before each.

A question opens its answer, so that a model which was not made for chat continues it too: `The special magic number for
amber is 7302846.`, or five facts of different kinds, whose sentences begin with the words that open their answers.
"""

import random
import uuid
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "amber anchor antler apricot arrow autumn bakery balcony bamboo banjo barley barrel basket beacon beetle bicycle "
    "biscuit blanket blossom bottle boulder bracelet branch breeze bridge bucket buffalo butter button cabbage cabin "
    "cable cactus candle canoe canvas canyon carpet carrot castle cavern cedar cello chapel cherry chimney cider "
    "cinnamon cliff clover cobalt coconut comet compass copper coral cottage cotton cradle crater cricket crystal "
    "cupboard curtain cushion cymbal daisy dolphin donkey dragonfly drum eagle ember engine falcon feather fern ferry "
    "fiddle flannel flute forest fossil fountain furnace garlic gazelle geyser ginger glacier glove goblet granite "
    "grape gravel guitar hammer hammock harbour harvest hazel hedge helmet heron hickory honey horizon hornet iceberg "
    "island ivory jacket jasmine jigsaw juniper kayak kettle kitten ladder lagoon lantern lavender leather lemon "
    "library lichen lily linen lizard lobster locket lotus magnet mallard mango maple marble meadow melon meteor "
    "mirror mitten monsoon mosaic mountain muffin mustard napkin nectar needle nettle nutmeg oasis octopus olive "
    "onion orchard orchid otter oyster paddle panther paper parcel parrot pasture peacock pebble pelican pencil "
    "pepper piano pigeon pillow pine piston planet plaza plum pocket pollen pony poplar poppy prairie pumpkin puppet "
    "quartz quilt rabbit radish raft rainbow raven ribbon river robin rocket saddle saffron salmon sandal satchel "
    "scarf sparrow spiral spoon squirrel stable starling statue summit sunset swallow tambourine teapot thistle "
    "thunder timber tortoise trumpet tulip tundra tunnel turnip turtle umbrella valley vanilla velvet violin volcano "
    "waffle walnut walrus waterfall whistle willow window winter wizard zebra zipper"
)
ADJECTIVES = _words(
    "able ancient angular ardent ashen awake balmy bashful blithe bold boundless brave breezy brief bright brisk "
    "broad bronze calm candid careful cheery chilly civil clever cloudy cosy crafty crimson crisp curious curly "
    "dainty daring dazzling deep deft dense devout dim distant dizzy docile dreamy dry dusky dusty eager early "
    "earnest earthy easy elegant elder fabled faint fair famous fancy fearless fertile fickle fiery firm flaky fleet "
    "floral fluffy fond formal fragile frank free fresh frosty frugal fuzzy gallant gentle giddy gilded glad glossy "
    "golden graceful grand grassy grateful gusty handy hardy hasty hazy hearty hidden hollow homely honest humble "
    "hushed icy idle jagged jolly jovial joyful keen kindly lanky late lavish lazy leafy level light limber lively "
    "lofty loud lovely loyal lucid lucky lunar mellow merry mighty mild misty modest mossy muddy muted narrow neat "
    "nimble noble northern oaken odd opal open ornate pale patient peaceful placid plain playful pleasant plump "
    "polite polished prim proud quaint quick quiet radiant rapid rare ready regal restful rosy rough round rugged "
    "rural rustic sandy scarlet secret serene shady sharp shiny silent silken silver simple sleek sleepy slender "
    "smooth snowy snug sober soft solar solid sombre southern spare speedy spicy stark steady steep sturdy subtle "
    "sunny supple swift tall tame tawny tender thirsty tidy tiny tranquil trusty upbeat upright vast verdant vivid "
    "wandering warm wary western wild windy wise witty wooden woolly young zesty"
)
FIRST_NAMES = _words(
    "Adela Agnes Alba Alistair Amos Anselm Astrid Basil Beatrix Bruno Camille Casper Cecily Clement Cora Cyril Dagmar "
    "Desmond Dorothea Edgar Elspeth Emil Enid Esther Felix Fiona Freya Gideon Gwen Harriet Hector Hilda Hugo Ida "
    "Ingrid Isidor Jasper Joan Josef Judith Kasimir Klara Lambert Leonie Linus Ludovic Mabel Magnus Marcel Matilda "
    "Maud Milo Mira Nadia Nestor Nora Olaf Olive Oscar Otilia Percy Petra Quentin Ralph Regina Roland Rosalind Rufus "
    "Sabine Selma Silas Sonia Stella Tabitha Theodor Thora Ulrich Ursula Victor Viola Walter Wanda Xavier Yvette "
    "Zelda"
)
CITIES = _words(
    "Aarhus Antwerp Avignon Basel Bergen Bilbao Bologna Bordeaux Bremen Bristol Brno Bruges Cadiz Calgary Cardiff "
    "Cork Cremona Dijon Dresden Dundee Durban Erfurt Exeter Faro Ferrara Galway Gdansk Geneva Genoa Ghent Girona "
    "Grenoble Haarlem Hobart Izmir Kampala Kaunas Kiel Krakow Kyoto Lausanne Leiden Lima Limerick Linz Lisbon Lugano "
    "Lyon Malaga Malmo Mantua Messina Montreal Nagoya Nairobi Nantes Odense Oporto Osaka Oulu Palermo Parma Perth "
    "Porto Quito Ravenna Riga Rouen Salerno Seville Siena Split Tampere Tartu Toledo Trieste Tromso Turin Uppsala "
    "Utrecht Valencia Verona Vienna Vilnius Windhoek Yerevan York Zadar Zagreb Zurich"
)
OCCUPATIONS = _words(
    "baker barber beekeeper binder blacksmith bookseller botanist brewer bricklayer butcher cabinetmaker carpenter "
    "cartographer chemist clockmaker coach cobbler composer conductor courier dancer dentist designer diver ferryman "
    "fisherman florist gardener geologist glassblower goldsmith grocer hatter janitor jeweller joiner journalist "
    "judge lawyer librarian locksmith machinist magician mason mechanic midwife miller miner musician nurse painter "
    "pharmacist photographer pilot plumber porter postman potter printer saddler sailor sculptor shepherd shipwright "
    "surveyor tailor tanner teacher tiler translator waiter watchmaker weaver welder zoologist"
)
OBJECTS = _words(
    "ballot-box banjo barometer bathtub birdcage bugle candlestick cannonball carousel chandelier chessboard clarinet "
    "coffee-mill compass corkscrew dartboard dinghy doorbell dulcimer fishing-rod flagpole gong gramophone greenhouse "
    "hammock harmonica harp hourglass jukebox kaleidoscope kite lawnmower lighthouse loom lute magnifier mandolin "
    "metronome microscope motorcycle music-box pendulum periscope pinwheel porcupine printing-press projector "
    "rocking-chair rowing-boat saxophone scooter sextant sledge snowplough spinning-wheel sundial suit-of-armour "
    "tandem telescope theodolite toboggan trampoline tricycle trombone typewriter vibraphone wardrobe weathervane "
    "wheelbarrow windmill wristwatch xylophone yacht zither"
)
MONTHS = _words("January February March April May June July August September October November December")
_SURNAME_BEGINNINGS = _words(
    "Alder Ash Barrow Beck Birch Black Brad Briar Calder Copper Crane Dal Dun Elm Fair Fen Fox Gar Glen Grey Hal Hart "
    "Hawk Hazel Hol Kel Kirk Lark Lin Mar Mill Moor Nor Oak Pen Quar Raven Red Rook Sand Shel Stan Swan Thorn Tor "
    "Under Wal War West Whit Win Wolf"
)
_SURNAME_ENDINGS = _words(
    "bourne brook bury by combe croft dale den field ford gate ham hurst land ley low ton ward well wick"
)
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"


def compound(chance: random.Random) -> str:
    """A key such as `mellow-harbour`; there are tens of thousands."""
    return f"{chance.choice(ADJECTIVES)}-{chance.choice(NOUNS)}"


def surname(chance: random.Random) -> str:
    """An invented family name, one of about a thousand."""
    return chance.choice(_SURNAME_BEGINNINGS) + chance.choice(_SURNAME_ENDINGS)


def coined_word(chance: random.Random) -> str:
    """Six letters that mean nothing; equal lengths, so that no word is found inside another."""
    return "".join(chance.choice(letters) for letters in (_CONSONANTS, _VOWELS) * 3)


def digits(chance: random.Random, length: int) -> str:
    """A number of `length` digits that does not begin with 0."""
    return str(chance.randrange(10 ** (length - 1), 10**length))


def uuid_text(chance: random.Random) -> str:
    """A random UUID (version 4) as text."""
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def list_items(items: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b, and c`."""
    if len(items) <= 2:
        return " and ".join(items)
    return f"{', '.join(items[:-1])}, and {items[-1]}"


def magic_sentence(key: str, value: str, *, kind: str, several: bool = False) -> str:
    """The fact that `key` has `value`; `kind` is number or uuid, `several` says that there are more for the key."""
    if several:
        return f"One of the special magic {kind}s for {key} is {value}."
    return f"The special magic {kind} for {key} is {value}."


def magic_question(keys: tuple[str, ...], *, kind: str, several: bool = False) -> str:
    """Asks for the values of `keys`, more than one value a key where `several`."""
    asked = f"for {list_items(keys)} mentioned in the text"
    if several or len(keys) > 1:
        return f"\n\nWhat are all the special magic {kind}s {asked}? The special magic {kind}s {asked} are"
    return f"\n\nWhat is the special magic {kind} {asked}? The special magic {kind} {asked} is"


@dataclass(frozen=True, slots=True)
class Fact:
    """`begun` opens the sentence that `answer` ends; `asked` is the question for it."""

    begun: str
    answer: str
    asked: str

    @property
    def sentence(self) -> str:
        """What the text says."""
        return f"{self.begun} {self.answer}."

    @property
    def question(self) -> str:
        """Plain text to continue: the question, and the opening of its answer."""
        return f"\n\nQuestion: {self.asked}\nAnswer: {self.begun}"


def five_facts(chance: random.Random) -> list[Fact]:
    """A trade, a time, a place, a password and a number."""
    name = f"{chance.choice(FIRST_NAMES)} {surname(chance)}"
    trade, city, object_ = (chance.choice(words) for words in (OCCUPATIONS, CITIES, OBJECTS))
    time = f"{chance.randrange(24):02}:{chance.randrange(60):02}"
    first, second = chance.sample(NOUNS, 2)
    hall = f"{surname(chance)} Hall"
    return [
        Fact(f"{name} earns a living as a", trade, f"How does {name} earn a living?"),
        Fact(f"The night train to {city} leaves at", time, f"When does the night train to {city} leave?"),
        Fact(f"The spare {first} is kept behind the", object_, f"Where is the spare {first} kept?"),
        Fact(f"The password of the {second} club is", compound(chance), f"What is the password of the {second} club?"),
        Fact(f"The telephone number of {hall} is", digits(chance, 7), f"What is the telephone number of {hall}?"),
    ]
