"""Teachers: image classifiers, or ensembles of them, that answer with log-probabilities.

A teacher is shown the replayed uint8 view. Each member resizes it to its own resolution and normalises it in its own
way, on its own device, so networks of different preprocessing can answer together.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_reinforce.licenses import read_license, recorded_name
from hf_reinforce.models.classes import ModelClasses, label_entries, some
from hf_reinforce.models.networks import Member, architecture, module_member, named_member
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.targets import ClassDistribution

ClassMap = str | Sequence[int] | Mapping[str, int | str]

DTYPES = ("float32", "bfloat16", "float16")


class Teacher:
    """One classifier or an ensemble, which answers with the weighted mean of its members' probabilities.

    `load_teacher` makes one from names. An ensemble is what the paper (arXiv:2303.08983) uses for ImageNet+.

    Args:
        members: the networks of the teacher.
        temperature: divides the logits of every member before the softmax; the paper uses 1.
        class_map: the teacher's class index for each class of the dataset. The logits are restricted to these classes
            before the softmax. None: the classes of the targets are the teacher's own.

    Raises:
        ValueError: if there is no member, a weight or the temperature is not positive, or the members have different
            numbers of classes.

    Example:
        import torch
        from hf_reinforce import load_teacher

        teacher = load_teacher("timm/tf_efficientnet_lite0.in1k")
        views = torch.randint(256, (4, 3, 224, 224), dtype=torch.uint8)
        log_probabilities = teacher(views)  # float32 [4, num_classes]
    """

    def __init__(
        self, members: Sequence[Member], temperature: float = 1.0, class_map: Sequence[int] | None = None
    ) -> None:
        weights = [member.weight for member in members]
        if not members or not all(0 < value < math.inf for value in (temperature, *weights)):
            raise ValueError(
                "A teacher needs at least one member, positive weights and a positive temperature; its weights are "
                f"{weights}, its temperature is {temperature}."
            )
        self.members = tuple(members)
        self.temperature = temperature
        counts = [member.count_classes() for member in members]
        if len(set(counts)) > 1:
            found = ", ".join(f"{member.name}: {count}" for member, count in zip(members, counts, strict=True))
            raise ValueError(f"The members of a teacher must have the same classes; their class counts are {found}.")
        self._classes = [ModelClasses(member.class_names, counts[0]) for member in members]
        self._order = list(range(counts[0]))
        own = [member.class_map or self._order for member in members]
        self._maps = [[each[index] for index in (self._order if class_map is None else class_map)] for each in own]
        self._listed = class_map is not None  # whether a class map is recorded although it changes nothing
        self.fitted = False  # whether its classes are those of a dataset
        self._clash = ""  # why nobody can tell which classes of the members are the same

    @property
    def num_classes(self) -> int:
        """Classes that the targets tell apart."""
        return len(self._maps[0])

    @property
    def class_map(self) -> tuple[int, ...] | None:
        """The members' class for each class of the targets; None where it is the same, or not the same for all."""
        first = self._maps[0]
        shared = all(each == first for each in self._maps) and (self._listed or first != self._order)
        return tuple(first) if shared else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes of the targets, from the first member that knows any."""
        self._check_clash()
        first = next((place for place, classes in enumerate(self._classes) if classes.names), 0)
        names = self.members[first].class_names
        return None if names is None else tuple(names[index] for index in self._maps[first])

    def _check_clash(self) -> None:
        if self._clash:
            raise ValueError(self._clash)

    def _with_maps(self, maps: list[list[int]], listed: bool = False, clash: str = "", fit: bool = True) -> "Teacher":
        found = copy(self)
        found._maps, found._listed, found._clash, found.fitted = maps, listed, clash, fit
        return found

    def aligned(self) -> "Teacher":
        """The teacher with its members' classes in the order of the first one that names them.

        Where they cannot be matched by name, the teacher answers only after `with_classes` has said how the classes
        correspond.
        """
        names = next((classes.names for classes in self._classes if classes.names), None)
        if names is None:
            return self
        maps, strangers = self._places(names)
        theirs = [f"{self.members[i].name} has {some(self._classes[i].names) or 'no names'}" for i in strangers]
        clash = (
            "The members of the teacher cannot be matched by the names of their classes: one has "
            f"{some(names)}; {'; '.join(theirs)}. Write the right id2label into each config.json, or pass class_map "
            "(--class_map identity if all have the same classes in the same order)."
        )
        return self._with_maps(maps, clash=clash if strangers else "", fit=False)

    def _places(self, names: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """For each member its class for each of the names, and which members have other classes.

        A member without names is judged by its number of classes, if all others have them in this order; if others
        have names, only a module is.
        """
        found = [classes.places(names) for classes in self._classes]
        order, named = list(range(len(names))), any(classes.names for classes in self._classes)
        in_order = all(each is None or each[0] == order for each in found)
        strangers = []
        for position, (member, classes) in enumerate(zip(self.members, self._classes, strict=True)):
            judged = in_order and not classes.names and (member.kind == "module" or not named)
            if len(names) != classes.count or (found[position] is None and not judged):
                strangers.append(position)
        return [order if each is None else each[0] for each in found], strangers

    def to(self, device: torch.device | str, dtype: str | None = None) -> "Teacher":
        """Moves the networks; with `bfloat16` or `float16` also casts them, see docs/guide.md for what that costs."""
        if dtype not in (None, *DTYPES):
            raise ValueError(f"The dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
        for member in self.members:
            member.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            if dtype is not None:
                member.model.to(dtype=getattr(torch, dtype))
        return self

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Answers for a batch of views.

        Args:
            images: views [B, 3, S, S] on the teacher's device, uint8 or float, with values from 0 to 255. Every member
                resizes and normalises them in its own way.

        Returns:
            Log-probabilities, float32 [B, C].

        Raises:
            ValueError: if the members' classes cannot be matched by name, and `with_classes` has not said how they
                correspond.
        """
        self._check_clash()
        total = sum(member.weight for member in self.members)
        answers = []
        for member, places in zip(self.members, self._maps, strict=True):
            logits = member.logits(images)
            logits = logits if places == self._order else logits[:, places]
            share = torch.tensor(member.weight / total, device=logits.device).log()
            answers.append(F.log_softmax(logits / self.temperature, dim=-1) + share)
        return torch.stack(answers).logsumexp(0)

    def target(self, **options: Any) -> ClassDistribution:
        """What is stored of the answers; `options` are settings of a `ClassDistribution` such as K."""
        known: dict[str, Any] = {"class_names": self.class_names, "temperature": self.temperature}
        return ClassDistribution.of(self.num_classes, **known, class_map=self.class_map, **options)

    def describe(self) -> list[dict[str, Any]]:
        """What `reinforcement.json` records of each member; its licence where its own card states one."""
        found = []
        for member, places in zip(self.members, self._maps, strict=True):
            named = member.kind != "module"
            licensed = read_license(member.name, "model", member.revision) if named and not member.checkpoint else None
            record: dict[str, Any] = {
                "name": recorded_name(member.name) if named else member.name,
                "kind": member.kind,
                "architecture": architecture(member.model),
                "revision": member.revision,
                "weight_hash": member.weight_hash,
                "dtype": str(next(member.model.parameters(), torch.empty(0)).dtype).removeprefix("torch."),
                "weight": member.weight,
                "preprocessing": member.preprocessing.record(),
            }
            record |= {"class_map": places} if self.class_map is None and places != self._order else {}
            found.append(record | ({"license": licensed} if licensed else {}))
        return found

    def with_classes(self, names: Sequence[str] | None, class_map: ClassMap | None = None) -> "Teacher":
        """Fits the teacher to the classes of a dataset, by their names.

        Args:
            names: the dataset's ClassLabel names in order. None for a dataset without labels: its targets are over the
                teacher's own classes.
            class_map: `"identity"` (same classes, same order, other names), the teacher's class index for each class
                of the dataset, or a mapping from the dataset's names to the teacher's names or indices.

        Returns:
            A teacher that shares its networks with this one.

        Raises:
            ValueError: if the classes do not match and no class_map says how they correspond.
        """
        if class_map is None and names is None:
            self._check_clash()
            return self
        if class_map is not None and class_map != "identity":
            return self._with_maps(self._found(names, class_map), listed=True)
        maps, strangers = self._maps, [0] if names is not None and len(names) != self.num_classes else []
        if class_map is None and names is not None:
            maps, strangers = self._places(names)
        if strangers and names is not None:
            theirs = self._classes[strangers[0]]
            raise ValueError(
                f"The classes of the dataset and of the teacher {self.members[strangers[0]].name} differ. Dataset "
                f"({len(names)}): {some(names, 8)}. Teacher ({theirs.count}): {some(theirs.names, 8) or 'no names'}. "
                "Pass class_map (--class_map): 'identity' if they are the same classes in the same order, else the "
                "teacher's class for each class of the dataset."
            )
        return self._with_maps(maps)

    def _found(self, names: Sequence[str] | None, class_map: Any) -> list[list[int]]:
        """For each member its class for each entry of a class map: an index of the teacher's, or a name."""
        if isinstance(class_map, str) or (names is None and isinstance(class_map, Mapping)):
            raise ValueError(
                "class_map (--class_map) must be 'identity', a list of indices, or where the dataset has ClassLabel "
                f"names a mapping of these, not {class_map!r}."
            )
        named = next((classes for classes in self._classes if classes.names), self._classes[0])
        maps = []
        for member, own, classes in zip(self.members, self._maps, self._classes, strict=True):
            known = classes if classes.names else named
            entries = label_entries(known, names, (), class_map)[1].values()
            pairs = [(entry, known.find(entry)) for entry in entries]
            if any(len(found) > 1 or (isinstance(entry, int) and entry >= len(own)) for entry, found in pairs):
                raise ValueError(f"class_map must name one class of {member.name} for each of the dataset's.")
            maps.append([own[entry] if isinstance(entry, int) else found[0] for entry, found in pairs])
        return maps

    def check_processes(self) -> None:
        """Refuses, in a run of several processes, a teacher that has other weights in one of them."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        if PartialState().num_processes == 1:
            return
        everyone = gather_object([[(member.name, member.weight_hash) for member in self.members]])
        for rank, theirs in enumerate(everyone):
            for (name, expected), (_, found) in zip(everyone[0], theirs, strict=False):
                if found != expected:
                    raise ValueError(
                        f"The processes have different teachers: {name} has the weights {expected} in process 0, but "
                        f"{found} in process {rank}; give all of them the same files, or the same module."
                    )


def load_teacher(
    name_or_path: str | nn.Module | Sequence[str | nn.Module],
    *,
    preprocessing: Preprocessing | None = None,
    checkpoint: str | None = None,
    revision: str | None = None,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> Teacher:
    """Loads a teacher by name. Nothing is unpickled, and no remote code runs.

    Args:
        name_or_path: a Hub id or folder of a transformers or timm image classifier, a timm architecture together with
            `checkpoint`, a `torch.nn.Module` together with `preprocessing`, or a sequence of these: an ensemble.
        preprocessing: replaces the networks' own; needed for a module.
        checkpoint: safetensors file, or a `.pt`/`.pth` that `torch.load(weights_only=True)` accepts.
        revision: Hub revision of every member.
        weights: the members' shares in the ensemble, positive, default equal.
        temperature: divides the logits of every member before the softmax.

    Returns:
        A teacher in evaluation mode, on the CPU.

    Raises:
        ValueError: if a member cannot be found or read, its weights are not those of its network, or its
            preprocessing is unknown.

    Example:
        from hf_reinforce import load_teacher

        teacher = load_teacher("timm/tf_efficientnet_lite0.in1k")
        ensemble = load_teacher(["timm/tf_efficientnet_lite0.in1k", "google/mobilenet_v2_1.0_224"], weights=[2, 1])
    """
    entries = [name_or_path] if isinstance(name_or_path, (str, nn.Module)) else list(name_or_path)
    if weights is not None and len(weights) != len(entries):
        raise ValueError(f"weights must have one entry per member: {len(entries)} members, {len(weights)} weights.")
    members = []
    for entry, weight in zip(entries, weights or [1.0] * len(entries), strict=True):
        if isinstance(entry, nn.Module):
            member = module_member(entry)
        else:
            member = named_member(entry, checkpoint, revision, preprocessing)
        chosen = preprocessing or member.preprocessing
        if chosen is None:
            raise ValueError(f"The preprocessing of the teacher {member.name} is unknown; pass preprocessing=.")
        members.append(replace(member, preprocessing=chosen, weight=float(weight)))
    return Teacher(members, temperature).aligned()
