"""Trains a student: on a reinforced dataset, with an online teacher, or plainly.

accelerate launch recipes/train_kd.py recipes/cifar100_plus/student.yaml
python recipes/train_kd.py --dataset_name me/cifar100-plus --model_name_or_path resnet18 --output_dir outputs/r18
"""

import functools
import json
import logging
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from arguments import class_map, json_object, one_line_errors, option, parse, required
from training import check_same_run, train_and_evaluate

logger = logging.getLogger("hf_reinforce.train_kd")


@dataclass
class DataArguments:
    dataset_name: str = required("Hub id or folder of a reinforced dataset, or for plain and online of any images.")
    dataset_config_name: str | None = option("Configuration: of a reinforced dataset, the policy.")
    dataset_revision: str | None = option("Hub revision: branch, tag or commit, default main.")
    train_split: str = option("Training split of a dataset that is not reinforced.", "train")
    source_name_or_path: str | None = option("Hub id or folder of the images, default the recorded one.")
    streaming: bool = option("Read rows and images as streams, and download neither as a whole.", False)
    eval_dataset_name: str | None = option("Hub id or folder to evaluate on, default the source of the images.")
    eval_dataset_config_name: str | None = option("Its configuration, default the source's.")
    eval_split: str | None = option("Split to evaluate on, e.g. test; none without it.")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, also of texts; default the only ClassLabel column.")
    max_train_samples: int | None = option("Train on the first so many rows.")
    max_eval_samples: int | None = option("Evaluate on the first so many rows.")
    policy: str | None = option("Named policy or YAML file, for a dataset that is not reinforced.")
    image_size: int | None = option("Side of the views in pixels, default the policy's.")
    selection: str = option("cycle: every reinforcement once before any twice; random: as the paper.", "cycle")
    plain_fraction: float = option("Share of plain samples with hard labels; the paper uses 0.01.", 0.0)
    allow_missing: bool = option("Train on the rest where images are missing; compares every image first.", False)
    stored_views: bool = option("The stored augmentations also for --method online and plain.", False)
    accept_pixel_mismatch: bool = option("Train although the reference views come out differently here.", False)


@dataclass
class ModelArguments:
    model_name_or_path: str = required("timm architecture (random weights), or Hub id or folder (its weights).")
    model_revision: str | None = option("Hub revision of the model.")
    model_args: str | None = option('Further timm arguments as JSON, e.g. {"drop_path_rate": 0.1}.')
    input_size: int | None = option("Side that views are resized to on the device, default that of the views.")
    teacher_name_or_path: list[str] = option("For --method online: one teacher or several (an ensemble).", [])
    teacher_checkpoint: str | None = option("Weights of a teacher that is a bare timm architecture.")
    teacher_dtype: str = option("float32, bfloat16 or float16.", "float32")
    class_map: str | None = option("identity, or JSON: the teacher's class for each class of the dataset.")


FURTHER = """Further flags: --method {reinforced,online,plain}, --temperature, --hard_label_weight, --ema_decay,
--timm_optimizer, --repeated_augmentation, --cache_images, and every field of
transformers.TrainingArguments (--output_dir, --num_train_epochs, --learning_rate, ...)."""


def training_classes() -> list[type]:
    from hf_reinforce import KDTrainingArguments

    return [KDTrainingArguments]


@one_line_errors
def main() -> None:
    train(*parse(__doc__, [DataArguments, ModelArguments], training_classes, FURTHER))


def train(data, model_args, args) -> None:
    """Trains one student, or goes on with its training, evaluates it, and writes its card."""
    from transformers import set_seed

    from hf_reinforce import KDTrainer
    from hf_reinforce.cards.model_card import write_model_card
    from hf_reinforce.models.students import create_student, student_preprocessing

    set_seed(args.seed)
    commit = data_commit(data, args.output_dir)
    replayed = args.method == "reinforced" or data.stored_views
    train_set, config = training_data(data, replayed, args.seed, commit)
    say_ignored(data, model_args, args, is_reinforced=config is not None)
    names = config.class_names if replayed else train_set.source.class_names
    num_labels = config.num_classes if replayed else len(names or [])
    if not num_labels and config is not None and config.source.label_column is None:
        raise ValueError(
            f"{data.dataset_name} was reinforced without labels, so --method {args.method} has no classes; train with "
            "--method reinforced, or reinforce it again with its --label_column_name."
        )
    if not num_labels:
        raise ValueError(
            f"{data.dataset_name} has no ClassLabel column; name one, also of texts, with --label_column_name."
        )
    input_size = model_args.input_size or data.image_size or train_set.policy.image_size
    further = json_object("model_args", model_args.model_args)
    name = model_args.model_name_or_path
    model = create_student(name, num_labels, input_size, names, further, model_args.model_revision)
    preprocessing = student_preprocessing(model, input_size)
    evaluated = evaluation_source(data, config, commit)
    trainer = KDTrainer(
        model,
        args,
        train_dataset=train_set,
        eval_dataset=evaluation_data(data, config, evaluated, names, num_labels, preprocessing),
        teacher=online_teacher(model_args, names) if args.method == "online" else None,
        preprocessing=preprocessing,
    )
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # every process looks there for checkpoints
    check_same_run(args, settings_of(data, model_args, args, commit))
    train_and_evaluate(trainer, args)
    keys = ("dataset_name", "dataset_config", "dataset_split", "dataset_revision")
    where = dict(zip(keys, (*evaluated[:2], data.eval_split, evaluated[2]), strict=True))
    trainer.create_model_card = functools.partial(  # push_to_hub calls it as well
        write_model_card,
        trainer,
        base_model=name,
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        evaluation=where if data.eval_split else None,
    )
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)()
    if args.process_index == 0:
        flags = {"model_name_or_path": args.output_dir, "dataset_name": evaluated[0] or "DATASET"}
        flags |= {"dataset_config_name": evaluated[1], "split": data.eval_split or "SPLIT"}
        flags |= {"image_column_name": data.image_column_name, "label_column_name": data.label_column_name}
        words = [word for flag, value in flags.items() if value for word in (f"--{flag}", value)]
        print(
            f"{args.output_dir} has the student (model.safetensors), how it was trained (README.md) and what it came "
            f"to (all_results.json). Next: {shlex.join(['python', 'recipes/evaluate.py', *words])}"
        )


def say_ignored(data, model_args, args, is_reinforced) -> None:
    """Names in one line the flags that are not at their default and that a run of this kind does not read."""
    plain = args.method == "plain"
    ignored = {
        "teacher_name_or_path teacher_checkpoint teacher_dtype class_map": args.method != "online",
        "temperature hard_label_weight": plain,
        "stored_views": args.method == "reinforced",
        "label_smoothing_factor": not plain and not args.hard_label_weight,
        "policy train_split": is_reinforced,
        "allow_missing accept_pixel_mismatch": not is_reinforced,
        "eval_dataset_name eval_dataset_config_name max_eval_samples": data.eval_split is None,
        "optim optim_args adam_beta1 adam_beta2 adam_epsilon": bool(args.timm_optimizer),
    }
    idle = {flag for flags, is_idle in ignored.items() for flag in flags.split() if is_idle}
    of_run = ((values, field) for values in (data, model_args, args) for field in fields(values))
    set_here = [field.name for values, field in of_run if getattr(values, field.name) not in (field.default, None, [])]
    if given := [name for name in set_here if name in idle]:
        logger.warning("These flags change nothing here: %s.", ", ".join(f"--{name}" for name in given))


def data_commit(data, output_dir):
    """The commit of the training data: the one that the run began with, else the one that the revision names now."""
    from hf_reinforce.hub.repository import dataset_commit

    path = Path(output_dir) / "run.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(there.get(key) == getattr(data, key) for key in ("dataset_name", "dataset_revision"))
    return (same and there.get("dataset_commit")) or dataset_commit(data.dataset_name, data.dataset_revision)


def settings_of(data, model_args, args, commit) -> dict:
    """What a run that is resumed must have been begun with."""
    settings = {"method": args.method, "seed": args.seed, "temperature": args.temperature, **asdict(model_args)}
    free = {"accept_pixel_mismatch", "source_name_or_path", "max_eval_samples"}  # change no sample of the training
    kept = {key: value for key, value in asdict(data).items() if key not in free and not key.startswith("eval")}
    return {**settings, "dataset_commit": commit, **kept}


def online_teacher(model_args, names):
    """The teacher of `--method online`, None where none is named."""
    from hf_reinforce import load_teacher

    if not model_args.teacher_name_or_path:
        return None
    teacher = load_teacher(model_args.teacher_name_or_path, checkpoint=model_args.teacher_checkpoint)
    return teacher.with_classes(names, class_map(model_args.class_map)).to("cpu", model_args.teacher_dtype)


def training_data(data, replayed, seed, commit):
    """The training set, stored reinforcements or fresh augmentations; and the record of a reinforced dataset, or None.

    Fresh augmentations of a reinforced dataset are of its policy.
    """
    from hf_reinforce import AugmentedDataset, ImageSource, load_policy, load_reinforced
    from hf_reinforce.hub.load import is_reinforced

    if data.streaming and not replayed:
        raise ValueError("--streaming is for stored reinforcements; leave it out with --method plain and online.")
    if is_reinforced(data.dataset_name, revision=commit):
        stored = load_reinforced(
            data.dataset_name,
            data.dataset_config_name,
            revision=commit,
            source=data.source_name_or_path,
            image_size=data.image_size,
            seed=seed,
            selection=data.selection,
            plain_fraction=data.plain_fraction,
            accept_pixel_mismatch=data.accept_pixel_mismatch,
            max_rows=data.max_train_samples,
            allow_missing=data.allow_missing,
            streaming=data.streaming,
        )
        if replayed:
            return stored, stored.config
        fresh = AugmentedDataset(stored.image_source(), stored.policy, data.image_size, seed)
        fresh.config = stored.config
        return fresh, stored.config
    if replayed or data.policy is None:
        raise ValueError(
            f"{data.dataset_name} is not a reinforced dataset; reinforce it with recipes/reinforce.py, or choose "
            "--method plain or online with a --policy."
        )
    rows = first_rows(data.max_train_samples, data.dataset_name, data.dataset_config_name, data.train_split, commit)
    source = ImageSource.of(rows, data.image_column_name, data.label_column_name)
    return AugmentedDataset(source, load_policy(data.policy, data.image_size or 224), data.image_size, seed), None


def evaluation_source(data, config, commit):
    """Hub id or folder of the evaluation set, its configuration and its revision."""
    record = config and config.source
    source, revision = (record.name, record.revision) if record else (data.dataset_name, commit)
    name = data.eval_dataset_name or data.source_name_or_path or source
    config_name = data.eval_dataset_config_name or (record.config_name if record else data.dataset_config_name)
    return name, config_name, revision if name == source else None


def evaluation_data(data, config, evaluated, names, num_labels, preprocessing):
    """The evaluation set, None without `eval_split`; its classes must be the student's."""
    from hf_reinforce import AugmentedDataset, ImageSource, evaluation_policy

    name, config_name, revision = evaluated
    if data.eval_split is None:
        return None
    if name is None:
        raise ValueError(f"{data.dataset_name} does not record where its images are; name --eval_dataset_name.")
    rows = first_rows(data.max_eval_samples, name, config_name, data.eval_split, revision, alone=data.streaming)
    columns = [data.image_column_name, data.label_column_name]
    if config:  # the columns that were reinforced
        recorded = (config.source.image_column, config.source.label_column)
        columns = [
            own or (column if column in rows.column_names else None)
            for own, column in zip(columns, recorded, strict=True)
        ]
    source = ImageSource.of(rows, *columns, names)
    if names and source.class_names and list(source.class_names) != list(names):
        raise ValueError(
            f"{name}, split {data.eval_split!r}, has {len(source.class_names)} classes ({source.class_names[0]}, ...) "
            f"that are not the student's {len(names)} ({names[0]}, ...); choose another --eval_dataset_name, or "
            "evaluate with recipes/evaluate.py and a --class_map."
        )
    source.check_labels(num_labels, f"{name}, split {data.eval_split!r}")
    return AugmentedDataset(source, evaluation_policy(**preprocessing.framing()))


def first_rows(limit, *source, **options):
    """The first rows of a dataset, all of them without a limit."""
    from hf_reinforce.hub.load import load_source

    rows = load_source(*source, **options)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


if __name__ == "__main__":
    main()
