"""The made-up world: groups that share nobody, values that no name or other value contains."""

from kvray.tasks import world


def test_groups_share_nobody_and_names_are_unique() -> None:
    names = {group: [world.name_of(group, n) for n in range(world.group_size(group))] for group in world._BOUNDS}
    everyone = [name for group in names.values() for name in group]
    assert len(everyone) == len(set(everyone)) == len(world.FIRST_NAMES) * len(world.LAST_NAMES)
    assert len(names["known"]) == world.KNOWN_PEOPLE


def test_no_value_is_contained_in_another_or_in_a_name() -> None:
    # The scorer looks for a value anywhere in the answer, which restates the name.
    values = [value.lower() for relation in world.RELATIONS.values() for value in relation]
    names = " ".join((*world.FIRST_NAMES, *world.LAST_NAMES)).lower()
    assert len(values) == len(set(values))
    assert [(a, b) for a in values for b in values if a != b and a in b] == []
    assert [value for value in values if value in names] == []


def test_what_is_known_does_not_change() -> None:
    # The bundled weights know these facts: whoever changes them must pretrain anew.
    known = world.KNOWN_PEOPLE
    told = [world.fact(world.name_of("known", n), "trade", world.known_value(n, "trade")) for n in (0, known - 1)]
    assert told == ["The trade of Halsk Ostley is gilding", "The trade of Istha Morford is tailoring"]
