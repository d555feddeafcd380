"""Flags that do nothing in some combination: a table for each recipe, and one warning that names them."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@dataclasses.dataclass(frozen=True)
class Unused:
    """Flags that do nothing in some combination.

    Attributes:
        flags: their names, separated by spaces.
        when: whether they do nothing, by the values of all flags and by facts that the recipe knows.
        reason: why, for the message.
    """

    flags: str
    when: Callable[[Any], bool]
    reason: str


def say_unused(table: Sequence[Unused], parsed: Sequence[Any], given: set[str], **facts: Any) -> None:
    """Names in one warning the flags that were given, are not the default, and do nothing.

    Args:
        table: what does nothing when.
        parsed: dataclasses of all flags.
        given: names of the flags that were given, see `arguments.given`.
        facts: further attributes for `Unused.when`.
    """
    defaults = {f.name: _default(f) for values in parsed for f in dataclasses.fields(values)}
    values = {name: getattr(each, name) for each in parsed for name in vars(each)}
    asked = {name for name in given & set(defaults) if values[name] != defaults[name]}
    state = SimpleNamespace(**values, **facts)
    found = []
    for rule in table:
        names = [f"--{name}" for name in rule.flags.split() if name in asked]
        if names and rule.when(state):
            found.append(f"{', '.join(names)} ({rule.reason})")
    if found and os.environ.get("RANK", "0") == "0":
        logging.getLogger("hf_reinforce.unused").warning("These flags change nothing here: %s.", "; ".join(found))


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def is_local(name: str | None) -> bool:
    """Whether a Hub id or folder is on this machine, where it has no revisions."""
    from hf_reinforce.local_copies import resolve

    return name is not None and Path(resolve(name)).exists()


def _not_local_only(names: Any) -> bool:
    return all(is_local(name) for name in (names if isinstance(names, list) else [names]) if name)


def _no_revision(name: Any) -> bool:
    """Whether a student has no revision: a folder, or an architecture."""
    return is_local(name) or "/" not in name


def _replayed(v: Any) -> bool:
    return v.method == "reinforced" or v.stored_views


def _evaluates(v: Any) -> bool:
    return v.eval_split is not None


# Of transformers.TrainingArguments, for every recipe that trains.
TRAINING = [
    Unused("num_train_epochs", lambda v: v.max_steps > 0, "--max_steps says how long"),
    Unused("save_steps", lambda v: v.save_strategy != "steps", "--save_strategy is not steps"),
    Unused("save_total_limit", lambda v: v.save_strategy == "no", "--save_strategy no"),
    Unused("logging_steps", lambda v: v.logging_strategy != "steps", "--logging_strategy is not steps"),
    Unused("eval_steps", lambda v: v.eval_strategy != "steps", "--eval_strategy is not steps"),
    Unused(
        "hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision",
        lambda v: not v.push_to_hub,
        "nothing is pushed without --push_to_hub",
    ),
    Unused(
        "remove_unused_columns label_names train_sampling_strategy length_column_name do_predict "
        "prediction_loss_only eval_do_concat_batches include_num_input_tokens_seen neftune_noise_alpha",
        lambda v: True,
        "views and their targets have ways of their own",
    ),
]
_OPTIMIZER = "optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon"
STUDENT = [
    *TRAINING,
    Unused(_OPTIMIZER, lambda v: bool(v.timm_optimizer), "--timm_optimizer is used instead, with its own settings"),
    Unused(
        "adam_beta1 adam_beta2 adam_epsilon",
        lambda v: not v.timm_optimizer and not any(kind in str(v.optim).lower() for kind in ("adam", "lion")),
        "--optim is no Adam",
    ),
    Unused(
        "lr_scheduler_type lr_scheduler_kwargs", lambda v: bool(v.timm_scheduler), "--timm_scheduler is used instead"
    ),
    Unused(
        "teacher_name_or_path teacher_checkpoint teacher_dtype class_map",
        lambda v: v.method != "online",
        "only --method online asks a teacher",
    ),
    Unused("temperature hard_label_weight", lambda v: v.method == "plain", "--method plain has no distillation loss"),
    Unused(
        "label_smoothing_factor",
        lambda v: v.method != "plain" and not v.hard_label_weight,
        "labels are not used without --hard_label_weight",
    ),
    Unused("policy train_split", lambda v: v.is_reinforced, "the dataset is reinforced, and records them"),
    Unused(
        "image_column_name label_column_name",
        lambda v: v.is_reinforced and not _evaluates(v),
        "the dataset is reinforced, and records them",
    ),
    Unused(
        "source_name_or_path",
        lambda v: not v.is_reinforced and (not _evaluates(v) or v.eval_dataset_name is not None),
        "the dataset is not reinforced, so it holds its images",
    ),
    Unused("source_name_or_path allow_missing", lambda v: v.embedded, "the images are stored with the dataset"),
    Unused("allow_missing accept_pixel_mismatch", lambda v: not v.is_reinforced, "the dataset is not reinforced"),
    Unused(
        "selection plain_fraction",
        lambda v: not _replayed(v),
        "stored augmentations are used by --method reinforced and with --stored_views",
    ),
    Unused("stored_views", lambda v: v.method == "reinforced", "--method reinforced uses them anyway"),
    Unused(
        "eval_dataset_name eval_dataset_config_name max_eval_samples per_device_eval_batch_size",
        lambda v: not _evaluates(v),
        "nothing is evaluated without --eval_split",
    ),
    Unused("dataset_revision", lambda v: is_local(v.dataset_name), "a folder has no revisions"),
    Unused(
        "model_revision",
        lambda v: _no_revision(v.model_name_or_path),
        "neither a folder nor an architecture has revisions",
    ),
]
REINFORCE = [
    Unused("image_size", lambda v: v.policy.endswith((".yaml", ".yml")), "the file of --policy states its sizes"),
    Unused("teacher_weights", lambda v: len(v.teacher_name_or_path) == 1, "there is a single teacher"),
    Unused(
        "teacher_revision",
        lambda v: v.teacher_checkpoint is not None or _not_local_only(v.teacher_name_or_path),
        "the teacher is on this machine",
    ),
    Unused("dataset_revision", lambda v: is_local(v.dataset_name), "a folder has no revisions"),
    Unused("seed", lambda v: v.estimate, "--estimate only measures"),
]
EVALUATE = [
    Unused(
        "dataset_config_name dataset_revision split image_column_name label_column_name class_map classes_from "
        "scoring",
        lambda v: v.suite is not None,
        "the suite says what is evaluated, and how",
    ),
    Unused("dataset_revision", lambda v: v.suite is None and is_local(v.dataset_name), "a folder has no revisions"),
    Unused(
        "model_revision",
        lambda v: v.model_checkpoint is not None or _not_local_only(v.model_name_or_path),
        "the model is on this machine",
    ),
    Unused("class_map", lambda v: v.suite is None and v.classes_from is not None, "--classes_from says it"),
    Unused("seed", lambda v: v.suite is None, "only suites have corruptions"),
]
PROBE = [
    Unused(
        "model_revision",
        lambda v: v.model_checkpoint is not None or _not_local_only(v.model_name_or_path),
        "the model is on this machine",
    ),
    Unused(
        "seed",
        lambda v: len(v.strengths) == 1 and v.max_train_samples is None,
        "with one of --strengths nothing is held out",
    ),
]
VERIFY = [
    Unused("dataset_revision", lambda v: is_local(v.dataset_name), "a folder has no revisions"),
    Unused("source_name_or_path", lambda v: v.embedded, "the images are stored with the dataset"),
]
INSPECT = [
    Unused("output_dir source_name_or_path num_images", lambda v: v.verify, "--verify only compares checksums"),
    Unused("source_name_or_path", lambda v: not v.verify and v.num_images == 0, "--num_images 0 reads no images"),
    Unused("dataset_revision", lambda v: is_local(v.dataset_name), "a folder has no revisions"),
]
IMPORT = [
    Unused(
        "image_size",
        lambda v: v.policy is None or v.policy.endswith((".yaml", ".yml")),
        "it is for a named --policy",
    ),
    Unused("file_name_column_name", lambda v: v.id_map != "image_folder", "it is for --id_map image_folder"),
    Unused("source_revision", lambda v: is_local(v.source_name_or_path), "a folder has no revisions"),
]
FINETUNE = [
    Unused("learning_rate", lambda v: bool(v.learning_rates), "--learning_rates is used instead"),
    Unused("seed", lambda v: bool(v.seeds), "--seeds is used instead"),
]
_TRANSFER = [
    *TRAINING,
    Unused(_OPTIMIZER, lambda v: True, "--timm_optimizer is used instead, with its own settings"),
    Unused(
        "lr_scheduler_type lr_scheduler_kwargs", lambda v: bool(v.lr_milestones), "--lr_milestones is used instead"
    ),
    Unused("label_smoothing_factor", lambda v: True, "the losses are the detector's or segmenter's own"),
    Unused(
        "model_revision",
        lambda v: _no_revision(v.model_name_or_path),
        "neither a folder nor an architecture has revisions",
    ),
    Unused("train_split", lambda v: v.train_images is not None, "--train_images is used instead"),
    Unused("eval_split", lambda v: v.eval_images is not None, "--eval_images is used instead"),
    Unused(
        "dataset_name dataset_config_name",
        lambda v: v.train_images is not None and (v.eval_images is not None or not _evaluates(v)),
        "images and annotations are in folders",
    ),
    Unused(
        "max_eval_samples per_device_eval_batch_size",
        lambda v: v.eval_images is None and not _evaluates(v),
        "nothing is evaluated without --eval_split or --eval_images",
    ),
]
DETECT = [
    *_TRANSFER,
    Unused(
        "image_column_name objects_column_name box_format",
        lambda v: v.train_images is not None and (v.eval_images is not None or not _evaluates(v)),
        "COCO files have columns of their own",
    ),
]
SEGMENT = [
    *_TRANSFER,
    Unused(
        "image_column_name mask_column_name",
        lambda v: v.train_images is not None and (v.eval_images is not None or not _evaluates(v)),
        "folders have no columns",
    ),
    Unused("dataloader_drop_last", lambda v: True, "the last batch is always left out"),
]
