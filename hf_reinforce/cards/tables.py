"""What dataset and model cards say of sources, teachers and licences, as Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_reinforce.cards.markdown import code, hub_link, table, text
from hf_reinforce.cards.statistics import Statistics
from hf_reinforce.licenses import IMAGENET_LICENSE, is_hub_id, is_imagenet
from hf_reinforce.store.config import ReinforcementConfig

UNMEASURED = "not measured yet"


@dataclass(frozen=True)
class Configuration:
    """A configuration as a card describes it.

    Attributes:
        config: how it was made, or is to be made.
        statistics: what was measured on its targets; None: nothing yet.
        version: tells `datasets` one content from another; None where there is no content yet.
        pictures: files that lie in its folder, of `PREVIEW_FILE` and `STATISTICS_FILE`.
        summaries: figures of targets that are no distributions over classes, by column.
    """

    config: ReinforcementConfig
    statistics: Statistics | None = None
    version: str | None = None
    pictures: tuple[str, ...] = ()
    summaries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int | None:
        """Images: those that were measured, else those that are planned; None: not known."""
        return self.config.source.num_rows if self.statistics is None else self.statistics.num_rows


@dataclass(frozen=True)
class Remarks:
    """What a card can say only if somebody tells it; all of it Markdown.

    Attributes:
        plan: where the plan of a dataset is that has not been generated.
        teachers: about a teacher, by its name in `reinforcement.json`.
        citation: BibTeX entry of the source.
    """

    plan: str | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)
    citation: str | None = None


def source_texts(configs: Mapping[str, ReinforcementConfig]) -> str:
    """The names of all sources, in one phrase."""
    return " and ".join(dict.fromkeys(source_text(config) for config in configs.values()))


def source_text(config: ReinforcementConfig) -> str:
    """The source's name, a link where it is on the Hub."""
    name = config.source.name
    return "the source dataset" if name is None else linked(name, "datasets/")


def linked(name: str, kind: str = "") -> str:
    """A name, as a link if it is a repository of the Hub; `kind` is `"datasets/"`, or empty for a model."""
    return hub_link(name, kind) if is_hub_id(name) else code(name)


def summary_lines(described: Mapping[str, Configuration]) -> list[str]:
    """One line for each target that is no distribution over classes: its column, what it is, and its figures."""
    lines = []
    for item in described.values():
        for target in item.config.targets:
            if target.column in item.summaries:
                figures = ", ".join(f"{key} {value:.3f}" for key, value in item.summaries[target.column].items())
                lines.append(f"{code(target.column)} ({text(target.words)}): {text(figures)}")
    return list(dict.fromkeys(lines))


def teacher_tables(configs: Mapping[str, ReinforcementConfig], remarks: Remarks) -> list[dict[str, Any]]:
    """One entry for each different teacher: the configurations it belongs to, a table and what to say about it."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        unknown = "not known" if config.complete else UNMEASURED
        entry = teacher_table(config.teachers, config.classes.temperature if config.classes else 1.0, remarks, unknown)
        groups.setdefault(json.dumps(entry), []).append(name)
    return [{"configs": names if len(groups) > 1 else [], **json.loads(key)} for key, names in groups.items()]


def teacher_table(
    teachers: Sequence[Mapping[str, Any]],
    temperature: float,
    remarks: Remarks | None = None,
    unknown: str = "not known",
) -> dict[str, Any]:
    """The networks of one teacher as a table, how their answers are combined, and what is remarked on them.

    Args:
        teachers: see `Teacher.describe`.
        temperature: of the softmax of their answers.
        remarks: see `Remarks`.
        unknown: what to say of weights without a hash.
    """
    remarks = remarks or Remarks()
    weighted = len({teacher["weight"] for teacher in teachers}) > 1
    rows = []
    for teacher in teachers:
        weights = code(teacher["weight_hash"]) if teacher.get("weight_hash") else unknown
        row = [_teacher(teacher, remarks), f"{teacher['preprocessing']['image_size']} px"]
        row += [text(teacher.get("dtype") or "not known"), weights, stated(teacher.get("license"))]
        rows.append(row + ([f"{teacher['weight']:g}"] if weighted else []))
    header = ["network", "input", "dtype", "weights (xxh3-64)", "licence", *(["share"] if weighted else [])]
    return {
        "table": table(header, rows),
        "mean": len(rows) > 1 and ("weighted mean" if weighted else "mean"),
        "temperature": temperature,
        "notes": [remarks.teachers[t["name"]] for t in teachers if t["name"] in remarks.teachers],
    }


def _teacher(teacher: Mapping[str, Any], remarks: Remarks) -> str:
    name = teacher["name"]  # a teacher that is remarked on was trained for this, and may be a folder elsewhere
    shown = code(name) if name in remarks.teachers or teacher.get("kind") == "module" else linked(name)
    kind = teacher.get("architecture")
    if kind and kind not in name:  # of a folder the name says nothing
        shown += f" ({code(kind)})"
    return shown + (f", revision {code(teacher['revision'])}" if teacher.get("revision") else "")


def stated(license: str | None) -> str:
    """A licence, or that none is stated."""
    return "not stated" if license is None else text(license)


def source_license(name: str | None, license: str | None) -> str:
    """The licence of a source; of ImageNet a link to its terms of access."""
    return f"[ImageNet terms of access]({IMAGENET_LICENSE['license_link']})" if is_imagenet(name) else stated(license)


def licenses(rows: Mapping[str, str]) -> str:
    """A table of licences by what they belong to."""
    return table(["made from", "licence, as its own card states it"], rows.items())


def license_table(configs: Mapping[str, ReinforcementConfig], remarks: Remarks) -> str:
    """The licences of every source and of every teacher."""
    sources = [config.source for config in configs.values()]
    rows = {
        source_text(config): source_license(source.name, source.license)
        for config, source in zip(configs.values(), sources, strict=True)
    }
    for config in configs.values():
        rows |= {_teacher(teacher, remarks): stated(teacher.get("license")) for teacher in config.teachers}
    return licenses(rows)
