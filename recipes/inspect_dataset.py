"""Describes a reinforced dataset: targets by operation, likely label errors, duplicates.

    python recipes/inspect_dataset.py outputs/cifar100-plus
    python recipes/inspect_dataset.py outputs/cifar100-plus --verify True

With --verify it only compares every shard with its checksum; the exit code is 1 if one is damaged or missing.
Its name is not inspect.py, which would hide the module `inspect` of Python from every recipe.
"""

from dataclasses import dataclass
from pathlib import Path

from arguments import one_line_errors, option, parse, required

FIRST = "dataset_name"  # the flag that may be left out


@dataclass
class InspectArguments:
    dataset_name: str = required(
        "Hub id or folder of a reinforced dataset; the flag may be left out if it comes first."
    )
    output_dir: str | None = option(
        "Folder for inspection.json and disagreements.png, default outputs/NAME-inspection."
    )
    verify: bool = option("Only compare every shard with its checksum.", False)
    dataset_config_name: str | None = option("Its configuration, default the only one.")
    dataset_revision: str | None = option("Its Hub revision: branch, tag or commit, default main.")
    source_name_or_path: str | None = option("Hub id or folder of the images, default the recorded one.")
    num_images: int = option("Images to list that the teacher disagrees with; 0 reads no images.", 24)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [InspectArguments], first=FIRST)
    from hf_reinforce.cards.inspection import inspect_dataset, inspection_tables, verify_shards
    from hf_reinforce.hub.repository import Repository

    repository = Repository.find(args.dataset_name, args.dataset_revision)
    config_name, config = repository.load_config(args.dataset_config_name)
    repository.shards(config_name, config.split)  # downloads those that are not here
    folder = repository.folder / config_name
    if args.verify:
        count, problems = verify_shards(folder)
        print("\n".join(problems) or f"All {count} shards of {args.dataset_name} are as they were written.")
        raise SystemExit(1 if problems else 0)
    output_dir = args.output_dir or f"outputs/{Path(args.dataset_name).resolve().name}-inspection"
    content = inspect_dataset(folder, output_dir, source=args.source_name_or_path, num_images=args.num_images)
    print(inspection_tables(content))
    for note in content["notes"]:
        print(f"\n{note}")
    print(f"\nWritten to {output_dir}.")


if __name__ == "__main__":
    main()
