"""Teachers: image classifiers, or ensembles of them, that answer with log-probabilities.

A teacher is shown the replayed uint8 view. Each member resizes it to its own resolution and normalises it in its own
way, on its own device, so networks of different preprocessing can answer together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_reinforce.classifiers import Member, architecture, module_member, named_member
from hf_reinforce.licenses import read_license, recorded_name
from hf_reinforce.preprocessing import Preprocessing

ClassMap = str | Sequence[int] | Mapping[str, int | str]


DTYPES = ("float32", "bfloat16", "float16")


class Teacher:
    """One or several classifiers; several answer with the weighted mean of their probabilities, as in the paper.

    Args:
        members: the networks.
        temperature: every member's logits are divided by it before the softmax; the paper uses 1.
        class_map: for each class of the data set, the index of the teacher's class. The logits are restricted to these
            classes before the softmax. None: the classes are the teacher's own.

    Raises:
        ValueError: for no member, a weight or temperature that isn't positive, or members with different class counts.
    """

    def __init__(
        self, members: Sequence[Member], temperature: float = 1.0, class_map: Sequence[int] | None = None
    ) -> None:
        if not members or temperature <= 0 or any(member.weight <= 0 for member in members):
            raise ValueError("A teacher needs at least one member, positive weights and a positive temperature.")
        self.members = tuple(members)
        self.temperature = temperature
        self.class_map = None if class_map is None else tuple(class_map)
        counts = [self._count(member) for member in members]
        if len(set(counts)) > 1:
            found = ", ".join(f"{member.name}: {count}" for member, count in zip(members, counts, strict=True))
            raise ValueError(f"The members of a teacher must have the same classes; their class counts are {found}.")
        self._own_classes = counts[0]

    @staticmethod
    def _count(member: Member) -> int:
        device = next(member.model.parameters(), torch.empty(0)).device
        size = member.preprocessing.image_size
        with torch.inference_mode():
            return int(member.logits(torch.zeros(1, 3, size, size, device=device)).shape[-1])

    @property
    def num_classes(self) -> int:
        """Classes that the targets tell apart."""
        return self._own_classes if self.class_map is None else len(self.class_map)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes of the targets, from the first member that knows any."""
        names = next((member.class_names for member in self.members if member.class_names), None)
        return names if names is None or self.class_map is None else tuple(names[index] for index in self.class_map)

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
        """The teacher's answer.

        Args:
            images: views [B, 3, S, S] on the teacher's device, uint8 or float, values 0 to 255.

        Returns:
            float32 [B, C], log-probabilities.
        """
        total = sum(member.weight for member in self.members)
        answers = []
        for member in self.members:
            logits = member.logits(images)
            if self.class_map is not None:
                logits = logits[:, list(self.class_map)]
            share = torch.tensor(member.weight / total, device=logits.device).log()
            answers.append(F.log_softmax(logits / self.temperature, dim=-1) + share)
        return torch.stack(answers).logsumexp(0)

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
                **_license(member),
            }
            for member in self.members
        ]

    def with_classes(self, names: Sequence[str] | None, class_map: ClassMap | None = None) -> "Teacher":
        """Fits the teacher to the classes of a data set.

        Args:
            names: the data set's ClassLabel names in order; None for a data set without labels, whose targets are then
                over the teacher's own classes.
            class_map: `"identity"` (same classes, same order, other names), the teacher's class index for each class
                of the data set, or a mapping from the data set's names to the teacher's names or indices.

        Raises:
            ValueError: if the classes do not match and no class_map says how they correspond.
        """
        if names is None:
            if class_map is not None and not isinstance(class_map, Sequence):
                raise ValueError("A class_map by name needs a data set with ClassLabel names; give a list of indices.")
            indices = None if class_map is None or isinstance(class_map, str) else list(class_map)
        else:
            indices = self._indices(tuple(names), class_map)
        return Teacher(self.members, self.temperature, indices)

    def _indices(self, names: tuple[str, ...], class_map: ClassMap | None) -> list[int] | None:
        if class_map is None or class_map == "identity":
            for member in self.members:
                check_classes(names, member, self._own_classes, compare_names=class_map is None)
            return None
        if isinstance(class_map, Mapping):
            missing = [name for name in names if name not in class_map]
            if missing:
                raise ValueError(f"class_map has no entry for the data set's classes {_short(missing)}.")
            class_map = [self._index(class_map[name]) for name in names]
        if isinstance(class_map, str):
            raise ValueError(f"class_map must be 'identity', a list of indices or a mapping, not {class_map!r}.")
        if len(class_map) != len(names) or not all(0 <= index < self._own_classes for index in class_map):
            raise ValueError(
                f"class_map must give one teacher class in [0, {self._own_classes}) for each of the data set's "
                f"{len(names)} classes; it has {len(class_map)} entries: {_short(class_map)}."
            )
        return list(class_map)

    def _index(self, entry: int | str) -> int:
        if isinstance(entry, int):
            return entry
        names = next((member.class_names for member in self.members if entry in (member.class_names or ())), None)
        if names is None:
            raise ValueError(f"class_map names the class {entry!r}, which no member of the teacher has.")
        return names.index(entry)


def _license(member: Member) -> dict[str, str]:
    named = member.kind != "module" and member.checkpoint is None
    found = read_license(member.name, "model", member.revision) if named else None
    return {"license": found} if found else {}


def check_classes(names: tuple[str, ...], member: Member, count: int, compare_names: bool = True) -> None:
    """Refuses a member whose classes are not the data set's.

    Raises:
        ValueError: if the counts differ, or (unless `compare_names` is False) both sides have names and those differ.
    """
    theirs = member.class_names
    known = theirs is not None and not all(name.startswith("LABEL_") for name in theirs)
    same = len(names) == count and (
        not compare_names or not known or [_plain(name) for name in names] == [_plain(name) for name in theirs or ()]
    )
    if not same:
        raise ValueError(
            f"The classes of the data set and of the teacher {member.name} differ. "
            f"Data set ({len(names)}): {_short(names)}. Teacher ({count}): {_short(theirs) if known else 'no names'}. "
            "Pass class_map: 'identity' if they are the same classes in the same order, else the teacher's class "
            "for each class of the data set."
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def _short(items: Sequence[Any] | None, most: int = 8) -> str:
    items = list(items or [])
    return ", ".join(map(str, items[:most])) + (f", ... ({len(items) - most} more)" if len(items) > most else "")


def load_teacher(
    name_or_path: str | nn.Module | Sequence[str | nn.Module],
    *,
    preprocessing: Preprocessing | None = None,
    checkpoint: str | None = None,
    revision: str | None = None,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> Teacher:
    """Loads a teacher; nothing is unpickled and no remote code runs.

    Args:
        name_or_path: a Hub id or folder of a transformers or timm image classifier, a timm architecture together with
            `checkpoint`, a `torch.nn.Module` together with `preprocessing`, or a sequence of these: an ensemble.
        preprocessing: replaces the networks' own; needed for a module.
        checkpoint: safetensors file, or a `.pt`/`.pth` that `torch.load(weights_only=True)` accepts.
        revision: Hub revision of every member.
        weights: ensemble weights, one per member.
        temperature: see `Teacher`.

    Raises:
        ValueError: if a member cannot be found or read, or its preprocessing is unknown.
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
    return Teacher(members, temperature)
