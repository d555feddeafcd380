"""`reinforcement.json`: everything that made a reinforced data set, so that it can be replayed and continued."""

import dataclasses
import json
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_reinforce.policies import AugmentationPolicy
from hf_reinforce.schema import SCHEMA_VERSION

CONFIG_FILE = "reinforcement.json"


@dataclass(frozen=True)
class SourceRecord:
    """Where the images are.

    Attributes:
        name: Hub id or folder, see `recorded_name`; None for a data set that was only in memory.
        config_name: Hub configuration.
        revision: Hub revision.
        split: split of the source, e.g. `train`.
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
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict, `from_dict` reads it back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "policy"}
        plain = {key: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for key, v in data.items()}  # type: ignore[arg-type]
        plain["skipped"] = [dataclasses.asdict(item) for item in self.skipped]
        if self.source.license is None:  # files without it are those of earlier versions
            del plain["source"]["license"]
        ordered = {"schema_version": plain.pop("schema_version"), "policy": self.policy.to_dict(), **plain}
        result: dict[str, Any] = json.loads(json.dumps(ordered))
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ReinforcementConfig":
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: for another schema version, or missing or unknown keys.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"This data set has schema version {version}; this hf_reinforce reads version {SCHEMA_VERSION}. "
                "Install a newer hf_reinforce."
            )
        values = _checked(cls, data)
        pixels = _checked(PixelContract, values["pixels"])
        views = tuple(ReferenceView(**_checked(ReferenceView, item)) for item in pixels["reference_views"])
        source = _checked(SourceRecord, values["source"], optional={"license"})
        values |= {
            "policy": AugmentationPolicy.from_dict(values["policy"]),
            "teachers": tuple(values["teachers"]),
            "class_names": _tuple_or_none(values["class_names"]),
            "class_map": _tuple_or_none(values["class_map"]),
            "source": SourceRecord(**{**source, "columns": tuple(source["columns"])}),
            "pixels": PixelContract(**{**pixels, "reference_views": views}),
            "skipped": tuple(SkippedImage(**_checked(SkippedImage, item)) for item in values["skipped"]),
        }
        return cls(**values)

    def save(self, folder: str | Path) -> None:
        """Writes `reinforcement.json` into a folder, all of it or nothing."""
        path = Path(folder) / CONFIG_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

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
        reported = {"num_samples", "pixels", "complete", "skipped"}
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


def _checked(cls: type, data: Any, optional: Set[str] = frozenset()) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    if isinstance(data, Mapping):
        names -= optional - set(data)
    if not isinstance(data, Mapping) or set(data) != names:
        found = set(data) if isinstance(data, Mapping) else set()
        raise ValueError(
            f"{cls.__name__}: missing keys {sorted(names - found)}, unknown keys {sorted(map(str, found - names))}."
        )
    return dict(data)


def _tuple_or_none(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
