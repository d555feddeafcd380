"""`python -m benchmarks [name ...]`: runs benchmarks, prints their table and saves it."""

import argparse
import os
import time
from importlib.util import find_spec
from pathlib import Path

CACHE = Path("outputs/benchmarks")
RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", help="benchmarks to run, default all")
    parser.add_argument("--list", action="store_true", help="list their names")
    parser.add_argument("--data", default=None, help="Hub id or folder of photos, 'enlarged' (default) or 'generated'")
    parser.add_argument("--size", default="full", help="full (1,000 photos), tiny, or a number of photos")
    parser.add_argument(
        "--reinforced_images",
        type=int,
        default=1000,
        help="photos that a real teacher reinforces",
    )
    parser.add_argument("--repetitions", type=int, default=None, help="measured runs of each loader, default 7")
    parser.add_argument("--device", default="cpu", help="where the networks run")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help=f"default: benchmarks/results/latest.json, or for other sizes than full {CACHE}/latest.json",
    )
    args = parser.parse_args()

    # The libraries read these when they are imported. The decoder that everybody has is compared first.
    box_decoder = os.environ.get("HF_REINFORCE_DECODER") or "turbojpeg"
    os.environ["HF_REINFORCE_DECODER"] = "simplejpeg" if find_spec("simplejpeg") else "pil"
    os.environ["HF_DATASETS_CACHE"] = str((CACHE / "arrow").absolute())

    import datasets

    from benchmarks import photos, report
    from benchmarks.measure import Settings
    from benchmarks.suite import BENCHMARKS
    from hf_reinforce.images.jpeg import load_decoder

    unknown = set(args.names) - set(BENCHMARKS)
    if unknown or args.list:
        print(
            f"Benchmarks: {', '.join(BENCHMARKS)}"
            + (f"; there is no {', '.join(sorted(unknown))}." if unknown else "")
        )
        raise SystemExit(1 if unknown else 0)
    try:
        box_decoder = box_decoder if load_decoder(box_decoder)[0] == "turbojpeg" else None
    except ValueError:
        box_decoder = None
    datasets.disable_progress_bars()
    tiny = args.size == "tiny"
    count = {"tiny": 8, "full": 1000}.get(args.size) or int(args.size)
    found, data = photos.load_photos(args.data or photos.DEFAULT, count, CACHE.absolute())
    settings = Settings(
        found,
        data,
        CACHE.absolute(),
        tiny,
        args.repetitions or (1 if tiny else 7),
        args.reinforced_images,
        args.device,
        box_decoder,
    )
    output = args.output or (RESULTS if args.size == "full" else CACHE / "latest.json")
    print(f"{data}; box-only decoding: {box_decoder or 'no libturbojpeg >= 3'}", flush=True)
    for name in args.names or BENCHMARKS:
        start = time.perf_counter()
        rows = BENCHMARKS[name](settings)
        report.save(rows, output, data)
        for row in rows:
            medians = ", ".join(f"{variant} {value:.4g}" for variant, value in row.medians.items())
            print(
                f"{name}: {row.name}: {row.note if row.ratio is None else f'{row.ratio:.3g} {row.unit}'} ({medians})"
            )
        print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)
    print(report.table(output))


if __name__ == "__main__":
    main()
