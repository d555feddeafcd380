"""`reinforcement.json`: everything that made a reinforced data set, so that it can be replayed and continued."""

import dataclasses
import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_reinforce.augmentations.policies import AugmentationPolicy
from hf_reinforce.schema import SCHEMA_VERSION
from hf_reinforce.splits import stored_split
from hf_reinforce.store.parquet import write_whole

CONFIG_FILE = "reinforcement.json"

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number or null",
    float: "a number",
    str: "a text",
    str | None: "a text or null",
    dict: "a record",
}
_LEAST = {"num_samples": 1, "top_k": 1, "num_classes": 1, "shard_size": 1, "num_rows": 0, "row": 0, "slot": 0}


def check_counts(**counts: int) -> None:
    """Raises ValueError for an argument that is a count and less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}.")


@dataclass(frozen=True)
class SourceRecord:
    """Where the images are.

    Attributes:
        name: Hub id or folder, see `recorded_name`; None for a data set that was only in memory.
        config_name: Hub configuration.
        revision: Hub revision.
        split: split of the source, or a part of it: `train`, `train[:50%]`, `train+test`.
        num_rows: rows of the split that were reinforced; None for a stream of unknown length.
        image_column: name of the image column.
        label_column: name of the label column, None without labels.
        columns: columns that were kept.
        license: what the source's card states as its licence; None, and not in the file, where nothing is known.
    """

    name: str | None
    config_name: str | None
    revision: str | None
    split: str
    num_rows: int | None
    image_column: str
    label_column: str | None
    columns: tuple[str, ...]
    license: str | None = None


@dataclass(frozen=True)
class ReferenceView:
    """Checksum of one replayed view: xxh3-64, hex, of its uint8 pixels in row-major H, W, C order."""

    row: int
    slot: int
    checksum: str


@dataclass(frozen=True)
class PixelContract:
    """What the pixels depend on.

    Attributes:
        backend: decoder, resize and RandAugment implementations.
        versions: library -> version at generation.
        reference_views: views that must come out the same wherever the data set is used.
    """

    backend: dict[str, str]
    versions: dict[str, str]
    reference_views: tuple[ReferenceView, ...]


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be used, with the reason."""

    row: int
    error: str


@dataclass(frozen=True)
class ReinforcementConfig:
    """The contents of `reinforcement.json`.

    Attributes:
        policy: the augmentation policy.
        num_samples: N, reinforcements per image.
        top_k: K, stored classes per reinforcement.
        num_classes: C, classes of the targets.
        class_names: their names, where known.
        seed: seed of the augmentation parameters and of the partners.
        teachers: see `Teacher.describe`.
        temperature: temperature of the teacher's softmax.
        class_map: the teacher's class for each class of the targets, None for its own classes.
        source: where the images are.
        pixels: what the pixels depend on.
        shard_size: rows per Parquet file.
        shuffled: whether the rows are stored in shuffled order, so that mixing partners come from everywhere.
        embed_images: whether the images are stored too.
        complete: whether every shard has been written.
        skipped: rows of the source that are missing, because their image could not be read or an import left it out.
        checksums: name of a shard -> SHA-256 of the file, hex; empty, and not in the file, until all are written.
        schema_version: version of the columns, docs/schema.md.
    """

    policy: AugmentationPolicy
    num_samples: int
    top_k: int
    num_classes: int
    class_names: tuple[str, ...] | None
    seed: int
    teachers: tuple[dict[str, Any], ...]
    temperature: float
    class_map: tuple[int, ...] | None
    source: SourceRecord
    pixels: PixelContract
    shard_size: int
    shuffled: bool
    embed_images: bool = False
    complete: bool = False
    skipped: tuple[SkippedImage, ...] = field(default=())
    checksums: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def split(self) -> str:
        """The split under which the rows are stored, a plain name where the source's is a part of one."""
        return stored_split(self.source.split)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict, `from_dict` reads it back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "policy"}
        plain = {key: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for key, v in data.items()}  # type: ignore[arg-type]
        plain["skipped"] = [dataclasses.asdict(item) for item in self.skipped]
        if self.source.license is None:  # files without it are those of earlier versions
            del plain["source"]["license"]
        if not self.checksums:
            del plain["checksums"]
        ordered = {"schema_version": plain.pop("schema_version"), "policy": self.policy.to_dict(), **plain}
        result: dict[str, Any] = json.loads(json.dumps(ordered))
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ReinforcementConfig":
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: for another schema version, missing or unknown keys, or a value of another type or out of
                range; the message names the key.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"This data set has schema version {version}; this hf_reinforce reads version {SCHEMA_VERSION}. "
                "Install a newer hf_reinforce."
            )
        values = {"checksums": {}, **_checked(cls, data, optional={"checksums"})}
        if values["top_k"] > values["num_classes"]:
            raise ValueError(f"top_k must be at most num_classes, {values['num_classes']}, not {values['top_k']}.")
        pixels = _checked(PixelContract, values["pixels"], "pixels.")
        views = _records(ReferenceView, pixels["reference_views"], "pixels.reference_views")
        names, class_map = values["class_names"], values["class_map"]
        source = _checked(SourceRecord, values["source"], "source.", optional={"license"})
        _check_value(dict, values["checksums"], "checksums")
        for key, name in [("source.split", source["split"]), *(("checksums", name) for name in values["checksums"])]:
            if re.search(r"[/\\\x00-\x1f]", name):  # it is a name in the folder
                raise ValueError(f"{key} must be a name without separators, not {name!r}.")
        values |= {
            "policy": AugmentationPolicy.from_dict(values["policy"]),
            "teachers": _items(dict, values["teachers"], "teachers"),
            "class_names": None if names is None else _items(str, names, "class_names"),
            "class_map": None if class_map is None else _items(int, class_map, "class_map", least=0),
            "source": SourceRecord(**{**source, "columns": _items(str, source["columns"], "source.columns")}),
            "pixels": PixelContract(**{**pixels, "reference_views": views}),
            "skipped": _records(SkippedImage, values["skipped"], "skipped"),
        }
        for name, checksum in values["checksums"].items():
            _check_value(str, checksum, f"checksums.{name}")
        return cls(**values)

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
            raise FileNotFoundError(
                f"{folder} has no {CONFIG_FILE}, so it is not a configuration of a reinforced data set."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(data if isinstance(data, dict) else {})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} cannot be used: {error}") from error

    def differences(self, other: "ReinforcementConfig") -> list[str]:
        """Fields in which two configurations make different data, as `field: mine, not theirs`.

        `num_samples` is left out, because it can be raised, and so is what a run only reports, such as licences.
        """
        mine, theirs = _without_reports(self.to_dict()), _without_reports(other.to_dict())
        reported = {"num_samples", "pixels", "complete", "skipped", "checksums"}
        return _differences({k: v for k, v in mine.items() if k not in reported}, theirs)


def _without_reports(data: dict[str, Any]) -> dict[str, Any]:
    """Without what earlier versions did not record, or recorded in another way."""
    for record in (data["source"], *data["teachers"]):
        if isinstance(record, dict):
            record.pop("license", None)
            record.pop("architecture", None)
            record["name"] = record["name"] and record["name"].removeprefix("./")
    return data


def _differences(mine: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in mine.items():
        if isinstance(value, dict) and isinstance(theirs[key], dict):
            found += _differences(
                value, theirs[key] | dict.fromkeys(value.keys() - theirs[key].keys()), f"{prefix}{key}."
            )
        elif value != theirs[key]:
            found.append(f"{prefix}{key}: {_shortened(value)}, not {_shortened(theirs[key])}")
    return found


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _checked(cls: type, data: Any, where: str = "", optional: Set[str] = frozenset()) -> dict[str, Any]:
    """The values of a record; `where` is in front of their names in the file."""
    names = {f.name for f in dataclasses.fields(cls)}
    if isinstance(data, Mapping):
        names -= optional - set(data)
    if not isinstance(data, Mapping) or set(data) != names:
        found = set(data) if isinstance(data, Mapping) else set()
        raise ValueError(
            f"{cls.__name__}: missing keys {sorted(names - found)}, unknown keys {sorted(map(str, found - names))}."
        )
    for f in dataclasses.fields(cls):
        if f.type in _KINDS and f.name in data:
            _check_value(f.type, data[f.name], where + f.name, _LEAST.get(f.name))
    return dict(data)


def _check_value(kind: Any, value: Any, key: str, least: int | None = None) -> None:
    """Refuses a value of another type, where true and false are no numbers but whole numbers are, or below `least`."""
    allowed = int | float if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} must be {_KINDS[kind]}, not {_shortened(value)}.")
    if least is not None and value is not None and value < least:
        raise ValueError(f"{key} must be at least {least}, not {value}.")


def _items(kind: Any, values: Any, key: str, least: int | None = None) -> tuple[Any, ...]:
    """A list of values of one type."""
    if not isinstance(values, list):
        raise ValueError(f"{key} must be a list, not {_shortened(values)}.")
    for index, value in enumerate(values):
        _check_value(kind, value, f"{key}[{index}]", least)
    return tuple(values)


def _records(cls: type, values: Any, key: str) -> tuple[Any, ...]:
    """A list of records."""
    checked = (_checked(cls, item, f"{key}[{index}].") for index, item in enumerate(_items(dict, values, key)))
    return tuple(cls(**item) for item in checked)
