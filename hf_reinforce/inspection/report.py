"""`inspect_dataset`: what a reinforced data set holds, as JSON, Markdown and pictures."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_reinforce.cards.markdown import text
from hf_reinforce.hub.repository import Repository
from hf_reinforce.inspection.measure import Disagreement, measure
from hf_reinforce.inspection.pictures import (
    DISAGREEMENTS_FILE,
    OPERATIONS_FILE,
    draw_disagreements,
    draw_operations,
    read_images,
)
from hf_reinforce.models.class_words import class_words
from hf_reinforce.store.config import ReinforcementConfig
from hf_reinforce.store.parquet import whole_file

JSON_FILE = "inspection.json"
MARKDOWN_FILE = "inspection.md"
FORMAT = 1


def inspect_dataset(
    name_or_path: str,
    output_dir: str | Path,
    config_name: str | None = None,
    *,
    revision: str | None = None,
    source: str | None = None,
    num_images: int = 24,
) -> dict[str, Any]:
    """Describes a reinforced data set and writes the description into a folder.

    Args:
        name_or_path: Hub id, or a folder that `reinforce` wrote.
        output_dir: gets `inspection.json`, `inspection.md`, `operations.png` and, where the images can be read,
            `disagreements.png`.
        config_name: the configuration, default the only one.
        revision: Hub revision.
        source: Hub id or folder of the images, default the recorded one.
        num_images: disagreements that are listed and drawn, >= 0; with 0 no image is read.

    Returns:
        The content of `inspection.json`.

    Raises:
        ValueError: if it is no reinforced data set, or unfinished or empty; the message says what to do.
    """
    if num_images < 0:
        raise ValueError(f"num_images must be >= 0, not {num_images}; 0 reads no images.")
    repository = Repository.find(name_or_path, revision)
    config_name, config = repository.load_config(config_name)
    if not config.complete:
        raise ValueError(f"{name_or_path} is not finished; run the command that reinforces it again to complete it.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shards = repository.shards(config_name, config.split)
    measured = measure(shards, config, num_images)
    doubtful = measured["disagreements"]
    if not draw_operations(measured, folder / OPERATIONS_FILE):
        (folder / OPERATIONS_FILE).unlink(missing_ok=True)
    files, notes = _draw_images(doubtful, config, shards, source, folder / DISAGREEMENTS_FILE)
    content = {
        "format": FORMAT,
        "dataset": name_or_path,
        "config_name": config_name,
        "commit": repository.commit,
        "num_samples": config.num_samples,
        "targets": [target.words for target in config.targets],
        "teachers": [teacher["name"] for teacher in config.teachers],
        "source": {"name": config.source.name, "split": config.source.split, "revision": config.source.revision},
        **measured,
        "disagreements": [asdict(item) for item in doubtful],
        "notes": notes,
    }
    names = _names(config)
    for item, file in zip(content["disagreements"], files, strict=True):
        item |= {"label_name": names[item["label"]], "prediction_name": names[item["prediction"]], "file": file}
    written = {JSON_FILE: json.dumps(content, indent=1) + "\n", MARKDOWN_FILE: _markdown(content, folder)}
    for file, text_of_file in written.items():
        with whole_file(folder / file) as temporary:
            temporary.write_text(text_of_file, encoding="utf-8")
    return content


def _names(config: ReinforcementConfig) -> Sequence[str]:
    """The classes for people."""
    return class_words(config.class_names or [str(index) for index in range(config.num_classes)])


def _draw_images(
    items: Sequence[Disagreement], config: ReinforcementConfig, shards: Sequence[str], source: str | None, path: Path
) -> tuple[list[str | None], list[str]]:
    """Draws the disagreements; returns their files' names, and why any of them are not drawn."""
    path.unlink(missing_ok=True)
    files: list[str | None] = [None] * len(items)
    if config.source.label_column is None:
        return files, [
            "The data set was reinforced without labels, so nothing is compared with them; reinforce it with "
            "--label_column_name to compare."
        ]
    if not items:
        return files, []
    try:
        pictures, files = read_images(items, config, shards, source)
    except (ValueError, OSError) as error:
        return files, [f"No picture of the disagreements, since the images cannot be read: {error}"]
    drawn = [(item, picture) for item, picture in zip(items, pictures, strict=True) if picture is not None]
    if drawn:
        draw_disagreements([item for item, _ in drawn], [picture for _, picture in drawn], _names(config), path)
    missing = len(items) - len(drawn)
    if not missing:
        return files, []
    return files, [
        f"{missing} of the {len(items)} images are not drawn, since the source holds other images in their rows; name "
        "the one that was reinforced, in its original order, with --source_name_or_path."
    ]


def _markdown(content: dict[str, Any], folder: Path) -> str:
    """The tables, with the pictures that are there."""
    parts = [f"# {text(content['dataset'])}, {text(content['config_name'])}", summary_table(content)]
    parts += [f"- {text(note)}" for note in content["notes"]]
    if content["groups"]:
        parts += ["## Targets by operation and strength", operations_table(content), f"![]({OPERATIONS_FILE})"]
    if (folder / DISAGREEMENTS_FILE).exists():
        parts += ["## Images that the teacher disagrees with most", f"![]({DISAGREEMENTS_FILE})"]
    return "\n\n".join(parts) + "\n"


def summary_table(content: dict[str, Any]) -> str:
    """The figures of the whole data set, as a Markdown table that can be read in a terminal too."""
    everything, copies, rows = content["everything"], content["duplicates"], content["num_rows"]
    compared, disagreeing = content["compared_rows"], content["disagreeing_rows"]
    lines = [
        ["images", f"{rows:,}"],
        ["reinforcements of each (N)", f"{content['num_samples']}"],
        ["stored classes (K)", ", ".join(content["targets"])],
        [
            "size",
            f"{content['num_bytes']:,} bytes, {content['num_bytes'] / everything['targets']:.1f} a reinforcement",
        ],
        ["teachers", ", ".join(text(name) for name in content["teachers"])],
        ["probability inside the top K", f"{_share(content['captured_mass'])}"],
        ["entropy of a target", f"{everything['entropy']:.3f} nats"],
        ["probability of the most likely class", _share(everything["confidence"])],
        ["targets that agree with the label", _share(everything["agreement"])],
        ["images whose mean target is another class", f"{disagreeing:,} of {compared:,}" if compared else "no labels"],
        ["images that are there more than once", f"{copies['images']:,}, in {copies['rows']:,} rows"],
        ["of them with different labels", f"{copies['with_different_labels']:,}"],
    ]
    return _aligned(["", ""], lines)


def operations_table(content: dict[str, Any]) -> str:
    """The targets by operation and strength, as a Markdown table that can be read in a terminal too."""
    rows = [
        [
            group["operation"],
            group["strength"],
            f"{group['targets']:,}",
            f"{group['entropy']:.3f}",
            _share(group["confidence"]),
            _share(group["agreement"]),
        ]
        for group in [content["everything"], *content["groups"]]
    ]
    return _aligned(["operation", "strength", "targets", "entropy", "confidence", "agreement"], rows)


def _share(value: float | None) -> str:
    """A share in percent."""
    return "no labels" if value is None else f"{100 * value:.1f} %"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns have one width."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, *rows)]
    lines.insert(1, ["-" * max(width, 3) for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
