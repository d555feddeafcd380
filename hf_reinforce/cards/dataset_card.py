"""Dataset cards, rendered from what is in the folder and nothing else."""

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from hf_reinforce.cards import markdown
from hf_reinforce.cards.preview import PREVIEW_FILE
from hf_reinforce.cards.statistics import Statistics, measure
from hf_reinforce.licenses import IMAGENET_LICENSE, IMAGENET_PROMPT, is_hub_id, is_imagenet
from hf_reinforce.store.atomic import write_whole
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import shard_files

CARD_FILE = "README.md"

RECIPES: Mapping[tuple[str, int], str] = {
    ("ILSVRC/imagenet-1k", 224): "imagenet_plus",
    ("uoft-cs/cifar100", 32): "cifar100_plus",
    ("ethz/food101", 224): "food101_plus",
    ("dpdl-benchmark/oxford_flowers102", 224): "flowers102_plus",
}
"""Folders of `recipes/` with the settings for a student, by source and side of the views in pixels."""

_SETTINGS = (  # after the paper's for CIFAR, Food and Flowers
    "--method reinforced",
    "--model_name_or_path mobilenetv3_large_100 --num_train_epochs 100 --per_device_train_batch_size 256",
    "--timm_optimizer sgd --learning_rate 0.2 --weight_decay 5e-4 --lr_scheduler_type cosine",
)
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


@dataclass(frozen=True)
class Configuration:
    """A configuration as a card describes it; `statistics` and `version` are None where it is only planned."""

    config: ReinforcementConfig
    statistics: Statistics | None = None
    version: str | None = None  # tells `datasets` one content from another
    preview: bool = False  # whether `preview.png` lies in its folder


def write_dataset_card(folder: str | Path) -> None:
    """Writes the dataset card of a repository, `README.md`.

    `reinforce` and `import_ml_dr` write none; the recipes call this function after them.

    Args:
        folder: the folder of the repository, the parent of what `reinforce` returns.

    Raises:
        FileNotFoundError: if there is no finished configuration.
        ValueError: if a shard is damaged, or there is none.

    Example:
        from hf_reinforce import write_dataset_card

        write_dataset_card("outputs/cifar100-plus")
    """
    card = render(Path(folder).resolve().name, describe(folder))
    write_whole(Path(folder) / CARD_FILE, str(card))


def current_card(folder: Path, config_names: Collection[str]) -> DatasetCard:
    """The folder's own card, if it describes these configurations as they are now; else a new one, not written."""
    path = folder / CARD_FILE
    if path.exists():
        card = DatasetCard.load(path)
        stated = card.data.to_dict().get("configs") or []
        versions = {item.get("config_name"): item.get("version") for item in stated}
        if not versions or versions == {name: _version(folder / name) for name in config_names}:
            return card
    return render(folder.resolve().name, describe(folder, config_names))


def describe(folder: str | Path, config_names: Collection[str] | None = None) -> dict[str, Configuration]:
    """Measures the finished configurations of a repository, or some of them, by name."""
    described = {}
    for path in sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG_FILE}")):
        config = ReinforcementConfig.load(path)
        if not config.complete or not (config_names is None or path.name in config_names):
            continue
        statistics, _ = measure(shard_files(path, config.split), config)
        described[path.name] = Configuration(config, statistics, _version(path), (path / PREVIEW_FILE).exists())
    if not described:
        raise FileNotFoundError(f"{folder} holds no finished configuration of a reinforced dataset.")
    return described


def _version(folder: Path) -> str:
    """Three numbers that change with the contents: `datasets` keeps a folder's rows in its cache by them."""
    config = ReinforcementConfig.load(folder)
    digest = zlib.crc32((folder / CONFIG_FILE).read_bytes()) % 1_000_000
    return f"{config.schema_version}.{config.num_samples}.{digest}"


def train_command(name: str, config_name: str, config: ReinforcementConfig) -> str:
    """The command that trains a student: with the recipe for its source, else with settings after the paper's."""
    recipe = RECIPES.get((config.source.name or "", config.policy.image_size))
    first, *settings = (f"recipes/{recipe}/student.yaml",) if recipe else _SETTINGS
    data = f"--dataset_name {markdown.shell_word(name)} --dataset_config_name {markdown.shell_word(config_name)}"
    lines = [f"accelerate launch recipes/train_kd.py {first}", data, *settings, "--output_dir outputs/student"]
    return " \\\n    ".join(lines)


def render(
    name: str,
    described: Mapping[str, Configuration],
    plan: str | None = None,
    teacher_notes: Mapping[str, str] | None = None,
    citation: str | None = None,
) -> DatasetCard:
    """The card of the dataset with these configurations by name, at least one.

    What only somebody can tell is Markdown: where the `plan` is of a dataset that has not been generated, notes on
    teachers by their names in `reinforcement.json`, and the BibTeX entry of the source.
    """
    configs = {key: item.config for key, item in described.items()}
    joined = {key: config for key, config in configs.items() if not config.embed_images}
    shown = next(iter(joined or configs))  # the configuration of the examples
    by_teachers: dict[str, list[str]] = {}
    for key, config in configs.items():
        temperature = config.classes.temperature if config.classes else None
        by_teachers.setdefault(json.dumps([config.teachers, temperature]), []).append(key)
    measured = {key: item.statistics for key, item in described.items() if item.statistics is not None}
    text = markdown.render(
        "dataset_card.md",
        _metadata(name, described),
        name=name,
        described=described,
        configs=configs,
        statistics=measured,
        figures=dict.fromkeys(figure for found in measured.values() for figure in found.figures),
        joined=joined,
        shown=shown,
        command=train_command(name, shown, configs[shown]),
        mixing=[key for key, config in configs.items() if config.policy.mix_operations],
        by_teachers=list(by_teachers.values()),
        plan=plan,
        teacher_notes=teacher_notes or {},
        citation=citation,
    )
    return DatasetCard(text)


def _metadata(name: str, described: Mapping[str, Configuration]) -> DatasetCardData:
    configs = [item.config for item in described.values()]
    counts = [
        item.statistics.num_rows if item.statistics else item.config.source.num_rows for item in described.values()
    ]
    rows = max(count or 0 for count in counts)
    sources = dict.fromkeys(config.source.name for config in configs)
    return DatasetCardData(
        pretty_name=name,
        annotations_creators=["machine-generated"],
        task_categories=["image-classification"],
        size_categories=[next((size for power, size in enumerate(_SIZES, 3) if rows < 10**power), "n>1T")],
        source_datasets=[name for name in sources if name is not None and is_hub_id(name)] or None,
        tags=["dataset-reinforcement", "knowledge-distillation"],
        configs=[
            {
                "config_name": key,
                **({"version": item.version} if item.version else {}),
                "data_files": [{"split": item.config.split, "path": f"{key}/{item.config.split}-*.parquet"}],
            }
            for key, item in described.items()
        ],
        **_license(configs),
    )


def _license(configs: Sequence[ReinforcementConfig]) -> dict[str, Any]:
    """Licence metadata: the sources' terms and the teachers', none at all where a source's are not known."""
    if any(is_imagenet(config.source.name) for config in configs):
        return {**IMAGENET_LICENSE, "extra_gated_prompt": IMAGENET_PROMPT}
    sources = [config.source.license for config in configs]
    if None in sources:
        return {}
    stated = [*sources, *(teacher.get("license") for config in configs for teacher in config.teachers)]
    return {"license": _union([name.strip() for item in stated if item for name in item.split(",")])}


def _union(*metadata: Any) -> Any:
    """Metadata that are one value, a list or None, together: likewise."""
    lists = [value if isinstance(value, list) else [value] for value in metadata if value]
    names = list(dict.fromkeys(name for values in lists for name in values))
    return names if len(names) > 1 else next(iter(names), None)


def keep_metadata(card: DatasetCard, on_hub: DatasetCard) -> list[str]:
    """Keeps in a new card what the metadata on the Hub say besides: what somebody added, and other configurations.

    With other configurations, whose names are returned, the licences and sources of both cards apply.
    """
    mine, theirs = card.data.to_dict(), on_hub.data.to_dict()
    published = {item["config_name"] for item in mine.get("configs") or []}
    others = [item for item in theirs.get("configs") or [] if item.get("config_name") not in published]
    for key, value in theirs.items():
        if key not in mine and key != "dataset_info":
            setattr(card.data, key, value)
    if others:
        card.data.configs = [*(mine.get("configs") or []), *others]
        for key in ("license", "source_datasets"):
            setattr(card.data, key, _union(theirs.get(key), mine.get(key)))
    return [str(item.get("config_name")) for item in others]
