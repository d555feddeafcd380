"""Reinforces a dataset: a teacher looks at many augmentations of every image, and its answers become columns.

    python recipes/reinforce.py recipes/cifar100_plus/reinforce.yaml --estimate True
    python recipes/reinforce.py recipes/cifar100_plus/reinforce.yaml
    accelerate launch recipes/reinforce.py --dataset_name ethz/food101 --teacher_name_or_path timm/resnet50.a1_in1k ...

With --estimate it reads and measures a few images and says what the run will cost, before anything is spent.
Run the same command again to continue after an interruption, or with a larger --num_samples to add reinforcements.
"""

import logging
from dataclasses import dataclass

from arguments import check_device, class_map, one_line_errors, option, parse, required


@dataclass
class ReinforceArguments:
    dataset_name: str = required("Hub id, folder of Parquet files, or ImageFolder.")
    teacher_name_or_path: list[str] = required("Hub id or folder of a classifier; several make an ensemble.")
    output_dir: str = required("Folder of the Hub repository to write; the policy's name becomes its configuration.")
    dataset_config_name: str | None = option("Hub configuration of the dataset.")
    dataset_revision: str | None = option("Hub revision of the dataset.")
    split: str = option("Split to reinforce, or a part: train[:50%], train[5:15], train+test.", "train")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, also of texts; default the only ClassLabel; '' for none.")
    teacher_checkpoint: str | None = option("Weights of a teacher that is a bare timm architecture.")
    teacher_revision: str | None = option("Hub revision of the teachers.")
    teacher_weights: list[float] = option("Weights of an ensemble, default equal.", [])
    teacher_temperature: float = option("Temperature of the teacher's softmax.", 1.0)
    teacher_dtype: str = option("float32, bfloat16 or float16; docs/guide.md says what they cost.", "float32")
    class_map: str | None = option("identity, or JSON: the teacher's class for each class of the dataset.")
    policy: str = option("Named policy, or a YAML file.", "randaug")
    image_size: int = option("Side of a view in pixels, for a named policy.", 224)
    num_samples: int = option("N, reinforcements per image.", 50)
    top_k: int | None = option("K, stored classes per reinforcement, default 10, or all where there are fewer.")
    seed: int = option("Seed of the augmentation parameters.", 0)
    max_samples: int | None = option("Reinforce the first so many rows.")
    shard_size: int = option("Rows per Parquet file, rounded up to a multiple of 64: 100 becomes 128.", 4096)
    embed_images: bool = option("Store the images too.", False)
    on_error: str = option("raise, or skip images that cannot be decoded and record them.", "raise")
    num_workers: int = option("Threads that decode and augment.", 2)
    batch_size: int = option("Views per forward pass of the teacher.", 64)
    device: str | None = option("Device of the teacher, default the one of this process.")
    estimate: bool = option("Only measure on a few images, and print views, disk space and hours.", False)


@one_line_errors
def main() -> None:
    (args,) = parse(__doc__, [ReinforceArguments])
    check_device(args.device)
    from accelerate import PartialState

    import hf_reinforce
    from hf_reinforce.cards.dataset_card import train_command
    from hf_reinforce.generation.estimate import estimate
    from hf_reinforce.hub.load import load_source
    from hf_reinforce.hub.repository import dataset_commit

    policy = hf_reinforce.load_policy(args.policy, args.image_size)
    revision = dataset_commit(args.dataset_name, args.dataset_revision)
    source = (args.dataset_name, args.dataset_config_name, args.split, revision)
    dataset, num_images = first_images(source, args) if args.estimate else (load_source(*source), None)
    if args.max_samples is not None:
        dataset = dataset.select(range(min(args.max_samples, len(dataset))))
        num_images = num_images and min(args.max_samples, num_images)
    teacher = hf_reinforce.load_teacher(
        args.teacher_name_or_path,
        checkpoint=args.teacher_checkpoint,
        revision=args.teacher_revision,
        weights=args.teacher_weights or None,
        temperature=args.teacher_temperature,
    ).to("cpu", args.teacher_dtype)
    same = "num_samples top_k shard_size embed_images on_error num_workers batch_size device"
    options = {name: getattr(args, name) for name in same.split()}
    options |= {"image_column": args.image_column_name, "label_column": args.label_column_name}
    options["class_map"] = class_map(args.class_map)
    if args.estimate:
        print(estimate(dataset, teacher, policy, num_images=num_images, **options))
        return
    folder = hf_reinforce.reinforce(
        dataset,
        teacher,
        policy,
        args.output_dir,
        seed=args.seed,
        source_name=args.dataset_name,
        source_config=args.dataset_config_name,
        source_revision=revision,
        split=args.split,
        **options,
    )
    if PartialState().is_main_process:
        hf_reinforce.write_preview(folder, dataset)
        hf_reinforce.write_dataset_card(folder.parent)
        command = train_command(str(folder.parent), folder.name, hf_reinforce.ReinforcementConfig.load(folder))
        print(f'Done: load_dataset("{folder.parent}", "{folder.name}"). To train a student:\n{command}')


def first_images(source, args):
    """The first images of a dataset, without downloading the rest, and how many there are.

    Where that is recorded nowhere, the whole dataset and None.
    """
    from datasets import Dataset, Image

    from hf_reinforce.hub.load import load_source, remote_source
    from hf_reinforce.randomness import PARTNER_BLOCK
    from hf_reinforce.sources.image_source import find_columns
    from hf_reinforce.splits import count_rows, split_names

    name, config, split, revision = source
    splits = split_names(split)
    stream = load_source(name, config, splits[0], revision, streaming=True) if splits != ("all",) else None
    if stream is not None and stream.features is not None:
        image, _ = find_columns(stream.features, args.image_column_name, args.label_column_name)
        sizes = {}
        for part in splits:
            recorded = (stream.info.splits or {}).get(part)
            rows = None if recorded else remote_source(name, [image], config, part, revision)
            sizes[part] = recorded.num_examples if recorded else None if rows is None else len(rows)
        if None not in sizes.values():
            stream = stream.cast_column(image, Image(decode=False))
            few = Dataset.from_list(list(stream.take(PARTNER_BLOCK)), features=stream.features)
            return few, count_rows(split, sizes)
    logging.warning("%s does not say how many rows it has, so the whole of it is loaded.", source[0])
    return load_source(*source), None


if __name__ == "__main__":
    main()
