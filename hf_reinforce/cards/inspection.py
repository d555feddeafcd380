"""`inspect_dataset` and `verify_shards`: what a reinforced dataset holds, and whether it is undamaged."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import images, schema
from hf_reinforce.cards.markdown import text
from hf_reinforce.cards.preview import draw_doubtful
from hf_reinforce.cards.statistics import measure
from hf_reinforce.images import ImageError
from hf_reinforce.models.classes import class_words
from hf_reinforce.sources.loading import load_source, remote_source
from hf_reinforce.splits import is_part
from hf_reinforce.store.atomic import write_whole
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.rows import ParquetRows, column_reader
from hf_reinforce.store.shards import file_checksum, shard_files

_PICTURE_FILE = "disagreements.png"
_EXAMPLES = 100  # of duplicates


def inspect_dataset(
    folder: str | Path, output_dir: str | Path, *, source: str | None = None, num_images: int = 24
) -> dict[str, Any]:
    """Describes a configuration of a reinforced dataset, reading every target once.

    Args:
        folder: the configuration's folder, as `reinforce` returns it.
        output_dir: gets `inspection.json` and, where the images can be read, `disagreements.png`.
        source: Hub id or folder of the images, default the recorded one.
        num_images: doubtful labels to list and draw, >= 0; with 0 no image is read.

    Returns:
        The content of `inspection.json`: the fields of `Statistics`, `compared_rows`, `disagreeing_rows`, the
        `disagreements` whose label the teacher contradicts most, `duplicates` and `notes`.

    Raises:
        ValueError: if the configuration is unfinished or empty, or a shard is damaged; the message says what to do.

    Example:
        from hf_reinforce import inspect_dataset

        content = inspect_dataset("outputs/cifar100-plus/small_randaug", "outputs/inspection")
        print(content["agreement"], content["duplicates"]["images"])
    """
    if num_images < 0:
        raise ValueError(f"num_images must be >= 0, not {num_images}; 0 reads no images.")
    folder, output_dir = Path(folder), Path(output_dir)
    config = ReinforcementConfig.load(folder)
    if not config.complete:
        raise ValueError(f"{folder} is not finished; run the command that reinforces it again to complete it.")
    statistics, found = measure(shard_files(folder, config.split), config, every_row=True)
    wrong = np.flatnonzero(found["compared"] & (found["prediction"] != found["label"]))
    doubt = found["label_probability"][wrong] - found["probability"][wrong]
    words = class_words(config.class_names or [str(index) for index in range(config.num_classes)])
    keys = ("row", "label", "label_probability", "prediction", "probability")
    doubtful = [
        {
            **{key: found[key][at].item() for key in keys},
            "position": int(at),
            schema.IMAGE_HASH: found["hash"][at].decode(),
            "label_name": words[found["label"][at]],
            "prediction_name": words[found["prediction"][at]],
        }
        for at in wrong[np.argsort(doubt, kind="stable")[:num_images]]
    ]
    output_dir.mkdir(parents=True, exist_ok=True)
    notes = _draw(doubtful, config, folder, source, output_dir / _PICTURE_FILE)
    content = {
        "format": 3,
        "dataset": str(folder),
        "config_name": folder.name,
        "num_samples": config.num_samples,
        "targets": [target.words for target in config.targets],
        "teachers": [teacher["name"] for teacher in config.teachers],
        "source": {"name": config.source.name, "split": config.source.split, "revision": config.source.revision},
        **asdict(statistics),
        "compared_rows": int(found["compared"].sum()),
        "disagreeing_rows": len(wrong),
        "disagreements": doubtful,
        "duplicates": duplicates(found["hash"], found["row"], found["label"]),
        "notes": notes,
    }
    write_whole(output_dir / "inspection.json", json.dumps(content, indent=1) + "\n")
    return content


def duplicates(hashes: NDArray[Any], rows: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Images that are there more than once, by the hashes, source rows and labels (-1: none) of all rows [R].

    Up to 100 of them are `examples`, those with different labels first.
    """
    order = np.lexsort((rows, hashes))
    _, starts = np.unique(hashes[order], return_index=True)
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    groups.sort(key=lambda group: (len(set(labels[group])) == 1, rows[group[0]]))
    return {
        "images": len(groups),
        "rows": sum(map(len, groups)),
        "with_different_labels": sum(len(set(labels[group])) > 1 for group in groups),
        "examples": [
            {schema.IMAGE_HASH: hashes[g[0]].decode(), "rows": rows[g].tolist(), "labels": labels[g].tolist()}
            for g in groups[:_EXAMPLES]
        ],
    }


def _draw(
    doubtful: Sequence[dict[str, Any]], config: ReinforcementConfig, folder: Path, source: str | None, path: Path
) -> list[str]:
    """Draws the images whose labels are doubtful, and returns notes on what cannot be drawn."""
    path.unlink(missing_ok=True)
    if config.source.label_column is None:
        return ["Nothing is compared with labels, since there are none; reinforce it with --label_column_name."]
    if not doubtful:
        return []
    pictures, reason = {}, "the source holds other images in their rows"
    try:
        rows, at = _image_rows(config, folder, source), "position" if config.embed_images else "row"
        read = column_reader(rows, config.source.image_column)
        for item in sorted(doubtful, key=lambda item: item[at]):  # forwards
            with suppress(ImageError):
                encoded = images.read_encoded(read(item[at]) if item[at] < len(rows) else None)
                if images.image_hash(encoded) == item[schema.IMAGE_HASH]:
                    pictures[item["position"]] = images.decode(encoded)
    except (ValueError, OSError) as error:
        reason = f"the images cannot be read ({error})"
    shown = [(item, pictures[item["position"]]) for item in doubtful if item["position"] in pictures]
    if shown:
        draw_doubtful(shown, path)
    missing = f"{len(doubtful) - len(shown)} of the {len(doubtful)} images are not drawn, since {reason}"
    remedy = "name the dataset that was reinforced, in its original order, with --source_name_or_path"
    return [] if len(shown) == len(doubtful) else [f"{missing}; {remedy}."]


def _image_rows(config: ReinforcementConfig, folder: Path, source: str | None) -> Dataset | ParquetRows:
    """The images by row, if possible without downloading the dataset that holds them."""
    record, name = config.source, source or config.source.name
    if config.embed_images:
        return ParquetRows(list(map(str, shard_files(folder, config.split))), [record.image_column])
    if name is None:
        raise ValueError("where they are is not recorded")
    where = (record.config_name, record.split, record.revision if source is None else None)
    remote = None if is_part(record.split) else remote_source(name, [record.image_column], *where)
    return load_source(name, *where) if remote is None else remote


def inspection_tables(content: Mapping[str, Any]) -> str:
    """What `inspect_dataset` returned, for a terminal."""
    copies, targets = content["duplicates"], content["measured_rows"] * content["num_samples"]
    facts = [
        f"{content['num_rows']:,} images with {content['num_samples']} reinforcements, {content['num_bytes']:,} bytes",
        f"targets: {text('; '.join(content['targets']))}; teachers: {text(', '.join(content['teachers']))}",
        f"mean target is another class: {content['disagreeing_rows']:,} of {content['compared_rows']:,} with labels",
        f"more than once: {copies['images']:,} images in {copies['rows']:,} rows, "
        f"{copies['with_different_labels']:,} with different labels",
    ]
    groups = [{**content, "operation": "all", "strength": "", "targets": targets}, *content["groups"]]
    rows = [["operation", "strength", "targets", "agreement", *content["figures"]]]
    for group in groups:
        values = [group["agreement"], *group["figures"].values()]
        shown = ["no labels" if value is None else f"{value:.3f}" for value in values]
        rows.append([group["operation"], group["strength"], f"{group['targets']:,}", *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*facts, "", *lines])


def verify_shards(folder: str | Path) -> tuple[int, list[str]]:
    """Compares every byte of every shard of a configuration with its recorded checksum.

    Args:
        folder: the configuration's folder.

    Returns:
        The number of shards that there should be, and a sentence for each that is damaged, missing or too many.

    Raises:
        ValueError: if the configuration is unfinished, or has no checksums, as one of an earlier version.

    Example:
        from hf_reinforce import verify_shards

        count, damages = verify_shards("outputs/cifar100-plus/small_randaug")
    """
    folder = Path(folder)
    config = ReinforcementConfig.load(folder)
    if not config.checksums:
        raise ValueError(
            f"{folder} is not finished, or older than checksums; run the command that reinforces it again to complete "
            "it."
        )
    remedy = "Run the command that reinforces it again"
    if any(teacher.get("kind") == "ml-dr" for teacher in config.teachers):
        remedy = "Import the archives again, into another folder"
    there, problems = {path.name: path for path in shard_files(folder, config.split)}, []
    for name in tqdm(sorted(config.checksums), desc="Verifying", unit="shard"):
        path = there.pop(name, None)
        if path is None or file_checksum(path) != config.checksums[name]:
            found = f"{name} is missing in {folder}" if path is None else f"{path} is damaged"
            problems.append(f"{found}. {remedy}; or delete it to download it again.")
    return len(config.checksums), problems + [
        f"{path} is no shard of this dataset. Delete it." for path in there.values()
    ]
