"""The facts that needles state: made-up ones about made-up people, for haystacks of any text; all of it ours.

A fact reads "The special ingredient of Belda Cranford's soup is saffron", is asked as "What is the special ingredient
of Belda Cranford's soup?", and an answer restates it up to the value (the paper's answer template at work). The people
are :mod:`kvray.tasks.world`'s, so that those of training and of evaluation are apart by construction.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Facts of one kind.

    Attributes:
        subject: what a fact is about, with ``{name}``.
        values: what it can be; no value is part of another one, of any subject or of a question.
    """

    subject: str
    values: tuple[str, ...]

    def fact(self, name: str, value: str) -> str:
        """Word a fact, without its full stop."""
        return f"{self.subject.format(name=name)} is {value}"

    def question(self, name: str) -> str:
        """Word the question that a fact answers."""
        subject = self.subject.format(name=name)
        return f"What is {subject[0].lower()}{subject[1:]}?"


def _family(subject: str, values: str) -> Family:
    return Family(subject, tuple(value.strip() for value in values.split(",")))


FAMILIES = (
    _family(
        "The special ingredient of {name}'s soup",
        "saffron, smoked paprika, juniper berries, lemongrass, star anise, burnt butter, pickled ginger, fennel "
        "seed, white miso, tamarind, caraway, dried lime, black garlic, sorrel, horseradish, nutmeg",
    ),
    _family(
        "The instrument that {name} plays at weddings",
        "the hurdy-gurdy, the bassoon, the glockenspiel, the accordion, the mandolin, the nose flute, the zither, "
        "the tuba, the theremin, the bagpipes, the kazoo, the harpsichord, the oboe, the banjo, the marimba, the "
        "dulcimer",
    ),
    _family(
        "The color of {name}'s front door",
        "turquoise, mustard yellow, crimson, pale lilac, bottle green, apricot, slate grey, cobalt blue, ivory, "
        "magenta, rust brown, peacock blue, salmon pink, jet black, olive drab, coral red",
    ),
    _family(
        "The thing that {name} collects in jars",
        "sea glass, brass buttons, acorn caps, postage stamps, ticket stubs, fountain pen nibs, marbles, thimbles,"
        " dead batteries, pebbles, bottle corks, puzzle pieces, paper clips, seashells, old keys, beeswax",
    ),
    _family(
        "The best way to spend a morning in {name}'s village",
        "rowing across the pond, feeding the geese, ringing the church bells, picking gooseberries, flying a kite,"
        " painting the bridge, watching the ferry, baking flatbread, climbing the water tower, mending nets, "
        "reading on the pier, counting swallows, playing chess in the square, digging for clams, chasing the "
        "goats, sorting chestnuts",
    ),
    _family(
        "The name of {name}'s first boat",
        "Patient Otter, Lucky Marigold, Second Thought, Northern Biscuit, Quiet Thunder, Morning Pickle, Velvet "
        "Anchor, Rusty Comet, Little Tempest, Borrowed Time, Copper Pelican, Blue Umbrella, Sleepy Admiral, Plain "
        "Jane, Silver Turnip, Wandering Spoon",
    ),
    _family(
        "The reason why {name} moved to the coast",
        "a broken radio, the cheap oysters, an old promise, a job at the lighthouse, hay fever, a lost bet, the "
        "piano teacher, a misread map, the long sunsets, a cousin's bakery, the flat roads, a quarrel over a "
        "fence, an inherited greenhouse, the surfing, a leaking roof, the quiet library",
    ),
    _family(
        "The material of {name}'s walking stick",
        "ebony, driftwood, carbon fiber, whalebone, bamboo, cherry wood, wrought iron, silver birch, hickory, "
        "aluminum, polished ash, willow, recycled plastic, rosewood, blackthorn, brushed steel",
    ),
    _family(
        "The subject of {name}'s longest essay",
        "the history of umbrellas, tidal mills, forgotten alphabets, traffic lights, the ethics of zoos, bee "
        "dances, medieval tax rolls, cloud names, card tricks, railway gauges, the taste of rain, ship ballast, "
        "bread ovens, moss gardens, lost property offices, rope bridges",
    ),
    _family(
        "The dessert that {name} never shares",
        "plum crumble, pistachio halva, rhubarb tart, treacle sponge, lemon posset, burnt custard, poppy seed "
        "strudel, baked quince, coconut sorbet, almond brittle, fig pudding, ricotta doughnuts, blackberry fool, "
        "walnut baklava, pear sabayon, ginger parkin",
    ),
    _family(
        "The present that {name} gave to the mayor",
        "a pocket sundial, a carved walrus, a crate of oranges, a silk parasol, a barometer, a pair of skates, a "
        "stuffed owl, a singing bowl, a box of fireworks, a wool blanket, a spyglass, a clay whistle, a glass "
        "chessboard, a wind chime, a typewriter, a pickle fork",
    ),
    _family(
        "The hiding place of {name}'s spare key",
        "under the beehive, behind the rain barrel, inside a watering can, above the stable lamp, in the sugar "
        "tin, beneath a loose brick, inside the cuckoo clock, on top of the woodpile, in a hollow log, under the "
        "third flowerpot, behind the weather vane, in the piano stool, inside an old boot, under the doormat, in "
        "the letterbox, behind the portrait",
    ),
)
"""Twelve kinds of facts with sixteen values each."""
