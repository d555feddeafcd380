"""`python -m benchmarks [name ...]`: runs benchmarks, prints their table and saves it."""

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CACHE = Path("outputs/benchmarks")
RESULTS = Path(__file__).parent / "results" / "latest.json"


def benchmarks() -> dict[str, Callable[[Any], list[Any]]]:
    """The benchmarks by name, in the order in which they run. A new one is a function and a line here."""
    from benchmarks import generation, loader, opening, storage, training

    return {
        "loader-randaug": loader.loader_randaug,
        "loader-rrc": loader.loader_rrc,
        "loader-original": loader.loader_original,
        "loader-mixing": loader.loader_mixing,
        "repeated": loader.repeated,
        "cached": loader.cached,
        "streaming": loader.streaming,
        "record-read": storage.record_read,
        "record-bytes": storage.record_bytes,
        "opening": opening.opening,
        "joining": opening.joining,
        "importing": storage.importing,
        "generation": generation.generation,
        "augmentation": generation.augmentation,
        "training-step": training.training_step,
        "online-step": training.online_step,
        "memory": generation.memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", help="benchmarks to run, default all")
    parser.add_argument("--list", action="store_true", help="list their names")
    parser.add_argument(
        "--data", default="enlarged", help="Hub id or folder of photos, 'enlarged' (default) or 'generated'"
    )
    parser.add_argument("--size", default="full", help="full (1,000 photos), tiny, or a number of photos")
    parser.add_argument("--reinforced_images", type=int, default=1000, help="photos that a real teacher reinforces")
    parser.add_argument("--device", default="cpu", help="where the networks run")
    args = parser.parse_args()

    # The libraries read these when they are imported. The decoder that everybody has is compared first.
    box_decoder: str | None = os.environ.get("HF_REINFORCE_DECODER") or "turbojpeg"
    os.environ["HF_REINFORCE_DECODER"] = "simplejpeg" if find_spec("simplejpeg") else "pil"
    os.environ["HF_DATASETS_CACHE"] = str((CACHE / "arrow").absolute())

    import datasets

    from benchmarks.measure import Settings, save, table
    from benchmarks.photos import load_photos
    from hf_reinforce.images.jpeg import load_decoder

    known = benchmarks()
    if unknown := sorted(set(args.names) - set(known)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}.")
    if args.list:
        print(f"Benchmarks: {', '.join(known)}")
        return
    try:
        box_decoder = box_decoder if load_decoder(str(box_decoder))[0] == "turbojpeg" else None
    except ValueError:
        box_decoder = None
    datasets.disable_progress_bars()
    tiny, cache = args.size == "tiny", CACHE.absolute()
    photos, data = load_photos(args.data, {"tiny": 8, "full": 1000}.get(args.size) or int(args.size), cache)
    repetitions = 1 if tiny else 7
    settings = Settings(photos, data, cache, tiny, repetitions, args.reinforced_images, args.device, box_decoder)
    output = RESULTS if args.size == "full" else CACHE / "latest.json"  # others than full are no results
    print(f"{data}; box-only decoding: {box_decoder or 'no libturbojpeg >= 3'}", flush=True)
    for name in args.names or known:
        start = time.perf_counter()
        rows = known[name](settings)
        save(rows, output, data)
        for row in rows:
            medians = ", ".join(f"{variant} {value:.4g}" for variant, value in row.medians.items())
            measured = row.note if row.ratio is None else f"{row.ratio:.3g} {row.unit}"
            print(f"{name}: {row.name}: {measured} ({medians})")
        print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)
    print(table(output))


if __name__ == "__main__":
    main()
