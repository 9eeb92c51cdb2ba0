"""Wordings, names and noise of the ``ruler`` task; all of it ours."""

from __future__ import annotations

from itertools import product

HEAD = "Somewhere in the text below, {kind}s are registered under names. You will be asked about them at its end.\n\n"
NEEDLE = " One {kind} registered under {key} is {value}."
ONE = "\n\nWhich {kind} is registered under {keys}?"
ALL_OF_ONE = "\n\nWhich {kind}s are registered under {keys}? Name all of them."
ONE_OF_EACH = "\n\nWhich {kind}s are registered under {keys}? Name one for each."
KINDS = {"words": "word", "numbers": "number", "uuid": "UUID"}
"""What a value is called, by its kind."""

NOISE = (
    " Rain fell on the roof all afternoon.",
    " A kettle hummed in the kitchen.",
    " The two clocks were a minute apart.",
    " Nobody came to the door.",
    " Then it was evening again.",
)
"""A haystack without content: these sentences, over and over."""

_FIRST = """
amber ancient arctic autumn bitter blazing blue bold brave brief bright brisk broken bronze calm candid careful
cheerful clever cloudy cobalt copper cosmic crimson crisp curious daring dim distant dusty eager early earnest
electric elegant emerald empty fabled faint famous fearless fierce final floral foggy formal fragrant frosty frozen
gentle giant gilded glossy golden graceful grand grassy gravel green hasty hidden hollow honest humble icy idle indigo
iron ivory jagged jolly keen lavish lazy lively lonely loyal lucky lunar magnetic marble mellow merry mighty misty
modest mossy narrow nimble noble nocturnal northern odd olive opal orange ornate pale patient peaceful plaid playful
plump polar polished proud purple quaint quick quiet radiant rapid rare restless rigid roaming rosy round royal rugged
rustic rusty sandy scarlet secret serene shady sharp shiny silent silken silver simple sleepy slender smoky smooth
snowy soft solar solemn solid sonic spiral spotted stately steady stormy subtle sunny swift tangled tender thirsty
tidal tiny topaz tranquil tropical upper urban vacant velvet vivid wandering warm western wild windy wise wooden woven
young zesty
"""
_SECOND = """
acorn anchor antler apron arrow badge bagel bamboo banner barley barrel basin basket beacon bell bench bicycle biscuit
blanket blossom boulder bracelet branch bridge broom bucket button cabin cactus candle canoe canyon carpet castle
cedar cellar chapel cherry chimney cinder circle cliff clover comet compass cradle crater crayon cricket crystal
curtain cushion daisy desert dragon drum easel echo ember engine falcon feather fern ferry fiddle flame flute forest
fossil fountain galaxy garden gate geyser glacier glove goblet granite grove guitar hammer harbor hatchet hazel helmet
hinge hollyhock horizon hornet island jacket jasmine jungle kettle kite ladder lagoon lantern ledger lemon lever
lighthouse lilac locket loom magnet mango mantle maple marsh meadow melon meteor mirror mitten monsoon mosaic mountain
mushroom napkin needle nest oasis ocean orchard otter oyster paddle palace papaya parcel parrot pebble pepper petal
piano pillow planet plaza plow pocket pony prairie prism pulley puzzle quarry quilt rabbit raft ravine ribbon river
robin rocket saddle sail sandal satchel saucer shadow shell shovel sickle signal sparrow spindle spruce statue stream
sunset swan tablet tavern temple thicket thimble thunder timber torch tower trellis trumpet tulip tunnel turret valley
vase village violin volcano wagon walnut waterfall weaver whistle willow window winter wizard yarn zeppelin
"""  # fmt: skip
WORDS = tuple(f"{first}-{second}" for first, second in product(_FIRST.split(), _SECOND.split()))
"""Names of two words, some 35,000 of them."""
