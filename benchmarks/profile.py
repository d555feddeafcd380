"""Where the time goes, in microseconds of CPU time on one thread: `python -m benchmarks.profile [name]`."""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from benchmarks import photos
from benchmarks.generation import random_teacher
from benchmarks.measure import Settings, timed
from benchmarks.records import CLASSES, TARGET, TOP_K, both_formats, encoded_photos, made_up_targets, reinforced_table
from hf_reinforce import AugmentationPolicy, ReinforcedDataset, images, load_policy, load_reinforced
from hf_reinforce.augmentations.base import ViewAugmentation
from hf_reinforce.augmentations.rand_augment import OPERATIONS, SIGNED, RandAugment, magnitude_of
from hf_reinforce.images import jpeg
from hf_reinforce.store.shards import write_shard
from hf_reinforce.targets.class_distribution import encode, top_k_targets

CACHE = Path("outputs/benchmarks").absolute()
BATCH, NUM_SAMPLES = 64, 16
TEACHERS = ("mobilenetv3_small_100", "resnet50")


class Clock:
    """Sums the CPU time of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, name: str, step: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = step(*arguments)
        self.seconds[name] += time.process_time() - start
        return result

    def table(self, title: str, count: int) -> str:
        """The steps as Markdown, in us for each of `count` things; steps that begin with `of` are part of others."""
        lines = [f"| {title} | us |", "|---|---|"]
        for name, seconds in self.seconds.items():
            lines.append(f"| {name} | {seconds / count * 1e6:.0f} |")
        whole = sum(seconds for name, seconds in self.seconds.items() if not name.startswith("of "))
        return "\n".join([*lines, f"| all | {whole / count * 1e6:.0f} |"])


def sample(dataset: ReinforcedDataset, position: int, slot: int, clock: Clock) -> dict[str, Any]:
    """One sample as `ReinforcedDataset` makes it, step by step; what begins with `of` is no part of it."""
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
    clock("of decoding: down to the last row of the crop, for one pixel", images.decode, encoded, corner)
    return {"pixel_values": image, "labels": 0, **target}


def _apply(operation: ViewAugmentation, image: torch.Tensor, params: dict[str, Any], clock: Clock) -> torch.Tensor:
    found = params[str(operation.field)]
    view: torch.Tensor = image if found is None else clock(operation.name, operation.apply, image, found, 1.0)
    return view


def loader(settings: Settings, policy: str) -> str:
    """A sample of the loader, step by step."""
    folder, _ = both_formats(settings, policy, 400)
    dataset = load_reinforced(str(folder), policy, source=settings.photos)
    slots = np.random.default_rng(0).integers(400, size=len(dataset)).tolist()
    for clock in (Clock(), Clock()):  # the first pass warms up
        for start in range(0, len(dataset), BATCH):
            positions = range(start, min(start + BATCH, len(dataset)))
            samples = [sample(dataset, position, slots[position], clock) for position in positions]
            clock("make the batch", dataset.collate, samples)
    return clock.table(f"loader, {policy}: step of a sample", len(dataset))


def generation(settings: Settings, policy: str) -> str:
    """A view of generation, N = 16, step by step as `reinforce` makes it; the teacher is left out."""
    encoded = encoded_photos(settings.photos, 2 * BATCH)
    views = len(encoded) * NUM_SAMPLES
    for clock in (Clock(), Clock()):
        _generated(encoded, load_policy(policy, settings.image_size), settings, clock)
    return clock.table(f"generation, {policy}, N = {NUM_SAMPLES}: step of a view", views)


def _generated(encoded: list[bytes], policy: AugmentationPolicy, settings: Settings, clock: Clock) -> None:
    """Runs the steps of `reinforce` for some photos."""
    first, *others = policy.view_operations
    every = []
    for row, photo in enumerate(encoded):
        image = clock("decode, once a photo", images.decode, photo)
        clock("hash, once a photo", images.image_hash, photo)
        for slot in range(NUM_SAMPLES):
            params = clock("draw the parameters", policy.sample, 0, row, slot, *image.shape[1:])
            view = clock("crop, resize", first.apply, image, params[str(first.field)], 1.0)
            for operation in others:
                view = _apply(operation, view, params, clock)
            every.append((params, view))
    targets = made_up_targets(len(every), 0)
    for start in range(0, len(every), BATCH):
        batch = clock("make the batch", images.stack, [view for _, view in every[start : start + BATCH]])
        answer = torch.randn(len(batch), CLASSES).log_softmax(-1)
        answer = clock("top k, rounding", top_k_targets, answer, TOP_K)
        clock("top k, rounding", encode, answer)
    rows, hashes, drawn = range(len(encoded)), [""] * len(encoded), [params for params, _ in every]
    table = clock("columns", reinforced_table, policy, NUM_SAMPLES, rows, hashes, drawn, targets)
    clock("Parquet", write_shard, settings.cache / "profile.parquet", table, [TARGET])


def operations(settings: Settings) -> str:
    """Each operation of RandAugment, by Pillow with the way there and back and by ours: the fastest of 8 runs."""
    policy, lines = load_policy("rrc", settings.image_size), ["| operation | Pillow, us | ours, us |", "|---|---|---|"]
    decoded = [images.decode(photo) for photo in encoded_photos(settings.photos, 16)]
    views = [policy.apply(image, policy.sample(0, row, 0, *image.shape[1:])) for row, image in enumerate(decoded)]
    for index, op in enumerate(OPERATIONS):
        spent = {"pillow": 0.0, "ours": 0.0}
        for view, sign in product(views, (1, -1)):
            magnitude = magnitude_of(op, 9, settings.image_size) * (sign if op in SIGNED else 1)
            step = [{"op": index, "magnitude": magnitude}]
            runs = {
                "pillow": lambda v=view, o=op, m=magnitude: images.from_pil(
                    _apply_op(images.to_pil(v), o, m, InterpolationMode.NEAREST, None)
                ),
                "ours": lambda v=view, s=step: RandAugment().apply(v, s),
            }
            times = [(name, timed(run, unit=1e6)()) for name, run in list(runs.items()) * 8]
            for name in runs:
                spent[name] += min(value for key, value in times if key == name) / len(views) / 2
        lines.append(f"| {op} | {spent['pillow']:.0f} | {spent['ours']:.0f} |")
    return "\n".join(lines)


def teachers(settings: Settings) -> str:
    """What teachers take for a view, and what their multiplications would take as one matrix product."""
    views = torch.randint(256, (8, 3, settings.image_size, settings.image_size), dtype=torch.uint8)
    rate = _matrix_product()
    lines = [
        f"| teacher | us a view | GFLOP a view | us, at the {rate:.0f} GFLOP/s of a matrix product |",
        "|---" * 4 + "|",
    ]
    for name in TEACHERS:
        teacher = random_teacher(name, settings)
        for clock in (Clock(), Clock()):
            clock("pass", teacher, views)
        with FlopCounterMode(display=False) as counter:
            teacher(views)
        flops, seconds = counter.get_total_flops() / len(views), clock.seconds["pass"] / len(views)
        lines.append(f"| {name} | {seconds * 1e6:.0f} | {flops / 1e9:.2f} | {flops / rate / 1e3:.0f} |")
    return "\n".join(lines)


def _matrix_product(side: int = 1024) -> float:
    """GFLOP/s of a matrix product on one thread: what a network could reach at most."""
    matrix, clock = torch.randn(side, side), Clock()
    for clock in (Clock(), Clock()):
        for _ in range(8):
            clock("product", torch.mm, matrix, matrix)
    return 8 * 2 * side**3 / clock.seconds["product"] / 1e9


PROFILES: dict[str, tuple[Callable[[Settings], str], ...]] = {
    "loader": (partial(loader, policy="rrc"), partial(loader, policy="randaug")),
    "generation": (partial(generation, policy="rrc"), partial(generation, policy="randaug"), operations, teachers),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"{' and '.join(PROFILES)}, default both")
    parser.add_argument("--data", default=photos.DEFAULT, help="Hub id or folder of photos")
    parser.add_argument("--images", type=int, default=1000, help="photos")
    args = parser.parse_args()
    if unknown := set(args.names) - set(PROFILES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(PROFILES)}.")
    torch.set_num_threads(1)
    found, data = photos.load_photos(args.data, args.images, CACHE)
    settings = Settings(found, data, CACHE, workers=0)
    print(f"{data}; decoder {jpeg.DECODER} ({jpeg.DECODER_VARIABLE}={os.environ.get(jpeg.DECODER_VARIABLE, '')})")
    for name in args.names or PROFILES:
        for part in PROFILES[name]:
            print(f"\n{part(settings)}", flush=True)


if __name__ == "__main__":
    main()
