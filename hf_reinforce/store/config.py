"""`reinforcement.json`: everything that made a reinforced dataset, so that it can be replayed and continued."""

import dataclasses
import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.models.classes import printable
from hf_reinforce.schema import REINFORCEMENT_COLUMNS, SCHEMA_VERSION, Count, Index
from hf_reinforce.splits import stored_split
from hf_reinforce.store.atomic import write_whole
from hf_reinforce.targets import TARGETS, ClassDistribution, Target

CONFIG_FILE = "reinforcement.json"

_V1_ORDER = ("num_samples", "top_k", "num_classes", "class_names", "seed", "teachers", "temperature", "class_map")
"""Keys of schema version 1 that settings of its only target are among, in the order of the file."""
_V1_TARGET = [f.name for f in dataclasses.fields(ClassDistribution)]

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    dict: "a record",
}
_OPTIONAL = {"license", "checksums"}  # keys that files of earlier versions lack
_REPORTED = {"num_samples", "pixels", "complete", "skipped", "checksums", "license", "architecture"}
"""Keys, at any depth, in which two configurations may differ."""


def check_counts(**counts: int) -> None:
    """Raises ValueError for an argument that is a count and less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}.")


@dataclass(frozen=True)
class SourceRecord:
    """Where the images are."""

    name: str | None  # Hub id or folder, see `recorded_name`; None for a dataset that was only in memory
    config_name: str | None  # Hub configuration
    revision: str | None  # Hub revision
    split: str  # or a part of it: `train`, `train[:50%]`, `train+test`
    num_rows: Index | None  # that were reinforced; None for a stream of unknown length
    image_column: str
    label_column: str | None
    columns: tuple[str, ...]  # that were kept
    license: str | None = None  # as the source's card states it; not in the file where nothing is known


@dataclass(frozen=True)
class ReferenceView:
    """Checksum of one replayed view: xxh3-64, hex, of its uint8 pixels in row-major H, W, C order."""

    row: Index
    slot: Index
    checksum: str


@dataclass(frozen=True)
class PixelContract:
    """What the pixels depend on, and views that must come out the same wherever the dataset is used."""

    backend: dict[str, Any]  # decoder, resize and RandAugment implementations
    versions: dict[str, Any]  # library -> version at generation
    reference_views: tuple[ReferenceView, ...]


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be used, with the reason."""

    row: Index
    error: str


@dataclass(frozen=True)
class ReinforcementConfig:
    """The contents of `reinforcement.json`.

    Attributes:
        policy: the augmentation policy.
        num_samples: N, reinforcements per image.
        targets: what is stored of the teachers' answers, one column each.
        seed: seed of the augmentation parameters and of the partners.
        source: where the images are.
        pixels: what the pixels depend on.
        shard_size: rows per Parquet file.
        shuffled: whether the rows are stored in shuffled order, so that mixing partners come from everywhere.
        embed_images: whether the images are stored too.
        complete: whether every shard has been written.
        skipped: rows of the source that are missing, because their image could not be read or an import left it out.
        checksums: name of a shard -> SHA-256 of the file, hex; empty, and not in the file, until all are written.

    Example:
        from hf_reinforce import ReinforcementConfig

        config = ReinforcementConfig.load("outputs/cifar100-plus/small_randaug")
        print(config.num_samples, config.policy.name, config.class_names)
    """

    policy: AugmentationPolicy
    num_samples: Count
    targets: tuple[Target, ...]
    seed: int
    source: SourceRecord
    pixels: PixelContract
    shard_size: Count
    shuffled: bool
    embed_images: bool = False
    complete: bool = False
    skipped: tuple[SkippedImage, ...] = field(default=())
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def schema_version(self) -> int:
        """Version of the columns, docs/schema.md: 1 where the only target is a distribution over classes, else 2."""
        return 1 if len(self.targets) == 1 and self.classes is not None else 2

    @property
    def split(self) -> str:
        """The split under which the rows are stored, a plain name where the source's is a part of one."""
        return stored_split(self.source.split)

    @property
    def classes(self) -> ClassDistribution | None:
        """The first target that is a distribution over classes, None where there is none."""
        return next((target for target in self.targets if isinstance(target, ClassDistribution)), None)

    @property
    def num_classes(self) -> int:
        """C, classes of the targets and of the labels; 0 where no target has classes."""
        return next(filter(None, (target.class_count for target in self.targets)), 0)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, None where they are not known."""
        return None if self.classes is None else self.classes.class_names

    @property
    def own_columns(self) -> list[str]:
        """Columns of the shards that a reinforcement consists of, with the labels and without the images."""
        columns = [*REINFORCEMENT_COLUMNS, *(target.column for target in self.targets)]
        return columns + [name for name in [self.source.label_column] if name is not None]

    @property
    def teachers(self) -> tuple[dict[str, Any], ...]:
        """The networks that answered, of all targets; see `Teacher.describe`."""
        return tuple(teacher for target in self.targets for teacher in target.teachers)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict, `from_dict` reads it back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "policy"}
        plain: dict[str, Any] = json.loads(json.dumps(data, default=dataclasses.asdict))
        if self.source.license is None:  # files without it are those of earlier versions
            del plain["source"]["license"]
        if not self.checksums:
            del plain["checksums"]
        if self.schema_version == 1:
            first = {**plain.pop("targets")[0], **plain}
            plain = {name: first[name] for name in _V1_ORDER} | plain
        else:
            named = zip(self.targets, plain["targets"], strict=True)
            plain["targets"] = [{"kind": target.kind, **settings} for target, settings in named]
        return {"schema_version": self.schema_version, "policy": self.policy.to_dict(), **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ReinforcementConfig":
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: for another schema version, missing or unknown keys, or a value of another type or out of
                range; the message names the key.
        """
        version, plain = data.get("schema_version"), {k: v for k, v in data.items() if k != "schema_version"}
        if version not in (1, 2):
            raise ValueError(
                f"This dataset has schema version {version}; this hf_reinforce reads versions up to {SCHEMA_VERSION}. "
                "Install a newer hf_reinforce."
            )
        if version == 1:
            settings = {name: plain.pop(name) for name in _V1_TARGET if name in plain}
            plain["targets"] = (read_record(ClassDistribution, settings),)
        config: ReinforcementConfig = read_record(cls, plain)
        for key, name in [("source.split", config.source.split), *(("checksums", name) for name in config.checksums)]:
            if re.search(r"[/\\\x00-\x1f]", name):  # it is a name in the folder
                raise ValueError(f"{key} must be a name without separators, not {name!r}.")
        return config

    def save(self, folder: str | Path) -> None:
        """Writes `reinforcement.json` into a folder, all of it or nothing."""
        write_whole(Path(folder) / CONFIG_FILE, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ReinforcementConfig":
        """Reads `reinforcement.json` from a folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not one.
        """
        path = Path(folder) / CONFIG_FILE
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; name the folder of a configuration.")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(data if isinstance(data, dict) else {})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} cannot be used: {printable(error)}") from error

    def differences(self, other: "ReinforcementConfig") -> list[str]:
        """Fields in which two configurations make different data, as `field: mine, not theirs`.

        `num_samples` is left out, because it can be raised, and so is what a run only reports, such as licences.
        """
        mine, theirs = (dict(_compared(config.to_dict())) for config in (self, other))
        different = [key for key in mine if mine[key] != theirs.get(key)]
        return [f"{key}: {_shortened(mine[key])}, not {_shortened(theirs.get(key))}" for key in different]


def _compared(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys, also of records inside, as `source.split`, and values, without what a run only reports."""
    for key, value in data.items():
        if key in _REPORTED:
            continue
        if key in ("teachers", "targets"):
            value = [dict(_compared(item)) for item in value]
        if isinstance(value, dict):
            yield from _compared(value, f"{prefix}{key}.")
        else:  # earlier versions recorded folders without ./
            yield prefix + key, value.removeprefix("./") if key == "name" and value else value


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def read_record(cls: Any, data: Any, where: str = "") -> Any:
    """Builds a dataclass out of a JSON object, every value checked against the type of its field.

    Raises:
        ValueError: for missing or unknown keys, a value of another type, or one that is out of range; `where` is the
            prefix of the keys in the message.
    """
    names = {f.name for f in dataclasses.fields(cls)}
    found = set(data) if isinstance(data, Mapping) else set()
    missing = names - found - _OPTIONAL
    if missing or found - names:
        raise ValueError(f"{cls.__name__}: missing keys {sorted(missing)}, unknown keys {sorted(found - names)}.")
    kinds = get_type_hints(cls, include_extras=True)
    return cls(**{name: _read(kinds[name], data[name], where + name) for name in data})


def _read(kind: Any, value: Any, key: str, words: str = "") -> Any:
    """A value of JSON as the type of a field. True and false are no numbers, but whole numbers are."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _read(inner[0], value, key, " or null")
    if origin is Annotated:
        number = _read(inner[0], value, key, words)
        if number < inner[1]:
            raise ValueError(f"{key} must be at least {inner[1]}, not {number}.")
        return number
    if isinstance(value, Target):  # that of schema version 1, which is read already
        return value
    if kind is AugmentationPolicy:
        return AugmentationPolicy.from_dict(value)
    if kind is Target:
        settings = _read(dict, value, key).copy()
        name = settings.pop("kind", None)
        if name not in TARGETS:
            raise ValueError(f"{key}.kind must be one of {sorted(TARGETS)}, not {_shortened(name)}.")
        return read_record(TARGETS[name], settings, f"{key}.")
    if dataclasses.is_dataclass(kind):
        return read_record(kind, _read(dict, value, key), f"{key}.")
    allowed = {float: (int, float), tuple: (list, tuple)}.get(origin, origin)
    if not isinstance(value, allowed) or (isinstance(value, bool) and origin is not bool):
        raise ValueError(f"{key} must be {_WORDS[origin]}{words}, not {_shortened(value)}.")
    if origin is tuple:
        return tuple(_read(inner[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is dict and inner and inner[1] is not Any:
        return {name: _read(inner[1], item, f"{key}.{name}") for name, item in value.items()}
    return value
