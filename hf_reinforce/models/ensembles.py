"""Which classes of the members of a teacher are the same, and which are those of a dataset."""

from collections.abc import Sequence

from hf_reinforce.models.classes import ModelClasses, some
from hf_reinforce.models.networks import Member


def classes_of(member: Member, count: int) -> ModelClasses:
    """The classes of a member, of which there are `count`."""
    return ModelClasses(member.class_names, count)


def align(members: Sequence[Member], count: int, maps: list[list[int]]) -> tuple[list[list[int]], str]:
    """Brings the classes of all members into the order of the first one that names them.

    A module without names (`kind` is `"module"`) is taken to have them in that order.

    Args:
        members: the members.
        count: classes of each.
        maps: for each member its class for each class of the teacher, where names say nothing.

    Returns:
        The maps, and in a sentence what could not be matched; empty if all could.
    """
    classes = [classes_of(member, count) for member in members]
    reference = next((each for each in classes if each.names), None)
    if reference is None:
        return maps, ""
    maps, strangers = list(maps), []
    for position, (member, each) in enumerate(zip(members, classes, strict=True)):
        found = each.places(reference.names)
        if found is not None:
            maps[position] = found[0]
        elif each.names or member.kind != "module":
            strangers.append(f"{member.name} has {some(each.names) or 'no names'}")
    clash = (
        "The members of the teacher cannot be matched by the names of their classes: one has "
        f"{some(reference.names)}; {'; '.join(strangers)}. Write the right id2label into each config.json, or pass "
        "class_map (--class_map identity if all have the same classes in the same order)."
    )
    return maps, clash if strangers else ""


def match(members: Sequence[Member], count: int, names: tuple[str, ...]) -> list[list[int]]:
    """For each member its class for each class of a dataset, which must be all of its classes.

    Raises:
        ValueError: if they are not.
    """
    classes = [classes_of(member, count) for member in members]
    found = [each.places(names) for each in classes]
    order = list(range(len(names)))
    maps = []
    for member, each, place in zip(members, classes, found, strict=True):
        # Without names a network is judged by its count, unless others show that orders may differ.
        judged = member.kind == "module" or not any(other.names for other in classes)
        judged = judged and not each.names and all(other is None or other[0] == order for other in found)
        if len(names) != count or (place is None and not judged):
            raise other_classes(names, member, count)
        maps.append(order if place is None else place[0])
    return maps


def other_classes(names: tuple[str, ...], member: Member, count: int) -> ValueError:
    """The error for a member whose classes are not those of a dataset."""
    return ValueError(
        f"The classes of the dataset and of the teacher {member.name} differ. "
        f"Dataset ({len(names)}): {some(names, 8)}. "
        f"Teacher ({count}): {some(classes_of(member, count).names, 8) or 'no names'}. "
        "Pass class_map (--class_map): 'identity' if they are the same classes in the same order, else the teacher's "
        "class for each class of the dataset."
    )


def find_entries(
    members: Sequence[Member], count: int, maps: Sequence[Sequence[int]], entries: Sequence[int | str]
) -> list[list[int]]:
    """For each member its class for each entry: a class of the teacher by index, or of each member by name.

    Raises:
        ValueError: for a name that is no class.
    """
    classes = [classes_of(member, count) for member in members]
    found: list[list[int]] = [[] for _ in members]
    for entry in entries:
        for own, places, each in zip(maps, found, classes, strict=True):
            if isinstance(entry, int):
                places.append(own[entry])
                continue
            named = each if each.names else next((other for other in classes if other.names), each)
            try:
                places.extend(named.find(entry))
            except ValueError as error:
                raise ValueError(
                    f"class_map names the class {entry!r}, which no member of the teacher has, or not each of them; "
                    "mend --class_map."
                ) from error
    return found
