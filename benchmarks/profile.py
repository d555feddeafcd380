"""Where the time of a sample goes: `python -m benchmarks.profile`, microseconds of CPU time on one thread."""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import photos
from benchmarks.measure import Settings
from benchmarks.records import both_formats
from hf_reinforce import ReinforcedDataset, images, jpeg, load_reinforced
from hf_reinforce.augmentations.base import ViewAugmentation

CACHE = Path("outputs/benchmarks").absolute()
BATCH = 64


class Clock:
    """Sums the time of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, name: str, step: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = step(*arguments)
        self.seconds[name] += time.process_time() - start
        return result


def sample(dataset: ReinforcedDataset, position: int, slot: int, clock: Clock) -> dict[str, Any]:
    """One sample as `ReinforcedDataset` makes it, step by step; `floor` is no part of it."""
    encoded = clock("read the image's bytes, check their hash", dataset.encoded, position)
    params = clock("read the parameters", dataset.params, position, slot)
    target = clock("read the target", dataset.target, position, slot)
    box = params["crop"]
    image = clock("decode", images.decode, encoded, box)
    size = dataset.policy.image_size
    image = clock("resize", images.resize, image, size, size)
    for operation in dataset.policy.view_operations[1:]:
        image = _apply(operation, image, params, clock)
    corner = {"top": box["top"] + box["height"] - 1, "left": box["left"], "height": 1, "width": 1}
    clock("floor", images.decode, encoded, corner)
    return {"pixel_values": image, "labels": 0, **target}


def _apply(operation: ViewAugmentation, image: torch.Tensor, params: dict[str, Any], clock: Clock) -> torch.Tensor:
    found = params[str(operation.field)]
    view: torch.Tensor = image if found is None else clock(operation.name, operation.apply, image, found, 1.0)
    return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos.DEFAULT, help="Hub id or folder of photos")
    parser.add_argument("--images", type=int, default=1000, help="photos")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found, data = photos.load_photos(args.data, args.images, CACHE)
    settings = Settings(found, data, CACHE, workers=0)
    print(f"\n{data}; decoder {jpeg.DECODER} ({jpeg.DECODER_VARIABLE}={os.environ.get(jpeg.DECODER_VARIABLE, '')})")
    for policy in ("rrc", "randaug"):
        folder, _ = both_formats(settings, policy, 400)
        dataset = load_reinforced(str(folder), policy, source=found)
        slots = np.random.default_rng(0).integers(400, size=len(dataset)).tolist()
        for clock in (Clock(), Clock()):  # the first pass warms up
            for start in range(0, len(dataset), BATCH):
                positions = range(start, min(start + BATCH, len(dataset)))
                samples = [sample(dataset, position, slots[position], clock) for position in positions]
                clock("make the batch", dataset.collate, samples)
        floor = clock.seconds.pop("floor")
        print(f"\n| {policy}: step | us a sample |\n|---|---|")
        for name, seconds in {**clock.seconds, "all": sum(clock.seconds.values())}.items():
            print(f"| {name} | {seconds / len(dataset) * 1e6:.0f} |")
        print(f"| of `decode`: down to the last row of the crop, for one pixel | {floor / len(dataset) * 1e6:.0f} |")


if __name__ == "__main__":
    main()
