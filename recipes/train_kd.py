"""Trains a student: on a reinforced dataset, with an online teacher, or plainly.

accelerate launch recipes/train_kd.py recipes/cifar100_plus/student.yaml
python recipes/train_kd.py --dataset_name me/cifar100-plus --model_name_or_path resnet18 --output_dir outputs/r18
"""

import functools
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from arguments import class_map, given, json_object, one_line_errors, option, parse, required
from training import check_same_run, train_and_evaluate
from unused import STUDENT, say_unused


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
    data, model_args, args = parse(__doc__, [DataArguments, ModelArguments], training_classes, FURTHER)
    from transformers import set_seed

    from hf_reinforce import KDTrainer
    from hf_reinforce.cards.model_card import Evaluation, write_model_card
    from hf_reinforce.models.students import create_student, student_preprocessing

    set_seed(args.seed)
    commit = data_commit(data, args.output_dir)
    replayed = args.method == "reinforced" or data.stored_views
    train = training_data(data, replayed, args.seed, commit)
    stored = train.config if replayed else None
    reinforced = getattr(train, "config", None)
    facts = {"is_reinforced": reinforced is not None, "embedded": bool(reinforced and reinforced.embed_images)}
    say_unused(STUDENT, (data, model_args, args), given(), **facts)
    names = stored.class_names if stored else train.source.class_names
    num_labels = stored.num_classes if stored else len(names or [])
    if not num_labels and reinforced and reinforced.source.label_column is None:
        raise ValueError(
            f"{data.dataset_name} was reinforced without labels, so --method {args.method} has no classes; train with "
            "--method reinforced, or reinforce it again with its --label_column_name."
        )
    if not num_labels:
        raise ValueError(
            f"{data.dataset_name} has no ClassLabel column, so --method {args.method} cannot use it; name a column of "
            "texts with --label_column_name, if there is one."
        )
    view_size = data.image_size or train.policy.image_size
    input_size = model_args.input_size or view_size
    model = create_student(
        model_args.model_name_or_path,
        num_labels,
        input_size,
        names,
        json_object("model_args", model_args.model_args),
        model_args.model_revision,
    )
    trainer = KDTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=evaluation_data(data, train, names, num_labels, student_preprocessing(model, input_size), commit),
        teacher=online_teacher(model_args, names) if args.method == "online" else None,
        preprocessing=student_preprocessing(model, input_size),
    )
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # every process looks there for checkpoints
    check_same_run(args.output_dir, settings_of(data, model_args, args, commit), write=args.process_index == 0)
    train_and_evaluate(trainer, args)
    name, config_name, revision = evaluation_name(data, train, commit)
    evaluated = Evaluation(name, config_name, data.eval_split, revision) if data.eval_split else None
    trainer.create_model_card = functools.partial(  # push_to_hub calls it as well
        write_model_card,
        trainer,
        base_model=model_args.model_name_or_path,
        dataset_name=data.dataset_name,
        dataset_config_name=data.dataset_config_name,
        evaluation=evaluated,
    )
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)()
    if args.process_index == 0:
        print(
            f"{args.output_dir} has the student (model.safetensors), how it was trained (README.md) and what it came "
            f"to (all_results.json). Next: {evaluation_command(data, train, args.output_dir)}"
        )


def evaluation_command(data, train, output_dir):
    """The command that evaluates the student, on the same data as the training did where that was said."""
    name, config, _ = evaluation_name(data, train)
    flags = {"dataset_name": name or "DATASET", "dataset_config_name": config, "split": data.eval_split or "test"}
    flags |= {"image_column_name": data.image_column_name, "label_column_name": data.label_column_name}
    words = [word for flag, value in flags.items() if value for word in (f"--{flag}", value)]
    return shlex.join(["python", "recipes/evaluate.py", "--model_name_or_path", output_dir, *words])


def evaluation_name(data, train, commit=None):
    """Hub id or folder of the evaluation set, its configuration and its revision."""
    record = train.config.source if hasattr(train, "config") else None
    source = (record.name, record.revision) if record else (data.dataset_name, commit)
    name = data.eval_dataset_name or data.source_name_or_path or source[0]
    config = data.eval_dataset_config_name or (record.config_name if record else data.dataset_config_name)
    return name, config, source[1] if name == source[0] else None


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
    settings["dataset_commit"] = commit
    free = {"accept_pixel_mismatch", "source_name_or_path", "max_eval_samples"}  # change no sample of the training
    return settings | {k: v for k, v in asdict(data).items() if k not in free and not k.startswith("eval")}


def online_teacher(model_args, names):
    """The teacher of `--method online`, None where none is named."""
    from hf_reinforce import load_teacher

    if not model_args.teacher_name_or_path:
        return None
    teacher = load_teacher(model_args.teacher_name_or_path, checkpoint=model_args.teacher_checkpoint)
    return teacher.with_classes(names, class_map(model_args.class_map)).to("cpu", model_args.teacher_dtype)


def training_data(data, replayed, seed, commit):
    """The training set: stored reinforcements, or fresh augmentations of the same policy."""
    from hf_reinforce import AugmentedDataset, ImageSource, load_policy, load_reinforced
    from hf_reinforce.hub.load import is_reinforced, load_source

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
            return stored
        fresh = AugmentedDataset(stored.image_source(), stored.policy, data.image_size, seed)
        fresh.config = stored.config
        return fresh
    if replayed or data.policy is None:
        raise ValueError(
            f"{data.dataset_name} is not a reinforced dataset; reinforce it with recipes/reinforce.py, or choose "
            "--method plain or online with a --policy."
        )
    rows = load_source(data.dataset_name, data.dataset_config_name, data.train_split, commit)
    if data.max_train_samples is not None:
        rows = rows.select(range(min(data.max_train_samples, len(rows))))
    source = ImageSource.of(rows, data.image_column_name, data.label_column_name)
    return AugmentedDataset(source, load_policy(data.policy, data.image_size or 224), data.image_size, seed)


def evaluation_data(data, train, names, num_labels, preprocessing, commit):
    """The evaluation set, None without `eval_split`; its classes must be the student's."""
    from hf_reinforce import AugmentedDataset, ImageSource, evaluation_policy
    from hf_reinforce.hub.load import load_source

    if data.eval_split is None:
        return None
    name, config, revision = evaluation_name(data, train, commit)
    if name is None:
        raise ValueError(
            f"{data.dataset_name} does not record where its images are; name --eval_dataset_name as well."
        )
    rows = load_source(name, config, data.eval_split, revision, alone=data.streaming)
    if data.max_eval_samples is not None:
        rows = rows.select(range(min(data.max_eval_samples, len(rows))))
    policy = evaluation_policy(**preprocessing.framing())
    record = train.config.source if hasattr(train, "config") else None
    image, label = data.image_column_name, data.label_column_name
    if record and image is None and record.image_column in rows.column_names:  # the columns that were reinforced
        image = record.image_column
    if record and label is None and record.label_column in rows.column_names:
        label = record.label_column
    source = ImageSource.of(rows, image, label, names)
    if names and source.class_names and list(source.class_names) != list(names):
        raise ValueError(
            f"{name}, split {data.eval_split!r}, has {len(source.class_names)} classes ({source.class_names[0]}, ...) "
            f"that are not the student's {len(names)} ({names[0]}, ...); choose another --eval_dataset_name, or "
            "evaluate with recipes/evaluate.py and a --class_map."
        )
    source.check_labels(num_labels, f"{name}, split {data.eval_split!r}")
    return AugmentedDataset(source, policy)


if __name__ == "__main__":
    main()
