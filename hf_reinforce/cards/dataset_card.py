"""Dataset cards, rendered from what is in the folder and nothing else."""

import dataclasses
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from hf_reinforce.cards import commands, markdown, tables
from hf_reinforce.cards.preview import PREVIEW_FILE, STATISTICS_FILE, draw_statistics
from hf_reinforce.cards.statistics import measure, summaries
from hf_reinforce.cards.tables import Configuration, Remarks
from hf_reinforce.licenses import IMAGENET_LICENSE, IMAGENET_PROMPT, OTHER, UNKNOWN, is_hub_id, is_imagenet
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.parquet import whole_file
from hf_reinforce.store.shards import shard_files

_TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")


def write_dataset_card(folder: str | Path) -> None:
    """Writes `README.md` for a folder of configurations, and `statistics.png` into each that is finished.

    Raises:
        FileNotFoundError: if there is no finished configuration.
    """
    described = describe(folder)
    for name, item in described.items():
        if item.statistics is not None:
            draw_statistics(item.statistics, item.config, Path(folder) / name / STATISTICS_FILE)
    with whole_file(Path(folder) / "README.md") as temporary:
        _render_folder(folder, described).save(temporary)


def dataset_card(folder: str | Path, config_names: Collection[str] | None = None) -> DatasetCard:
    """The card of a folder of configurations, as the Hub wants it.

    Args:
        folder: holds one subfolder with `reinforcement.json` and Parquet files for each configuration.
        config_names: the configurations to describe, default all that are finished.

    Raises:
        FileNotFoundError: if there is no finished configuration.
    """
    return _render_folder(folder, describe(folder, config_names))


def _render_folder(folder: str | Path, described: Mapping[str, Configuration]) -> DatasetCard:
    pictures = (PREVIEW_FILE, STATISTICS_FILE)
    there = {name: tuple(file for file in pictures if (Path(folder) / name / file).exists()) for name in described}
    named = {name: dataclasses.replace(item, pictures=there[name]) for name, item in described.items()}
    return render(Path(folder).resolve().name, named)


def describe(folder: str | Path, config_names: Collection[str] | None = None) -> dict[str, Configuration]:
    """Measures the finished configurations of a folder.

    Args:
        folder: as for `dataset_card`.
        config_names: as for `dataset_card`.

    Raises:
        FileNotFoundError: if there is no finished configuration.
        ValueError: if a shard is damaged, or there is none.
    """
    described = {}
    for path in sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG_FILE}")):
        config = ReinforcementConfig.load(path)
        if config.complete and (config_names is None or path.name in config_names):
            shards = shard_files(path, config.split)
            if not shards:
                raise ValueError(
                    f"{path} has no shards of the split {config.split!r}; run the command that reinforces this "
                    "data set again."
                )
            statistics = measure(shards, config) if config.classes else None
            described[path.name] = Configuration(
                config, statistics, _version(path, config), summaries=summaries(shards[0], config)
            )
    if not described:
        raise FileNotFoundError(f"{folder} holds no finished configuration of a reinforced data set.")
    return described


def _version(folder: Path, config: ReinforcementConfig) -> str:
    """Three numbers that change with the contents: `datasets` keeps a folder's rows in its cache by them."""
    digest = zlib.crc32((folder / CONFIG_FILE).read_bytes()) % 1_000_000
    return f"{config.schema_version}.{config.num_samples}.{digest}"


def render(name: str, described: Mapping[str, Configuration], remarks: Remarks | None = None) -> DatasetCard:
    """The card of a data set.

    Args:
        name: of the repository or folder.
        described: its configurations by name, at least one.
        remarks: what the data cannot tell.
    """
    remarks = remarks or Remarks()
    configs = {key: item.config for key, item in described.items()}
    joined = [key for key, config in configs.items() if not config.embed_images]
    shown = (joined or list(configs))[0]  # the configuration of the examples
    statistics = {key: item.statistics for key, item in described.items() if item.statistics is not None}
    return DatasetCard.from_template(
        _metadata(name, described),
        template_path=str(_TEMPLATE),
        name=name,
        markdown=markdown,
        remarks=remarks,
        described=described,
        shown=shown,
        split=configs[shown].split,
        joined=joined,
        imagenet=any(is_imagenet(config.source.name) for config in configs.values()),
        sources=tables.source_texts(configs.values()),
        stay=tables.source_texts(configs[key] for key in joined),
        install=commands.INSTALL,
        recipe=commands.recipe(configs[shown]),
        command=commands.train_command(name, shown, configs[shown], tables.num_rows(described[shown])),
        mixing=[key for key, config in configs.items() if config.policy.mix_operations],
        configurations=tables.configuration_table(described),
        targets=tables.target_table(described),
        summaries=tables.summary_lines(described),
        steps=tables.policy_table(configs),
        teachers=tables.teacher_tables(configs, remarks),
        licenses=tables.license_table(configs, remarks),
        statistics=statistics,
        hardest={key: tables.hardest_classes(item, configs[key]) for key, item in statistics.items()},
    )


def _metadata(name: str, described: Mapping[str, Configuration]) -> DatasetCardData:
    sources = dict.fromkeys(item.config.source.name for item in described.values())
    rows = max(tables.num_rows(item) or 0 for item in described.values())
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


def keep_metadata(card: DatasetCard, on_hub: DatasetCard) -> list[str]:
    """Keeps what the metadata on the Hub say and a new card does not: what somebody added, and other configurations.

    Where there are such configurations, the metadata must fit these too: lists are united, and all licences apply.

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
        if key in ("dataset_info", "configs"):
            continue
        if key not in mine:
            setattr(card.data, key, value)
        elif others:
            setattr(card.data, key, _united(key, mine[key], value))
    if others:
        card.data.configs = [*(mine.get("configs") or []), *others]
    return [str(item.get("config_name")) for item in others]


def _united(key: str, mine: Any, theirs: Any) -> Any:
    """One value for configurations of which some have `mine` and others `theirs`."""
    if key == "license":
        return _together([*_as_list(theirs), *_as_list(mine)])
    if key == "size_categories":
        return [
            max([*_as_list(theirs), *_as_list(mine)], key=lambda size: _SIZES.index(size) if size in _SIZES else -1)
        ]
    if key == "extra_gated_prompt":
        return theirs if mine.strip() in theirs else f"{theirs.rstrip()}\n\n{mine}"
    return list(dict.fromkeys([*theirs, *mine])) if isinstance(mine, list) and isinstance(theirs, list) else theirs


def _as_list(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [value]
