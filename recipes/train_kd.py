"""Trains a student: on a reinforced data set, with an online teacher, or plainly.

accelerate launch recipes/train_kd.py recipes/cifar100_plus/student.yaml
python recipes/train_kd.py --dataset_name me/cifar100-plus --model_name_or_path resnet18 --output_dir outputs/r18
"""

import json
import logging
from dataclasses import dataclass

from arguments import class_map, option, parse, required


@dataclass
class DataArguments:
    dataset_name: str = required("Hub id or folder of a reinforced data set, or for plain and online of any images.")
    dataset_config_name: str | None = option("Configuration: of a reinforced data set, the policy.")
    train_split: str = option("Training split of a data set that is not reinforced.", "train")
    source_name_or_path: str | None = option("Hub id or folder of the images, default the recorded one.")
    eval_dataset_name: str | None = option("Hub id or folder to evaluate on, default the source of the images.")
    eval_dataset_config_name: str | None = option("Its configuration, default the source's.")
    eval_split: str | None = option("Split to evaluate on, e.g. test; none without it.")
    image_column_name: str | None = option("Image column, default the only one.")
    label_column_name: str | None = option("Label column, default the only ClassLabel column.")
    max_train_samples: int | None = option("Train on the first so many rows.")
    max_eval_samples: int | None = option("Evaluate on the first so many rows.")
    policy: str | None = option("Named policy or YAML file, for a data set that is not reinforced.")
    image_size: int | None = option("Side of the views in pixels, default the policy's.")
    selection: str = option("cycle: every reinforcement once before any twice; random: as the paper.", "cycle")
    plain_fraction: float = option("Share of plain samples with hard labels; the paper uses 0.01.", 0.0)
    allow_missing: bool = option("Train on the rest where the source lacks images that were reinforced.", False)
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
    class_map: str | None = option("identity, or JSON: the teacher's class for each class of the data set.")


FURTHER = """Further flags: --method {reinforced,online,plain}, --temperature, --hard_label_weight, --ema_decay,
--timm_optimizer, --timm_scheduler, and every field of transformers.TrainingArguments (--output_dir,
--num_train_epochs, --per_device_train_batch_size, --learning_rate, ...)."""


def training_classes() -> list[type]:
    from hf_reinforce import KDTrainingArguments

    return [KDTrainingArguments]


def main() -> None:
    try:
        train_and_evaluate()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def train_and_evaluate():
    data, model_args, args = parse(__doc__, [DataArguments, ModelArguments], training_classes, FURTHER)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(name)s: %(message)s")
    from transformers import set_seed
    from transformers.trainer_utils import get_last_checkpoint

    from hf_reinforce import KDTrainer, load_teacher
    from hf_reinforce.students import create_student, student_preprocessing

    set_seed(args.seed)
    train = training_data(data, args.method, args.seed)
    names = train.source.class_names
    num_labels = train.config.num_classes if args.method == "reinforced" else len(names or [])
    if not num_labels:
        raise SystemExit(f"{data.dataset_name} has no ClassLabel column, so --method {args.method} cannot use it.")
    view_size = data.image_size or train.policy.image_size
    input_size = model_args.input_size or view_size
    model = create_student(
        model_args.model_name_or_path,
        num_labels,
        input_size,
        names,
        json.loads(model_args.model_args or "{}"),
        model_args.model_revision,
    )
    teacher = None
    if model_args.teacher_name_or_path and args.method == "online":
        teacher = load_teacher(model_args.teacher_name_or_path, checkpoint=model_args.teacher_checkpoint)
        teacher = teacher.with_classes(names, class_map(model_args.class_map)).to(
            args.device, model_args.teacher_dtype
        )
    trainer = KDTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=evaluation_data(data, train, student_preprocessing(model, view_size)),
        teacher=teacher,
        preprocessing=student_preprocessing(model, input_size),
    )
    if args.do_train or not args.do_eval:
        checkpoint = args.resume_from_checkpoint or get_last_checkpoint(args.output_dir)
        if checkpoint:
            logging.info("Resuming from %s.", checkpoint)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    card = {"tasks": "image-classification", "dataset": data.dataset_name, "tags": ["dataset-reinforcement"]}
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    elif trainer.is_world_process_zero():
        trainer.create_model_card(**card)


def training_data(data, method, seed):
    """The training set: stored reinforcements, or fresh augmentations of the same policy."""
    from hf_reinforce import AugmentedDataset, ImageSource, load_policy, load_reinforced
    from hf_reinforce.hub import is_reinforced, load_source

    if is_reinforced(data.dataset_name):
        stored = load_reinforced(
            data.dataset_name,
            data.dataset_config_name,
            source=data.source_name_or_path,
            image_size=data.image_size,
            seed=seed,
            selection=data.selection,
            plain_fraction=data.plain_fraction,
            accept_pixel_mismatch=data.accept_pixel_mismatch,
            max_rows=data.max_train_samples,
            allow_missing=data.allow_missing,
        )
        if method == "reinforced":
            return stored
        fresh = AugmentedDataset(stored.image_source(), stored.policy, data.image_size, seed)
        fresh.config = stored.config
        return fresh
    if method == "reinforced" or data.policy is None:
        raise SystemExit(
            f"{data.dataset_name} is not a reinforced data set; reinforce it with recipes/reinforce.py, or choose "
            "--method plain or online with a --policy."
        )
    rows = load_source(data.dataset_name, data.dataset_config_name, data.train_split)
    if data.max_train_samples:
        rows = rows.select(range(min(data.max_train_samples, len(rows))))
    source = ImageSource.of(rows, data.image_column_name, data.label_column_name)
    return AugmentedDataset(source, load_policy(data.policy, data.image_size or 224), data.image_size, seed)


def evaluation_data(data, train, preprocessing):
    """The evaluation set, None without `eval_split`."""
    from hf_reinforce import AugmentedDataset, ImageSource
    from hf_reinforce.hub import load_source
    from hf_reinforce.policies import evaluation_policy

    if data.eval_split is None:
        return None
    record = train.config.source if hasattr(train, "config") else None
    name = data.eval_dataset_name or data.source_name_or_path or (record.name if record else data.dataset_name)
    config = data.eval_dataset_config_name or (record.config_name if record else data.dataset_config_name)
    rows = load_source(name, config, data.eval_split)
    if data.max_eval_samples:
        rows = rows.select(range(min(data.max_eval_samples, len(rows))))
    policy = evaluation_policy(preprocessing.image_size, preprocessing.crop_pct, preprocessing.interpolation)
    return AugmentedDataset(ImageSource.of(rows, data.image_column_name, data.label_column_name), policy)


if __name__ == "__main__":
    main()
