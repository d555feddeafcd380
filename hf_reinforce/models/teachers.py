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
from hf_reinforce.models.classes import some
from hf_reinforce.models.ensembles import align, classes_of, find_entries, match, other_classes
from hf_reinforce.models.networks import Member, module_member, named_member
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.records import architecture
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
        if not members or not all(0 < value < math.inf for value in (temperature, *(m.weight for m in members))):
            raise ValueError("A teacher needs at least one member, positive weights and a positive temperature.")
        self.members = tuple(members)
        self.temperature = temperature
        self.class_map = None if class_map is None else tuple(class_map)
        counts = [member.count_classes() for member in members]
        if len(set(counts)) > 1:
            found = ", ".join(f"{member.name}: {count}" for member, count in zip(members, counts, strict=True))
            raise ValueError(f"The members of a teacher must have the same classes; their class counts are {found}.")
        self._own_classes = counts[0]
        self.fitted = False  # whether its classes are those of a dataset
        self._clash = ""  # why nobody can tell which classes of the members are the same

    @property
    def num_classes(self) -> int:
        """Classes that the targets tell apart."""
        return len(self._maps()[0])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes of the targets, from the first member that knows any.

        Raises:
            ValueError: as `__call__`.
        """
        self._check_clash()
        named = [place for place, member in enumerate(self.members) if classes_of(member, self._own_classes).names]
        first = next(iter(named), 0)
        names = self.members[first].class_names
        return None if names is None else tuple(names[index] for index in self._maps()[first])

    def _maps(self) -> list[list[int]]:
        """For each member its class for each class of the targets."""
        own = [list(member.class_map or range(self._own_classes)) for member in self.members]
        return own if self.class_map is None else [[each[index] for index in self.class_map] for each in own]

    def _with_maps(
        self, maps: Sequence[Sequence[int]], clash: str = "", fitted: bool = True, listed: bool = False
    ) -> "Teacher":
        """This teacher with other `_maps`, in the simplest form: one for all members where they are the same, and none
        where it says nothing, unless the user has `listed` it."""
        same = all(list(each) == list(maps[0]) for each in maps)
        plain = list(range(self._own_classes))
        own = [None if same or list(each) == plain else tuple(each) for each in maps]
        found = copy(self)
        found.members = tuple(replace(m, class_map=each) for m, each in zip(self.members, own, strict=True))
        found.class_map = tuple(maps[0]) if same and (listed or list(maps[0]) != plain) else None
        found.fitted, found._clash = fitted, clash
        return found

    def _check_clash(self) -> None:
        if self._clash:
            raise ValueError(self._clash)

    def aligned(self) -> "Teacher":
        """The teacher with its members' classes in the order of the first one that names them.

        Where they cannot be matched by name, the teacher answers only after `with_classes` has said how the classes
        correspond. A module without names (`kind` is `"module"`) is taken to have them in that order.
        """
        return self._with_maps(*align(self.members, self._own_classes, self._maps()), fitted=False)

    def to(self, device: torch.device | str, dtype: str | None = None) -> "Teacher":
        """Moves the networks; with `bfloat16` or `float16` also casts them, see docs/guide.md for what that costs."""
        if dtype not in (None, *DTYPES):
            raise ValueError(f"The teacher's dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
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
        for member in self.members:
            logits = member.logits(images)
            for chosen in (member.class_map, self.class_map):
                logits = logits if chosen is None else logits[:, list(chosen)]
            share = torch.tensor(member.weight / total, device=logits.device).log()
            answers.append(F.log_softmax(logits / self.temperature, dim=-1) + share)
        return torch.stack(answers).logsumexp(0)

    def target(self, **options: Any) -> ClassDistribution:
        """What is stored of the answers.

        Args:
            options: settings of a `ClassDistribution` that the teacher does not know, such as K.

        Raises:
            ValueError: if a setting is out of range.
            TypeError: if there is no such setting, or the teacher knows it.
        """
        known: dict[str, Any] = {"class_names": self.class_names, "temperature": self.temperature}
        return ClassDistribution.of(self.num_classes, **known, class_map=self.class_map, **options)

    def describe(self) -> list[dict[str, Any]]:
        """What `reinforcement.json` records of each member; its licence where its own card states one."""
        return [
            {
                "name": recorded_name(member.name) if member.kind != "module" else member.name,
                "kind": member.kind,
                "architecture": architecture(member.model),
                "revision": member.revision,
                "weight_hash": member.weight_hash,
                "dtype": str(next(member.model.parameters(), torch.empty(0)).dtype).removeprefix("torch."),
                "weight": member.weight,
                "preprocessing": member.preprocessing.record(),
                **({} if member.class_map is None else {"class_map": list(member.class_map)}),
                **_license(member),
            }
            for member in self.members
        ]

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
        if isinstance(class_map, str) and class_map != "identity":
            raise ValueError(
                f"class_map (--class_map) must be 'identity', a list of indices or a mapping, not {class_map!r}."
            )
        if class_map is None:
            if names is not None:
                return self._with_maps(match(self.members, self._own_classes, tuple(names)))
            self._check_clash()
            return self
        if names is None and isinstance(class_map, Mapping):
            raise ValueError(
                "A class_map by name needs a dataset with ClassLabel names; give --class_map a list of indices."
            )
        if class_map == "identity":
            if names is not None and len(names) != self.num_classes:
                raise other_classes(tuple(names), self.members[0], self.num_classes)
            return self._with_maps(self._maps())
        if isinstance(class_map, Mapping):
            missing = [name for name in names or () if name not in class_map]
            if missing:
                raise ValueError(
                    f"class_map has no entry for the dataset's classes {some(missing)}; add them to --class_map."
                )
            entries: list[int | str] = [class_map[name] for name in names or ()]
        else:
            entries = list(class_map)
        valid = [not isinstance(e, bool) and (isinstance(e, str) or 0 <= e < self.num_classes) for e in entries]
        if (names is not None and len(entries) != len(names)) or not all(valid):
            raise ValueError(
                f"class_map must give one teacher class in [0, {self.num_classes}) for each of the dataset's "
                f"{len(names or entries)} classes; it has {len(entries)} entries: {some(entries)}; mend --class_map."
            )
        return self._with_maps(find_entries(self.members, self._own_classes, self._maps(), entries), listed=True)

    def check_processes(self) -> None:
        """Refuses, in a run of several processes, a teacher that is not the same in all of them.

        Raises:
            ValueError: naming the member and the process.
        """
        from accelerate import PartialState
        from accelerate.utils import gather_object

        if PartialState().num_processes == 1:
            return
        own = [(member.name, member.weight_hash) for member in self.members]
        for rank, theirs in enumerate(everyone := gather_object([own])):
            for (name, expected), found in zip(everyone[0], theirs, strict=False):
                if found[1] != expected:
                    raise ValueError(
                        f"The processes have different teachers: {name} has the weights {expected} in process 0, but "
                        f"{found[0]} has {found[1]} in process {rank}. Give all of them the same files; in Python, "
                        "the same module."
                    )


def _license(member: Member) -> dict[str, str]:
    named = member.kind != "module" and member.checkpoint is None
    found = read_license(member.name, "model", member.revision) if named else None
    return {"license": found} if found else {}


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
