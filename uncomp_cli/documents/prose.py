"""Prose to measure with when no document is given: plain English sentences from a seeded generator.

Words are drawn from lists, compounded (`harbour-ledger`), and joined by invented names, years and amounts, so the
vocabulary is large and grows with the text, as in a real document. It means nothing: it is text for facts to stand in,
and none of its sentences reads like such a fact.
"""

import random
from collections.abc import Callable
from functools import cache, partial

_NOUNS = (
    "harbour ledger bridge orchard engine letter winter market signal copper lantern council river valley garden "
    "school tower wagon mill quarry captain teacher doctor miller forest island chapel bakery station hospital "
    "library museum theatre furnace cellar kitchen window ladder barrel blanket compass needle hammer pencil mirror "
    "bottle basket candle saddle anchor feather marble timber leather cotton barley honey pepper silver granite amber "
    "thunder shadow morning evening season journey story promise question answer rumour debt wage price treaty border "
    "village acorn almanac apron arch attic auction avenue awning axle badge balcony ballad banner bargain barn basin "
    "battery beacon bell bench boiler boot boundary box bracket branch brass bread brick broom brush bucket button "
    "cabin cable calendar canal canvas cargo carpet cart castle cattle ceiling chain chair chalk chart chest chimney "
    "choir circus clerk cliff cloak clock cloth coal coast coffin collar column comet contract corner cottage "
    "courtyard cradle crane cupboard current curtain custom dam deck depot desk diary dinner ditch door drawer "
    "drought drum dust embankment envelope estate factory fair farm fence ferry festival fiddle field fire flag flood "
    "floor flour fog fortress fountain frost fruit gallery gate glass glove grain grave gravel guest guild hall "
    "handle harvest hat hatch hay hedge herd hill hinge hive horse hotel house ice inn ink inventory iron jar jury "
    "kettle key kiln lake lamp lane lawyer lease lens lime lock loom map mast meadow meal medal mine monument mortar "
    "mountain nail net notebook oar oven paint paper parade parcel passage path pavement petition pier pipe pistol "
    "plank plough pond porch port pottery powder prison procession pump raft rail railing rain receipt recipe "
    "register rent reservoir road roof rope ruin sack sail salt sandbank scaffold scale seed shelf shepherd shield "
    "ship shore shovel shutter siege sketch sledge slope smoke snow soap soil song spade spring stable staircase "
    "stamp statue steam steeple stone storm stove street string summer sundial tannery tax telegram tent threshold "
    "ticket tide tile toll tool torch track trial tunnel uniform vault verdict vessel vineyard violin wall warehouse "
    "watch water weather well wheel whistle wire witness wool yard"
)
_VERBS = (
    "carried opened measured painted repaired followed answered weighed counted sold bought gathered lifted crossed "
    "guarded mended planted described refused praised lent borrowed inspected delivered copied lost found emptied "
    "abandoned accepted admired altered approached auctioned avoided balanced blamed blocked burned buried cleaned "
    "cleared closed collected compared completed concealed covered damaged decorated defended demanded designed "
    "destroyed discovered divided dragged drained drew enlarged examined exchanged exhibited fastened filled flooded "
    "forgot hauled hid hired ignored improved imported inherited insured invented labelled locked lowered marked "
    "moved named neglected noticed offered ordered owned packed pawned polished postponed preserved promised "
    "protected pulled purchased pushed raised reached rebuilt received recorded recovered registered removed rented "
    "replaced requested rescued restored returned rolled searched seized sharpened shipped sketched stole stored "
    "supplied surveyed tarred tested tied towed traced traded trimmed unloaded valued varnished visited wanted washed"
)
_ADJECTIVES = (
    "old narrow quiet heavy crooked patient bright distant wooden frozen careful hollow bitter gentle rusty stubborn "
    "polished generous nameless northern faded sturdy humble restless famous unfinished abandoned ancient angry ashen "
    "bare battered blind blue borrowed brave brittle broken bronze brown calm cheap clean clever coarse cold costly "
    "cracked cruel curious damp dark deep delicate dented dry dull dusty early eastern elegant empty enormous "
    "expensive fashionable feeble fertile fine flat foreign forgotten fragile fresh golden graceful green grey "
    "handsome hidden high honest hot iron lame large late leaking legal lonely long loose low lucky massive modern "
    "modest muddy new noisy oval painted pale plain poor private proud public rare red remote rich ripe rotten rough "
    "round royal rural sacred secret shabby shallow sharp short silent simple sleepy slender slow small smooth solemn "
    "solid southern spare square stale steep stern stolen strange striped strong sunken swift tall tame temporary "
    "thick thin tiny tired torn unlucky upper useful vacant vast velvet warm weak wealthy western wet white wicked "
    "wide wild worn yellow young"
)
_PLACES = "above across against along around behind below beneath beside beyond inside near opposite outside past under"
_MONTHS = "January February March April May June July August September October November December"
_FEELINGS = "anger caution delight despair gratitude haste hope pride regret relief sorrow surprise suspicion wonder"
_ONSETS = "b bl br c ch cl d dr f fl g gl gr h j k kl l m n p pr qu r s sc sh sk st t th tr v w wh z"
_RIMES = "a an ar as aw e eck el en er i il in ing ish o old on or ot ow u um us yn"
_SENTENCES_A_PARAGRAPH = 6
_SENTENCES = (  # the parts in the order in which they are drawn, and how they stand
    ("year name act", "In {} {} {}."),
    ("thing place thing name", "The {} {} the {} belonged to {}."),
    ("name act name crowns", "{} {}, and {} paid {} crowns for it."),
    ("thing act noun", "Nobody knew why the {} {} before the {} came."),
    ("feeling feeling name act", "With more {} than {}, {} {}."),
    ("day name thing act name", "According to {1}, the {2} {3} on {0}, long after {4} left."),
    ("thing adjective name", "Had the {} not been so {}, {} would have kept it."),
    ("thing name verb thing adjective", "The {3} was as {4} as the {0} which {1} {2}."),
    ("crates noun thing", "There remained {} crates, a {} and the {}."),
)


def write_prose(num_words: int, *, seed: int) -> str:
    """At least `num_words` words of prose in paragraphs; the same seed gives the same text."""
    chance = random.Random(seed)
    paragraphs: list[str] = []
    written = 0
    while written < num_words:
        paragraph = " ".join(_sentence(chance, *chance.choice(_SENTENCES)) for _ in range(_SENTENCES_A_PARAGRAPH))
        paragraphs.append(paragraph)
        written += len(paragraph.split())
    return "\n\n".join(paragraphs)


def _sentence(chance: random.Random, parts: str, text: str) -> str:
    return text.format(*(_DRAWN[part](chance) for part in parts.split()))


def _act(chance: random.Random) -> str:
    return f"{_pick(chance, _VERBS)} the {_thing(chance)}"


def _thing(chance: random.Random) -> str:
    noun = _pick(chance, _NOUNS)
    compound = f"{_pick(chance, _NOUNS)}-{noun}" if chance.random() < 0.3 else noun
    return f"{_pick(chance, _ADJECTIVES)} {compound}" if chance.random() < 0.6 else compound


def _name(chance: random.Random) -> str:
    syllables = chance.randint(2, 3)
    return "".join(_pick(chance, _ONSETS) + _pick(chance, _RIMES) for _ in range(syllables)).capitalize()


_split = cache(str.split)


def _pick(chance: random.Random, words: str) -> str:
    return chance.choice(_split(words))


_DRAWN: dict[str, Callable[[random.Random], str]] = {
    "year": lambda chance: str(chance.randint(1701, 1999)),
    "day": lambda chance: f"{chance.randint(1, 28)} {_pick(chance, _MONTHS)}",
    "crowns": lambda chance: f"{chance.randint(2, 9999):,}",
    "crates": lambda chance: str(chance.randint(2, 90)),
    "noun": partial(_pick, words=_NOUNS),
    "verb": partial(_pick, words=_VERBS),
    "adjective": partial(_pick, words=_ADJECTIVES),
    "place": partial(_pick, words=_PLACES),
    "feeling": partial(_pick, words=_FEELINGS),
    "name": _name,
    "thing": _thing,
    "act": _act,
}
