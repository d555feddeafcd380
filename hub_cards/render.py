"""Renders the cards of this folder.

    python hub_cards/render.py
    python hub_cards/render.py outputs/cifar100-plus

The first command renders every card again; the second also takes over what a finished dataset measures of itself,
with its pictures, into `measured.json` and the folders beside it. A dataset without `measured.json` is planned: its
card says what the recipes say.
"""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from hf_reinforce import ReinforcementConfig, load_policy
from hf_reinforce.cards.dataset_card import Configuration, describe, render
from hf_reinforce.cards.markdown import code, linked
from hf_reinforce.cards.preview import PREVIEW_FILE
from hf_reinforce.cards.statistics import Statistics
from hf_reinforce.store.config import PixelContract, SourceRecord
from hf_reinforce.targets import ClassDistribution

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
MEASURED_FILE = "measured.json"
CARDS = {
    "imagenet-plus": [
        "imagenet_plus/rrc",
        "imagenet_plus/mixing",
        "imagenet_plus/randaug",
        "imagenet_plus/mixing_randaug",
    ],
    "cifar100-plus": ["cifar100_plus/reinforce"],
    "food101-plus": ["food101_plus/reinforce"],
    "flowers102-plus": ["flowers102_plus/reinforce"],
}
"""Repositories, and the recipes of their configurations."""


def read(path: Path) -> dict[str, Any]:
    """A YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def planned(recipe: dict[str, Any], known: dict[str, Any]) -> Configuration:
    """What a recipe will make."""
    source = known["sources"][recipe["dataset_name"]]
    policy = load_policy(recipe["policy"], recipe["image_size"])
    label, top_k, classes = recipe["label_column_name"], recipe["top_k"], source["num_classes"]
    config = ReinforcementConfig(
        policy=policy,
        num_samples=recipe["num_samples"],
        targets=(
            ClassDistribution(
                tuple(planned_teacher(name, recipe, known) for name in recipe["teacher_name_or_path"]),
                top_k,
                classes,
                temperature=recipe.get("teacher_temperature", 1.0),
            ),
        ),
        seed=recipe["seed"],
        source=SourceRecord(
            recipe["dataset_name"],
            None,
            None,
            recipe["split"],
            source["num_rows"],
            recipe["image_column_name"],
            label,
            (label,),
            source["license"],
        ),
        pixels=PixelContract({}, {}, ()),
        shard_size=recipe.get("shard_size", 4096),
        shuffled=bool(policy.mix_operations),
    )
    return Configuration(config)


def planned_teacher(name: str, recipe: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """A teacher as `reinforcement.json` would describe it, without what only its weights can tell."""
    own = known["teachers"].get(name, {})
    return {
        "name": name,
        "kind": "timm",
        "weight_hash": None,
        "dtype": recipe.get("teacher_dtype", "float32"),
        "weight": 1.0,
        "preprocessing": {"image_size": own.get("image_size", recipe["image_size"])},
        **({"license": own["license"]} if "license" in own else {}),
    }


def measured(name: str, known: dict[str, Any]) -> dict[str, Configuration]:
    """What `measured.json` holds."""
    described = {}
    for key, item in json.loads((HERE / name / MEASURED_FILE).read_text(encoding="utf-8"))["configurations"].items():
        config = ReinforcementConfig.from_dict(item["reinforcement"])
        if config.source.license is None:
            license = known["sources"][config.source.name]["license"]
            config = replace(config, source=replace(config.source, license=license))
        described[key] = Configuration(
            config,
            Statistics(**item["statistics"]),
            item["version"],
            (HERE / name / key / PREVIEW_FILE).exists(),
        )
    return described


def teacher_notes(folder: str, known: dict[str, Any], accuracies: dict[str, float]) -> dict[str, str]:
    """What became a teacher that a recipe trains."""
    path = RECIPES / folder / "teacher.yaml"
    if not path.exists():
        return {}
    recipe = read(path)
    name, base = recipe["output_dir"], recipe["model_name_or_path"]
    text = (
        f"{code(name)} is {linked(base)} ({known['teachers'][base]['license']}), fine-tuned on "
        f"{linked(recipe['dataset_name'], 'datasets/')} with `recipes/{folder}/teacher.yaml`. Its accuracy on the "
        f"{recipe['eval_split']} split is "
    )
    text += f"{100 * accuracies[name]:.1f} %." if name in accuracies else "not measured yet."
    return {name: text, f"./{name}": text}  # as the recipe has it, and as it is recorded


def card(name: str) -> str:
    """The text of a card."""
    known = read(HERE / "sources.yaml")
    recipes = [read(RECIPES / f"{recipe}.yaml") for recipe in CARDS[name]]
    folder = CARDS[name][0].split("/")[0]
    path = HERE / name / MEASURED_FILE
    accuracies = json.loads(path.read_text(encoding="utf-8"))["teacher_accuracy"] if path.exists() else {}
    described = (
        measured(name, known) if path.exists() else {recipe["policy"]: planned(recipe, known) for recipe in recipes}
    )
    plan = None if path.exists() else f"`recipes/{folder}`"
    citation = known["sources"][recipes[0]["dataset_name"]]["citation"].rstrip()
    return str(render(name, described, plan, teacher_notes(folder, known, accuracies), citation))


def take_over(folder: Path) -> None:
    """Keeps what a finished dataset measures of itself, and its pictures."""
    target, configurations, accuracies = HERE / folder.name, {}, {}
    for key, item in describe(folder).items():
        configurations[key] = {
            "version": item.version,
            "reinforcement": item.config.to_dict(),
            "statistics": asdict(item.statistics),
        }
        for teacher in item.config.teachers:
            results = Path(teacher["name"]) / "eval_results.json"
            if results.exists():
                accuracies[teacher["name"].removeprefix("./")] = json.loads(results.read_text(encoding="utf-8"))[
                    "eval_accuracy"
                ]
        (target / key).mkdir(parents=True, exist_ok=True)
        if item.preview:
            shutil.copyfile(folder / key / PREVIEW_FILE, target / key / PREVIEW_FILE)
    content = {"configurations": configurations, "teacher_accuracy": accuracies}
    (target / MEASURED_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def main() -> None:
    for folder in sys.argv[1:]:
        if Path(folder).name not in CARDS:
            raise SystemExit(f"error: {folder} must be named as one of {', '.join(CARDS)}.")
        take_over(Path(folder))
    for name in CARDS:
        (HERE / name).mkdir(exist_ok=True)
        (HERE / name / "README.md").write_text(card(name), encoding="utf-8")


if __name__ == "__main__":
    main()
