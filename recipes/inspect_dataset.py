"""Describes a reinforced data set: targets by operation, likely label errors, duplicates.

    python recipes/inspect_dataset.py outputs/cifar100-plus --output_dir outputs/cifar100-inspection

Its name is not inspect.py, which would hide the module `inspect` of Python from every recipe.
"""

import logging
import sys
from dataclasses import dataclass

from arguments import one_line_errors, option, parse, required


@dataclass
class InspectArguments:
    dataset_name: str = required(
        "Hub id or folder of a reinforced data set; the flag may be left out if it comes first."
    )
    output_dir: str = required("Folder for inspection.json, inspection.md and the pictures.")
    dataset_config_name: str | None = option("Its configuration, default the only one.")
    dataset_revision: str | None = option("Its Hub revision: branch, tag or commit, default main.")
    source_name_or_path: str | None = option("Hub id or folder of the images, default the recorded one.")
    num_images: int = option("Images to list that the teacher disagrees with; 0 reads no images.", 24)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [InspectArguments], argv=with_flag(sys.argv[1:]))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:%(name)s: %(message)s")
    from hf_reinforce.inspection import inspect_dataset, operations_table, summary_table

    content = inspect_dataset(
        args.dataset_name,
        args.output_dir,
        args.dataset_config_name,
        revision=args.dataset_revision,
        source=args.source_name_or_path,
        num_images=args.num_images,
    )
    print(summary_table(content))
    if content["groups"]:
        print(f"\n{operations_table(content)}")
    for note in content["notes"]:
        print(f"\n{note}")
    print(f"\nWritten to {args.output_dir}.")


def with_flag(argv):
    """The command line with `--dataset_name` in front of a data set that comes first."""
    named = argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml"))
    return ["--dataset_name", *argv] if named else argv


if __name__ == "__main__":
    main()
