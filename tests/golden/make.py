"""Writes the golden reinforced dataset of schema v1. Once written it does not change: later versions must read it.

python tests/golden/make.py
"""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

CONFIGS = ("rrc", "mixing_randaug", "small_randaug")
IMAGE_SIZE, NUM_SAMPLES, SEED = 32, 3, 7


def source():
    """The images, as the file beside this one holds them."""
    return load_dataset("parquet", data_files={"train": str(HERE / "images.parquet")}, split="train")


def contents(dataset):
    """Everything a student is given of each reinforcement: checksum of the view, parameters, target."""
    from hf_reinforce.store.pixel_contract import view_checksum

    return [
        {"view": view_checksum(dataset.view(row, slot)), "params": dataset.params(row, slot)}
        | {"target": {key: torch.as_tensor(value).tolist() for key, value in dataset.target(row, slot).items()}}
        for row in range(len(dataset))
        for slot in range(NUM_SAMPLES)
    ]


def main() -> None:
    from tiny import tiny_dataset, tiny_teacher

    from hf_reinforce import load_policy, load_reinforced, reinforce, write_dataset_card

    tiny_dataset(10, formats=("PNG", "JPEG")).to_parquet(HERE / "images.parquet")
    for name in CONFIGS:
        policy = load_policy(name, IMAGE_SIZE)
        reinforce(source(), tiny_teacher(), policy, HERE / "plus", num_samples=NUM_SAMPLES, top_k=4, seed=SEED)
        found = contents(load_reinforced(str(HERE / "plus"), name, source=source()))
        (HERE / f"{name}.json").write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")
    write_dataset_card(HERE / "plus")
    for picture in HERE.glob("plus/**/*.png"):
        picture.unlink()  # not what is tested, nor is the text of the card
    card = HERE / "plus/README.md"
    card.write_text("---".join(card.read_text().split("---")[:2]) + "---\n")


if __name__ == "__main__":
    main()
