"""Dataset cards, rendered from what is in the folder and nothing else."""

import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from hf_reinforce.cards import markdown, tables
from hf_reinforce.cards.preview import PREVIEW_FILE, STATISTICS_FILE, draw_statistics
from hf_reinforce.cards.statistics import measure, summaries
from hf_reinforce.cards.tables import Configuration, Remarks
from hf_reinforce.licenses import IMAGENET_LICENSE, IMAGENET_PROMPT, OTHER, UNKNOWN, is_hub_id, is_imagenet
from hf_reinforce.store.atomic import whole_file
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import shard_files

CARD_FILE = "README.md"
INSTALL = (
    "There is no release on a package index yet. Get a copy of its repository, which also has the recipes, and run "
    "`pip install .` there, or `make install` for an environment of its own in `.venv`."
)
"""How to get this package; a card is read by people who have never heard of it."""

RECIPES: Mapping[tuple[str, int], str] = {
    ("ILSVRC/imagenet-1k", 224): "imagenet_plus",
    ("uoft-cs/cifar100", 32): "cifar100_plus",
    ("ethz/food101", 224): "food101_plus",
    ("dpdl-benchmark/oxford_flowers102", 224): "flowers102_plus",
}
"""Folders of `recipes/` with the settings for a student, by source and side of the views in pixels."""

_SETTINGS = (  # after the paper's for CIFAR, Food and Flowers
    "--model_name_or_path mobilenetv3_large_100 --num_train_epochs 100 --per_device_train_batch_size 256",
    "--timm_optimizer sgd --learning_rate 0.2 --weight_decay 5e-4 --lr_scheduler_type cosine",
)
_TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


def write_dataset_card(folder: str | Path) -> None:
    """Writes the dataset card of a repository, and a picture of the targets' statistics for each configuration.

    `reinforce` and `import_ml_dr` write neither; the recipes call this function after them.

    Args:
        folder: the folder of the repository, the parent of what `reinforce` returns. It gets `README.md`, and each
            finished configuration in it `statistics.png`.

    Raises:
        FileNotFoundError: if there is no finished configuration.
        ValueError: if a shard is damaged, or there is none.

    Example:
        from hf_reinforce import write_dataset_card

        write_dataset_card("outputs/cifar100-plus")
    """
    described = describe(folder, draw=True)
    with whole_file(Path(folder) / CARD_FILE) as temporary:
        render(Path(folder).resolve().name, described).save(temporary)


def current_card(folder: str | Path, config_names: Collection[str]) -> DatasetCard:
    """The folder's own card, with what somebody added to it, if it describes these configurations as they are now.

    Else a new card, which is not written.

    Args:
        folder: the folder of a repository.
        config_names: the configurations that the card is for.

    Raises:
        FileNotFoundError: if there is no finished configuration.
        ValueError: if a shard is damaged, or there is none.
    """
    path = Path(folder) / CARD_FILE
    everything = set(config_names) == {file.parent.name for file in Path(folder).glob(f"*/{CONFIG_FILE}")}
    if everything and path.exists():
        card = DatasetCard.load(path)
        stated = card.data.to_dict().get("configs") or []
        versions = {item.get("config_name"): item.get("version") for item in stated}
        if not versions or versions == {name: _version(Path(folder) / name) for name in config_names}:
            return card
    return render(Path(folder).resolve().name, describe(folder, config_names))


def describe(
    folder: str | Path, config_names: Collection[str] | None = None, draw: bool = False
) -> dict[str, Configuration]:
    """Measures the finished configurations of a repository.

    Args:
        folder: holds one subfolder with `reinforcement.json` and Parquet files for each configuration.
        config_names: the configurations to describe, default all that are finished.
        draw: draw `statistics.png` into each of them.

    Raises:
        FileNotFoundError: if there is no finished configuration.
        ValueError: if a shard is damaged, or there is none.
    """
    described = {}
    for path in sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG_FILE}")):
        config = ReinforcementConfig.load(path)
        if not config.complete or not (config_names is None or path.name in config_names):
            continue
        shards = shard_files(path, config.split)
        if not shards:
            raise ValueError(
                f"{path} has no shards of the split {config.split!r}; run the command that reinforces this dataset "
                "again."
            )
        statistics = measure(shards, config)[0] if config.classes else None
        if draw and statistics is not None:
            draw_statistics(statistics, path / STATISTICS_FILE)
        pictures = tuple(file for file in (PREVIEW_FILE, STATISTICS_FILE) if (path / file).exists())
        figures = summaries(shards[0], config)
        described[path.name] = Configuration(config, statistics, _version(path), pictures, figures)
    if not described:
        raise FileNotFoundError(f"{folder} holds no finished configuration of a reinforced dataset.")
    return described


def _version(folder: Path) -> str:
    """Three numbers that change with the contents: `datasets` keeps a folder's rows in its cache by them."""
    config = ReinforcementConfig.load(folder)
    digest = zlib.crc32((folder / CONFIG_FILE).read_bytes()) % 1_000_000
    return f"{config.schema_version}.{config.num_samples}.{digest}"


def train_command(name: str, config_name: str, config: ReinforcementConfig) -> str:
    """The command that trains a student: with the recipe for its source, else with settings after the paper's.

    Args:
        name: of the repository or folder.
        config_name: of the configuration.
        config: the configuration.
    """
    recipe, settings = _recipe(config) or "--method reinforced", () if _recipe(config) else _SETTINGS
    data = f"--dataset_name {markdown.shell_word(name)} --dataset_config_name {markdown.shell_word(config_name)}"
    lines = [f"accelerate launch recipes/train_kd.py {recipe}", data, *settings, "--output_dir outputs/student"]
    return " \\\n    ".join(lines)


def _recipe(config: ReinforcementConfig) -> str | None:
    folder = RECIPES.get((config.source.name or "", config.policy.image_size))
    return folder and f"recipes/{folder}/student.yaml"


def render(name: str, described: Mapping[str, Configuration], remarks: Remarks | None = None) -> DatasetCard:
    """The card of a dataset.

    Args:
        name: of the repository or folder.
        described: its configurations by name, at least one.
        remarks: what the data cannot tell.
    """
    remarks = remarks or Remarks()
    configs = {key: item.config for key, item in described.items()}
    joined = {key: config for key, config in configs.items() if not config.embed_images}
    shown = next(iter(joined or configs))  # the configuration of the examples
    return DatasetCard.from_template(
        _metadata(name, described),
        template_path=str(_TEMPLATE),
        name=name,
        markdown=markdown,
        tables=tables,
        remarks=remarks,
        described=described,
        configs=configs,
        statistics={key: item.statistics for key, item in described.items() if item.statistics is not None},
        joined=joined,
        shown=shown,
        imagenet=any(is_imagenet(config.source.name) for config in configs.values()),
        install=INSTALL,
        recipe=_recipe(configs[shown]),
        command=train_command(name, shown, configs[shown]),
        mixing=[key for key, config in configs.items() if config.policy.mix_operations],
        summaries=tables.summary_lines(described),
    )


def _metadata(name: str, described: Mapping[str, Configuration]) -> DatasetCardData:
    sources = dict.fromkeys(item.config.source.name for item in described.values())
    rows = max(item.num_rows or 0 for item in described.values())
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
                "data_files": [{"split": split, "path": f"{key}/{split}-*.parquet"}],
            }
            for key, item in described.items()
            for split in [item.config.split]
        ],
        **_license([item.config for item in described.values()]),
    )


def _license(configs: Sequence[ReinforcementConfig]) -> dict[str, Any]:
    """Licence metadata: the sources' terms and the teachers', none at all where a source's are not known."""
    if any(is_imagenet(config.source.name) for config in configs):
        return {**IMAGENET_LICENSE, "extra_gated_prompt": IMAGENET_PROMPT}
    if any(config.source.license is None for config in configs):
        return {}
    stated = [config.source.license for config in configs]
    stated += [teacher.get("license") for config in configs for teacher in config.teachers]
    return {"license": _together([name.strip() for item in stated if item for name in item.split(",")])}


def _together(licenses: Sequence[str]) -> str | list[str]:
    """Licences that all apply, as metadata: `other` and `unknown` say more than the rest of a list."""
    names = list(dict.fromkeys(licenses))
    return next((name for name in (OTHER, UNKNOWN) if name in names), names if len(names) > 1 else names[0])


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def keep_metadata(card: DatasetCard, on_hub: DatasetCard) -> list[str]:
    """Keeps what the metadata on the Hub say and a new card does not: what somebody added, and other configurations.

    Where there are other configurations, the licences and sources of both cards apply.

    Args:
        card: describes the configurations that are published; changed in place.
        on_hub: the card that it will replace.

    Returns:
        Names of the configurations that only the Hub has.
    """
    mine, theirs = card.data.to_dict(), on_hub.data.to_dict()
    published = {item["config_name"] for item in mine.get("configs") or []}
    others = [item for item in theirs.get("configs") or [] if item.get("config_name") not in published]
    for key, value in theirs.items():
        if key not in mine and key != "dataset_info":
            setattr(card.data, key, value)
    if others:
        card.data.configs = [*(mine.get("configs") or []), *others]
        licenses, sources = (
            [name for data in (theirs, mine) for name in _listed(data.get(key))]
            for key in ("license", "source_datasets")
        )
        card.data.license = _together(licenses) if licenses else None
        card.data.source_datasets = list(dict.fromkeys(sources)) or None
    return [str(item.get("config_name")) for item in others]
