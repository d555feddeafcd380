"""Teachers: image classifiers, or ensembles of them, that answer with log-probabilities.

A teacher is shown the replayed uint8 view. Each member resizes it to its own resolution and normalises it in its own
way, on its own device, so networks of different preprocessing can answer together.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from hf_reinforce.local import resolve

ClassMap = str | Sequence[int] | Mapping[str, int | str]


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its input.

    Attributes:
        image_size: side of the square input in pixels.
        mean: per-channel mean, for values scaled to [0, 1].
        std: per-channel standard deviation, likewise.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
        crop_pct: share of the shorter side that evaluation keeps. Views are already crops, so a teacher ignores it.
    """

    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """Resizes and normalises views [B, 3, S, S], uint8 or float, values 0 to 255; float32 on the same device."""
        images = images.float() / 255
        if images.shape[-1] != self.image_size or images.shape[-2] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        return normalize(images, self.mean, self.std)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(images - mean) / std` per channel, for float images [B, 3, H, W] in [0, 1]."""
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    return (images - shift) / torch.tensor(std, device=images.device).view(-1, 1, 1)


@dataclass(frozen=True)
class Member:
    """One network of a teacher.

    Attributes:
        model: takes normalised images [B, 3, S, S]; returns logits [B, C] or an output with `.logits`.
        preprocessing: how it wants its input.
        name: Hub id, folder or the module's class.
        kind: key of `TEACHER_KINDS`, or `"module"`.
        class_names: names of its classes, where it knows them.
        revision: Hub revision, where one was asked for.
        checkpoint: file of its weights, where it is a bare timm architecture.
        weight: share of its probabilities in the ensemble, before normalisation.
        weight_hash: xxh3-64, hex, of its weights as they were loaded.
    """

    model: nn.Module
    preprocessing: Preprocessing
    name: str
    kind: str
    class_names: tuple[str, ...] | None = None
    revision: str | None = None
    checkpoint: str | None = None
    weight: float = 1.0
    weight_hash: str = ""

    def __post_init__(self) -> None:
        if not self.weight_hash:
            object.__setattr__(self, "weight_hash", weight_hash(self.model))

    def __reduce__(self) -> Any:
        # `datasets.map` hashes and copies what it maps: a named network travels as its name, not as its weights.
        if self.kind == "module":
            return super().__reduce__()
        dtype = next(self.model.parameters()).dtype
        return _reload, (
            self.name,
            self.checkpoint,
            self.revision,
            self.preprocessing,
            self.weight,
            self.weight_hash,
            dtype,
        )

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 for views [B, 3, S, S] with values 0 to 255."""
        parameter = next(self.model.parameters(), None)
        inputs = self.preprocessing(images).contiguous(memory_format=torch.channels_last)
        output = self.model(inputs if parameter is None else inputs.to(parameter.dtype))
        logits: Tensor = output.logits if hasattr(output, "logits") else output
        return logits.float()


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
        for member in members:
            member.model.eval().requires_grad_(False)
        counts = {member.name: self._count(member) for member in members}
        if len(set(counts.values())) > 1:
            raise ValueError(f"The members of a teacher must have the same classes; their class counts are {counts}.")
        self._own_classes = next(iter(counts.values()))

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
        """What `reinforcement.json` records of each member."""
        return [
            {
                "name": member.name,
                "kind": member.kind,
                "revision": member.revision,
                "weight_hash": member.weight_hash,
                "dtype": str(next(member.model.parameters(), torch.empty(0)).dtype).removeprefix("torch."),
                "weight": member.weight,
                "preprocessing": asdict(member.preprocessing),
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


def _reload(
    name: str,
    checkpoint: str | None,
    revision: str | None,
    preprocessing: Preprocessing,
    weight: float,
    expected: str,
    dtype: torch.dtype,
) -> Member:
    member = _named_member(name, checkpoint, revision)
    if member.weight_hash != expected:
        raise ValueError(f"The weights of {name} have changed since they were first loaded; start again.")
    member.model.to(dtype=dtype)
    return replace(member, preprocessing=preprocessing, weight=weight)


def weight_hash(model: nn.Module) -> str:
    """xxh3-64, hex, over the names and bytes of a model's parameters and buffers."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
        member = _module_member(entry) if isinstance(entry, nn.Module) else _named_member(entry, checkpoint, revision)
        chosen = preprocessing or member.preprocessing
        if chosen is None:
            raise ValueError(f"The preprocessing of the teacher {member.name} is unknown; pass preprocessing=.")
        members.append(replace(member, preprocessing=chosen, weight=float(weight)))
    return Teacher(members, temperature)


def _module_member(model: nn.Module) -> Member:
    return Member(model, _timm_preprocessing(getattr(model, "pretrained_cfg", None)), type(model).__name__, "module")  # type: ignore[arg-type]


def _named_member(name: str, checkpoint: str | None, revision: str | None) -> Member:
    if checkpoint is not None:
        return _load_timm_checkpoint(name, checkpoint)
    path = resolve(name)
    return TEACHER_KINDS[_kind(name, path, revision)](name, path, revision)


def _kind(name: str, path: str, revision: str | None) -> str:
    from transformers.utils import cached_file

    try:
        config_file = cached_file(path, "config.json", revision=revision)
    except OSError as error:
        raise ValueError(
            f"There is no image classifier {name!r}: neither a folder with a config.json nor a Hub repository "
            f"that can be reached. A bare timm architecture needs its weights: checkpoint=FILE. ({error})"
        ) from error
    config = json.loads(Path(str(config_file)).read_text(encoding="utf-8"))
    return "transformers" if "model_type" in config else "timm"


def _load_transformers(name: str, path: str, revision: str | None) -> Member:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(path, revision=revision, dtype=torch.float32)
    timm_cfg = getattr(model.config, "pretrained_cfg", None)
    preprocessing = _timm_preprocessing(timm_cfg) or _processor_preprocessing(path, revision)
    names = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    return Member(model, preprocessing, name, "transformers", tuple(names), revision)  # type: ignore[arg-type]


def _load_timm(name: str, path: str, revision: str | None) -> Member:
    import timm

    location = f"local-dir:{path}" if Path(path).is_dir() else f"hf-hub:{path}" + (f"@{revision}" if revision else "")
    model = timm.create_model(location, pretrained=True)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    preprocessing = _timm_preprocessing(model.pretrained_cfg)
    return Member(model, preprocessing, name, "timm", tuple(names) if names else None, revision)  # type: ignore[arg-type]


def _load_timm_checkpoint(architecture: str, checkpoint: str) -> Member:
    import timm

    if not timm.is_model(architecture):
        raise ValueError(f"{architecture!r} is not a timm architecture; timm.list_models() names them.")
    try:
        if checkpoint.endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"There is no checkpoint {checkpoint}.") from error
    model = timm.create_model(architecture, pretrained=False)
    classifier = f"{model.pretrained_cfg['classifier']}.weight"
    if classifier not in state:
        raise ValueError(f"{checkpoint} has no {classifier!r}, so it is not a classifier of the kind {architecture}.")
    model = timm.create_model(architecture, pretrained=False, num_classes=state[classifier].shape[0])
    model.load_state_dict(state)
    preprocessing = _timm_preprocessing(model.pretrained_cfg)
    return Member(model, preprocessing, architecture, "timm", checkpoint=checkpoint)  # type: ignore[arg-type]


TEACHER_KINDS: dict[str, Callable[[str, str, str | None], Member]] = {
    "transformers": _load_transformers,
    "timm": _load_timm,
}
"""Loaders of named teachers: (name, folder or Hub id, revision) -> Member."""


def _timm_preprocessing(cfg: Mapping[str, Any] | None) -> Preprocessing | None:
    if not cfg or "input_size" not in cfg:
        return None
    interpolation = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"
    crop_pct = float(cfg.get("crop_pct") or 1.0)
    return Preprocessing(int(cfg["input_size"][-1]), tuple(cfg["mean"]), tuple(cfg["std"]), interpolation, crop_pct)


def _processor_preprocessing(path: str, revision: str | None) -> Preprocessing | None:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path, revision=revision)
    except (OSError, ValueError):
        return None
    if abs(getattr(processor, "rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise ValueError(f"{path} rescales by {processor.rescale_factor}, not by 1/255; pass preprocessing=.")
    size = dict(processor.size)
    shorter = size.get("shortest_edge") or size["height"]
    crop = dict(processor.crop_size)["height"] if getattr(processor, "do_center_crop", False) else shorter
    normalised = getattr(processor, "do_normalize", True)
    mean = tuple(processor.image_mean) if normalised else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalised else (1.0, 1.0, 1.0)
    interpolation = "bilinear" if int(processor.resample or 2) == 2 else "bicubic"
    return Preprocessing(int(crop), mean, std, interpolation, crop / shorter)
