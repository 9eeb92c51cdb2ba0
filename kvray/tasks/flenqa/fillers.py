"""The sentences around FLenQA's key facts: templates that neither give nor contradict an answer.

They hold no relation, attribute or property of :mod:`kvray.tasks.flenqa.facts`, and neither "true" nor "false".
"""

from __future__ import annotations

from kvray.tasks import world
from kvray.tasks.rng import Draws, below

_SLOTS: dict[str, tuple[str, ...]] = {
    "city": world.CITIES[::2],
    "town": world.CITIES[1::2],
    "topic": tuple(f"the history of {trade}" for trade in world.TRADES),
    "skill": (
        "mend a net", "bake rye bread", "carve a spoon", "read a map", "tune a fiddle", "bind a book", "sharpen a saw",
        "sail a dinghy", "graft an apple tree", "plaster a chimney", "weave a basket", "keep bees",
    ),
    "thing": (
        "a tin whistle", "a basket of pears", "an empty jar", "a folded map", "a broken umbrella", "a pair of skates",
        "a box of candles", "a wooden duck", "a rolled rug", "a bag of walnuts", "a set of chisels", "a cracked bowl",
    ),
    "food": (
        "plum jam", "barley soup", "smoked trout", "onion bread", "goat cheese", "honey cake", "pickled beets",
        "roast chestnuts", "pea stew", "apple butter",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "event": (
        "a harvest fair", "a wedding", "the opening of a bridge", "a chess evening", "a boat race", "an auction",
        "a lecture on comets", "a village dance",
    ),
    "work": (
        "a catalogue of mosses", "repairs to the ferry", "a history of the mill", "the accounts of the choir",
        "plans for an orchard", "a dictionary of knots", "a model of the harbour", "the timetable of the post coach",
    ),
}  # fmt: skip

FILLERS: dict[str, tuple[str, ...]] = {
    "pair": (
        "{x} and {y} have known each other since they both moved to {city}.",
        "The two met at {event} and have exchanged letters ever since.",
        "On {day}s they share a table at the inn by the station.",
        "{y} keeps a notebook of everything that {x} says about {topic}.",
        "Neighbours see {x} and {y} walking along the canal with {thing}.",
        "It was {x} who first asked {y} to help with {work}.",
        "Hardly a week goes by in which they do not argue about {topic}.",
        "A photograph of both hangs in the post office of {town}.",
        "{x} once spent a whole winter showing {y} how to {skill}.",
        "When guests come, {y} serves {food} and {x} tells stories about {city}.",
        "Their families rent the same cottage every summer.",
        "Last year {y} sent {x} a parcel with {thing} in it.",
        "Neither of them has ever been to {town}.",
        "People in {city} like to mention both names in one breath.",
        "A cousin of {x} works with {y} on {work}.",
        "They sing in the same choir, which practises on {day}s.",
    ),
    "occupant": (
        "{x} brought along {thing} and some {food}.",
        "A cup of tea stands within reach of {x}, still warm.",
        "{x} is waiting for a letter about {work} and does not want to be disturbed.",
        "Now and then {x} hums a tune that is popular in {city}.",
        "Nobody has called for {x} since {day}.",
        "For the moment {x} seems to be busy with {work}.",
        "Apart from the ticking of a clock, hardly a sound can be heard.",
        "Earlier {x} talked at length about {topic} to anyone who would listen.",
        "The dog that belongs to {x} sleeps on a folded coat.",
        "{x} has promised to {skill} before supper.",
        "A friend of {x} is expected on the evening coach from {town}.",
        "In the afternoon {x} means to write to somebody in {city}.",
    ),
    "room": (
        "Visitors to {r} are asked to wipe their shoes.",
        "Somebody has left {thing} on the windowsill of {r}.",
        "{r} was furnished in the year of the great flood and has hardly been touched since.",
        "The door of {r} creaks whenever the wind comes from {city}.",
        "On {day}s a faint smell of {food} drifts into {r}.",
        "A shelf in the corner holds a row of books about {topic}.",
        "The household likes to show {r} to its guests.",
        "The lamp by the door was a present from a cousin in {town}.",
        "Every spring the curtains are taken down and beaten.",
        "An inventory lists everything in {r}, down to the last candle.",
        "Children are told not to run in {r}.",
        "A carpenter from {town} spent a month on the cupboards of {r}.",
    ),
    "always": ("The hallway next to {r} is {other}.",),
    "person": (
        "{x} has a small house in {city} with a pear tree behind it.",
        "Most of the week {x} is occupied with {work}.",
        "On {day}s {x} goes to the market, looking for {food}.",
        "For many years {x} has collected postcards of {town}.",
        "{x} learned how to {skill} from an aunt.",
        "Last winter {x} travelled by sledge and lost {thing} on the way.",
        "Whoever meets {x} soon hears about {topic}.",
        "{x} feeds the ducks twice a day.",
        "At {event} {x} won a prize for a pie.",
        "{x} writes everything down in a notebook with a linen cover.",
        "Every evening {x} walks to the bridge and back.",
        "The neighbours of {x} come by to borrow {thing}.",
        "{x} was once a passenger on the ferry to {city}.",
        "A nephew of {x} studies {topic}.",
        "In spring {x} paints the fence and oils the gate.",
        "Nobody remembers when {x} first tasted {food}.",
    ),
}
"""Templates by kind of fact; "always" goes with every room."""


def slots(words: Draws) -> dict[str, str]:
    """Fill the slots of one paragraph's templates from random words, one each."""
    return {
        name: values[int(below(words[-2 - index], len(values)))] for index, (name, values) in enumerate(_SLOTS.items())
    }
