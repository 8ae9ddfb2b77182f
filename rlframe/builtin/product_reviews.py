"""Short product reviews from a seeded grammar: the text of the quickstart recipe.

The recipe needs text that a tiny model learns in a minute on one core, and whose tone a person
can judge at a glance. A review fills one sentence shape with a product, aspects that fit it,
opinions on those aspects and a verdict. The shape is drawn without a look at the label, so that
the opening, which becomes the prompt, seldom gives the label away. In a mixed review the opinions
disagree and the verdict at the end settles the label. Over a million texts are possible.

Left out on purpose: plural nouns (every table entry agrees with a singular), spelling mistakes,
lukewarm verdicts, a closing full stop (the end of a text is the tokenizer's business), and the
split into training and held-out rows, which is the caller's.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

from pydantic import Field, NonNegativeInt

from rlframe.api import DataGenerator, PluginConfig, Row


class Family(NamedTuple):
    """Products that share aspects: each aspect makes sense for each of the products."""

    products: tuple[str, ...]
    aspects: tuple[str, ...]


FAMILIES = (
    Family(
        ("headset", "speaker", "radio", "music player"),
        ("battery", "sound", "casing", "cord", "switch"),
    ),
    Family(
        ("phone", "tablet", "camera", "smartwatch"),
        ("battery", "screen", "casing", "menu", "charger"),
    ),
    Family(
        ("frying pan", "saucepan", "wok", "stockpot"),
        ("handle", "lid", "coating", "base", "weight"),
    ),
    Family(
        ("kettle", "blender", "coffee maker", "rice cooker", "juicer"),
        ("handle", "lid", "base", "cord", "switch"),
    ),
    Family(
        ("backpack", "handbag", "school bag", "laptop bag", "gym bag"),
        ("zip", "strap", "lining", "stitching", "fabric"),
    ),
    Family(
        ("rain jacket", "winter coat", "ski jacket", "parka"),
        ("zip", "collar", "hood", "lining", "fabric", "fit"),
    ),
    Family(
        ("desk lamp", "floor lamp", "reading lamp", "bedside lamp"),
        ("light", "shade", "base", "cord", "switch"),
    ),
    Family(
        ("armchair", "office chair", "dining chair", "sofa", "recliner"),
        ("seat", "backrest", "frame", "fabric", "stitching"),
    ),
    Family(
        ("spade", "shovel", "axe", "hoe", "trowel"),
        ("handle", "blade", "grip", "finish", "weight"),
    ),
    Family(
        ("pillow", "duvet", "mattress", "cushion"),
        ("cover", "filling", "fabric", "stitching", "zip"),
    ),
)

COMPLAINTS = {
    "backrest": ("is far too low", "pushes me forward", "feels hard and stiff"),
    "base": ("is not quite level", "wobbles all the time", "scratches every surface"),
    "battery": ("drains far too fast", "barely lasts an hour", "never charges fully"),
    "blade": ("is blunt", "bends too easily", "rusts at the edges"),
    "casing": ("creaks in my hand", "scratches too easily", "feels cheap and hollow"),
    "charger": ("gets rather hot", "is painfully slow", "fails now and then"),
    "coating": ("is flaking off", "scratches too easily", "lets everything stick"),
    "collar": ("scratches my neck", "won't lie flat", "is stiff and itchy"),
    "cord": ("is far too short", "feels thin and cheap", "tangles all the time"),
    "cover": ("slips off at night", "shrinks in the wash", "feels rough and stiff"),
    "fabric": ("fades too quickly", "feels rough and stiff", "tears too easily"),
    "filling": ("clumps together", "is far too thin", "goes flat overnight"),
    "finish": ("is already peeling", "scratches too easily", "looks dull and patchy"),
    "fit": ("is far too tight", "is rather shapeless", "pinches at the waist"),
    "frame": ("creaks all the time", "wobbles all the time", "is not quite level"),
    "grip": ("slips when wet", "gives me blisters", "is too thin"),
    "handle": ("is already loose", "feels flimsy", "hurts my hand"),
    "hood": ("slips over my eyes", "is far too small", "is stiff and itchy"),
    "lid": ("won't close properly", "rattles all the time", "sticks and jams"),
    "light": ("is harsh and cold", "flickers at night", "is far too weak"),
    "lining": ("tears too easily", "smells of glue", "is coming loose"),
    "menu": ("is a confusing maze", "freezes now and then", "is slow and clumsy"),
    "screen": ("scratches too easily", "flickers at night", "is far too dim"),
    "seat": ("is hard as stone", "sags in the middle", "is far too narrow"),
    "shade": ("hangs crooked", "gets rather hot", "looks dull and patchy"),
    "sound": ("is thin and tinny", "crackles all the time", "cuts out constantly"),
    "stitching": ("is coming undone", "is crooked and loose", "looks careless"),
    "strap": ("digs into my shoulder", "slips all the time", "is far too short"),
    "switch": ("is already loose", "sticks now and then", "only works sometimes"),
    "weight": ("is too much", "tires my arms", "makes it clumsy"),
    "zip": ("sticks halfway", "jams all the time", "comes apart too easily"),
}

PRAISE = {
    "backrest": ("supports my back well", "is high and soft", "is just right"),
    "base": ("is heavy and stable", "sits perfectly flat", "is easy to wipe"),
    "battery": ("lasts all day", "charges in minutes", "holds its charge well"),
    "blade": ("is sharp and strong", "cuts with ease", "keeps its edge"),
    "casing": ("feels solid", "looks elegant", "shrugs off every knock"),
    "charger": ("is small and light", "is quick and reliable", "works every time"),
    "coating": ("wipes clean in seconds", "lets nothing stick", "shows no scratches"),
    "collar": ("is soft and warm", "lies flat", "keeps the wind out"),
    "cord": ("is long enough", "tucks away neatly", "feels thick and safe"),
    "cover": ("washes well", "is soft and smooth", "is easy to remove"),
    "fabric": ("is soft and thick", "is easy to clean", "keeps its colour"),
    "filling": ("keeps its shape", "is light and warm", "stays nice and even"),
    "finish": ("looks beautiful", "is smooth and even", "shows no scratches"),
    "fit": ("is just right", "is loose and comfortable", "suits me well"),
    "frame": ("feels solid", "is light and strong", "looks elegant"),
    "grip": ("is soft and firm", "never slips", "suits small hands"),
    "handle": ("feels solid", "is sturdy", "is comfortable to hold"),
    "hood": ("keeps the rain out", "fits snugly", "is easy to remove"),
    "lid": ("closes tightly", "fits perfectly", "is easy to clean"),
    "light": ("is warm and soft", "is bright and even", "is perfect for reading"),
    "lining": ("is soft and smooth", "feels strong", "is neatly sewn"),
    "menu": ("is simple and quick", "makes sense at once", "is clear and tidy"),
    "screen": ("is bright and sharp", "is easy to read", "shows lovely colours"),
    "seat": ("is deep and soft", "is wide and comfortable", "keeps its shape"),
    "shade": ("looks elegant", "is easy to dust", "gives a soft glow"),
    "sound": ("is warm and clear", "is rich and full", "is crisp and lively"),
    "stitching": ("is neat and tight", "looks flawless", "holds up well"),
    "strap": ("is soft and wide", "stays in place", "is easy to adjust"),
    "switch": ("clicks nicely", "is easy to reach", "works every time"),
    "weight": ("is just right", "suits me well", "is easy to manage"),
    "zip": ("runs smoothly", "never catches", "closes with one pull"),
}

# The pairs below are indexed by label: 0 = not satisfied, 1 = satisfied.
OPINIONS = (COMPLAINTS, PRAISE)
OVERALL = (
    ("looks cheap", "is no beauty", "is nothing special", "is smaller than pictured"),
    ("looks great", "is well made", "is a good size", "is good value"),
)
VERDICTS = (
    (
        "i sent it back",
        "i want a refund",
        "i regret buying it",
        "i can't recommend it",
        "i'm disappointed",
        "i gave it away",
        "it goes back tomorrow",
    ),
    (
        "i'd buy it again",
        "i'm happy with it",
        "i love it",
        "i can recommend it",
        "i'm very pleased",
        "i'm keeping it",
        "it's a good buy",
    ),
)

OWNERS = ("this", "my")
BUYERS = ("i bought", "we bought", "i chose", "we picked")
GIVERS = ("my sister", "my uncle", "my neighbour", "a friend")
OCCASIONS = ("last spring", "last month", "in a sale", "on a whim", "online", "in town")
TIMES = ("after two weeks", "after one month", "after ten days", "after a week", "after six days")

# A name with `contrary` holds an opinion against the label, every other opinion supports it.
ONE_SIDED = (
    "the {aspect} of {owner} {product} {opinion}, and {verdict}",
    "the {aspect} of {owner} {product} {opinion}, and the {other} {other_opinion}",
    "i write this because the {aspect} of {owner} {product} {opinion}",
    "{buyer} this {product} {occasion}, and the {aspect} {opinion}",
    "the {aspect} of the {product} {buyer} {occasion} {opinion}, and the {other} {other_opinion}",
    "{giver} gave me this {product}, and the {aspect} {opinion}",
    "{time} the {aspect} of my {product} {opinion}, so {verdict}",
    "{time} i can say the {aspect} of {owner} {product} {opinion}",
    "{time} with this {product}, the {aspect} {opinion}, and the {other} {other_opinion}",
    "{owner} {product} {overall}, and the {aspect} {opinion}, so {verdict}",
)
MIXED = (
    "the {aspect} of {owner} {product} {contrary}, but the {other} {other_opinion}, so {verdict}",
    "the {aspect} of my {product} {opinion}, and although the {other} {other_contrary}, {verdict}",
    "{owner} {product} {overall_contrary}, but the {aspect} {opinion}, so {verdict}",
    "{time} the {aspect} {opinion}, and although the {other} {other_contrary}, {verdict}",
)
MIXED_SHARE = 0.2
MAX_DRAWS = 200


class ProductReviewsConfig(PluginConfig):
    rows: int = Field(gt=0, le=1_000_000, description="reviews, all different")
    seed: NonNegativeInt = 0


class ProductReviews(DataGenerator[ProductReviewsConfig]):
    """Short reviews, columns `text` and `label`: 1, as for half of them, is a satisfied reviewer."""

    @classmethod
    def rows(cls, config: ProductReviewsConfig) -> list[Row]:
        return list(product_reviews(config.rows, seed=config.seed))


def product_reviews(rows: int, *, seed: int) -> list[dict[str, str | int]]:
    """`rows` distinct reviews, each {"text": ..., "label": 1 | 0}; 1 = the reviewer is satisfied.

    The labels are balanced to within one row. A shorter request with the same seed is a prefix of
    a longer one. Raises ValueError when the grammar runs out of new texts.
    """
    rng = Random(seed)
    labels: dict[str, int] = {}
    for label in islice(_balanced_labels(rng), rows):
        labels[_new_review(label, rng, taken=labels)] = label
    return [{"text": text, "label": label} for text, label in labels.items()]


def _balanced_labels(rng: Random) -> Iterator[int]:
    """Endless labels in pairs of one 0 and one 1, in random order: every prefix is balanced."""
    while True:
        first = rng.randrange(2)
        yield first
        yield 1 - first


def _new_review(label: int, rng: Random, *, taken: Container[str]) -> str:
    """A review that is not yet `taken`; gives up after MAX_DRAWS repeats in a row."""
    for _ in range(MAX_DRAWS):
        text = _review(label, rng)
        if text not in taken:
            return text
    raise ValueError(f"the grammar gave no new review in {MAX_DRAWS} draws: ask for fewer rows")


def _review(label: int, rng: Random) -> str:
    """One sentence: every field is drawn, the shape uses those it names."""
    shape = rng.choice(MIXED if rng.random() < MIXED_SHARE else ONE_SIDED)
    family = rng.choice(FAMILIES)
    aspect, other = rng.sample(family.aspects, 2)
    supporting, opposing = OPINIONS[label], OPINIONS[1 - label]
    return shape.format(
        product=rng.choice(family.products),
        aspect=aspect,
        opinion=rng.choice(supporting[aspect]),
        contrary=rng.choice(opposing[aspect]),
        other=other,
        other_opinion=rng.choice(supporting[other]),
        other_contrary=rng.choice(opposing[other]),
        overall=rng.choice(OVERALL[label]),
        overall_contrary=rng.choice(OVERALL[1 - label]),
        verdict=rng.choice(VERDICTS[label]),
        owner=rng.choice(OWNERS),
        buyer=rng.choice(BUYERS),
        giver=rng.choice(GIVERS),
        occasion=rng.choice(OCCASIONS),
        time=rng.choice(TIMES),
    )
