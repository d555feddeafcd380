"""What a dataset card lists, as Markdown tables."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_reinforce.cards.markdown import code, hub_link, table, text
from hf_reinforce.cards.statistics import Statistics
from hf_reinforce.licenses import IMAGENET_LICENSE, is_hub_id, is_imagenet
from hf_reinforce.store.config import ReinforcementConfig

UNMEASURED = "not measured yet"
_FEW_IMAGES = 20  # a class with fewer measured images says little about itself
_HARDEST = 5


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


@dataclass(frozen=True)
class Remarks:
    """What a card can say only if somebody tells it; all of it Markdown.

    Attributes:
        plan: where the plan of a data set is that has not been generated.
        teachers: about a teacher, by its name in `reinforcement.json`.
        citation: BibTeX entry of the source.
    """

    plan: str | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)
    citation: str | None = None


def num_rows(item: Configuration) -> int | None:
    """Images: those that were measured, else those that are planned; None: not known."""
    return item.config.source.num_rows if item.statistics is None else item.statistics.num_rows


def source_texts(configs: Iterable[ReinforcementConfig]) -> str:
    """The names of all sources, in one phrase."""
    return " and ".join(dict.fromkeys(source_text(config) for config in configs))


def source_text(config: ReinforcementConfig) -> str:
    """The source's name, a link where it is on the Hub."""
    name = config.source.name
    if name is None:
        return "the source data set"
    return hub_link(name, "datasets/") if is_hub_id(name) else code(name)


def _count(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def _by_configuration(
    described: Mapping[str, Configuration], lines: Mapping[str, Callable[[Configuration], str]]
) -> str:
    """A table with a column for each configuration, or one for all if they do not differ.

    `lines` are functions of a configuration, by heading.
    """
    body = [[heading, *(function(item) for item in described.values())] for heading, function in lines.items()]
    if len(described) > 1 and all(len(set(cells)) == 1 for _, *cells in body):
        return table(["", "every configuration"], [line[:2] for line in body])
    return table(["", *(code(name) for name in described)], body)


def configuration_table(described: Mapping[str, Configuration]) -> str:
    """How much there is of each configuration."""

    def coverage(item: Configuration) -> str:
        if item.statistics is None:
            return UNMEASURED
        rows, skipped = item.config.source.num_rows, len(item.config.skipped)
        share = f"{_count(rows)} ({100 * item.statistics.num_rows / rows:.4g} %)" if rows else _count(rows)
        return f"{item.statistics.num_rows:,} of {share}, {skipped:,} skipped"

    def size(item: Configuration) -> str:
        with_images = " with the images" if item.config.embed_images else ""
        return UNMEASURED if item.statistics is None else f"{_bytes(item.statistics.num_bytes)}{with_images}"

    def density(item: Configuration) -> str:
        found, config = item.statistics, item.config
        with_images = " with the images" if config.embed_images else ""
        return f"{found.num_bytes / found.num_rows / config.num_samples:.1f}{with_images}" if found else UNMEASURED

    several = len({source_text(item.config) for item in described.values()}) > 1
    lines = {
        **({"images of": lambda item: source_text(item.config)} if several else {}),
        "images": lambda item: _count(num_rows(item)),
        "coverage of the source's rows": coverage,
        "reinforcements per image (N)": lambda item: f"{item.config.num_samples:,}",
        "stored classes (K)": lambda item: item.config.classes.kept if item.config.classes else "none",
        "side of a view (pixels)": lambda item: str(item.config.policy.image_size),
        "seed": lambda item: str(item.config.seed),
        "bytes per reinforcement": density,
        "size": size,
    }
    return _by_configuration(described, lines)


def _bytes(count: int) -> str:
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit, value = next(units), float(count)
    while value >= 1000 and unit != "TB":
        unit, value = next(units), value / 1000
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def target_table(described: Mapping[str, Configuration]) -> str:
    """What was measured on the targets of each configuration."""

    def cell(show: Callable[[Statistics, ReinforcementConfig], str]) -> Callable[[Configuration], str]:
        return lambda item: UNMEASURED if item.statistics is None else show(item.statistics, item.config)

    def rate(value: float | None) -> str:
        return "no labels" if value is None else f"{100 * value:.1f} %"

    lines = {
        "measured on": cell(lambda s, c: f"{s.measured_rows:,} images, {s.measured_rows * c.num_samples:,} targets"),
        "teacher's accuracy over the views": cell(lambda s, c: rate(s.agreement)),
        "accuracy of the mean of an image's N targets": cell(lambda s, c: rate(s.agreement_of_mean)),
        "probability of the most likely class": cell(lambda s, c: f"{s.confidence:.3f}"),
        "mass in the top K": cell(lambda s, c: f"{s.captured_mass:.3f}"),
        "entropy (nats)": cell(lambda s, c: f"{s.entropy:.2f}"),
    }
    return _by_configuration(described, lines)


def summary_lines(described: Mapping[str, Configuration]) -> list[str]:
    """One line for each target that is no distribution over classes: its column, what it is, and its figures."""
    lines = []
    for item in described.values():
        for target in item.config.targets:
            if target.column in item.summaries:
                figures = ", ".join(f"{key} {value:.3f}" for key, value in item.summaries[target.column].items())
                lines.append(f"{code(target.column)} ({text(target.words)}): {text(figures)}")
    return list(dict.fromkeys(lines))


def policy_table(configs: Mapping[str, ReinforcementConfig]) -> str:
    """The operations in words: a numbered list for one policy, for several a table of which has which."""
    steps = {
        name: [operation.describe() for operation in config.policy.operations] for name, config in configs.items()
    }
    if len(steps) == 1:
        return "\n".join(f"{i}. {text(step)}" for i, step in enumerate(next(iter(steps.values())), 1))
    order = sorted({step for found in steps.values() for step in found}, key=lambda step: _rank(step, steps))
    rows = [[text(step), *("✓" if step in found else "" for found in steps.values())] for step in order]
    return table(["operation", *(code(name) for name in steps)], rows)


def _rank(step: str, steps: Mapping[str, list[str]]) -> tuple[float, str]:
    return max((found.index(step) for found in steps.values() if step in found), default=0), step


def teacher_tables(configs: Mapping[str, ReinforcementConfig], remarks: Remarks) -> list[dict[str, Any]]:
    """One entry for each different teacher: the configurations it belongs to, a table and what to say about it."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(json.dumps([config.teachers, _temperature(config)], sort_keys=True), []).append(name)
    found = []
    for names in groups.values():
        config = configs[names[0]]
        unknown = "not known" if config.complete else UNMEASURED
        entry = teacher_table(config.teachers, _temperature(config), remarks, unknown)
        found.append({"configs": names if len(groups) > 1 else [], **entry})
    return found


def _temperature(config: ReinforcementConfig) -> float:
    return 1.0 if config.classes is None else config.classes.temperature


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
    linked = name not in remarks.teachers and is_hub_id(name) and teacher.get("kind") != "module"
    shown = hub_link(name) if linked else code(name)
    kind = teacher.get("architecture")
    if kind and kind not in name:  # of a folder the name says nothing
        shown += f" ({code(kind)})"
    return shown + (f", revision {code(teacher['revision'])}" if teacher.get("revision") else "")


def stated(license: str | None) -> str:
    """A licence, or that none is stated."""
    return "not stated" if license is None else text(license)


def license_table(configs: Mapping[str, ReinforcementConfig], remarks: Remarks) -> str:
    """The licences of every source and of every teacher."""
    terms = f"[ImageNet terms of access]({IMAGENET_LICENSE['license_link']})"
    rows: dict[str, str] = {}
    for config in configs.values():
        source = config.source
        rows[source_text(config)] = terms if is_imagenet(source.name) else stated(source.license)
    for config in configs.values():
        rows |= {_teacher(teacher, remarks): stated(teacher.get("license")) for teacher in config.teachers}
    return table(["made from", "licence, as its own card states it"], [list(row) for row in rows.items()])


def hardest_classes(statistics: Statistics, config: ReinforcementConfig) -> list[tuple[str, float]]:
    """The classes whose label is least often the teacher's first, with how often it is."""
    found = [
        (share, index)
        for index, (share, rows) in enumerate(
            zip(statistics.class_agreement or (), statistics.class_rows or (), strict=True)
        )
        if share is not None and rows >= _FEW_IMAGES
    ]
    names = config.class_names or ()
    if len(found) < 2 * _HARDEST or len(names) < config.num_classes:
        return []
    return [(names[index], share) for share, index in sorted(found)[:_HARDEST]]
