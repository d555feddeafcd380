"""Flags that do nothing in some combination: a table for each recipe, and one warning that names the flags.

A row of a table: names of flags, a function that tells from the values of all flags (and from facts that the recipe
knows) whether these flags do nothing, and the reason for the message.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

Table: TypeAlias = list[tuple[str, Callable[[Any], bool], str]]


def say_unused(table: Table, parsed: Sequence[Any], given: set[str], **facts: Any) -> None:
    """Names in one warning the flags that were given, are not the default, and do nothing.

    Args:
        table: which flags do nothing when.
        parsed: dataclasses of all flags.
        given: names of the flags that were given, see `arguments.given`.
        facts: further attributes for the functions of the table.
    """
    values = {name: getattr(each, name) for each in parsed for name in vars(each)}
    fields = [field for each in parsed for field in dataclasses.fields(each) if field.name in given]
    asked = {field.name for field in fields if values[field.name] != _default(field)}
    state, found = SimpleNamespace(**values, **facts), []
    for flags, does_nothing, reason in table:
        names = [f"--{name}" for name in flags.split() if name in asked]
        if names and does_nothing(state):
            found.append(f"{', '.join(names)} ({reason})")
    if found and os.environ.get("RANK", "0") == "0":
        logging.getLogger("hf_reinforce.unused").warning("These flags change nothing here: %s.", "; ".join(found))


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def is_local(names: Any) -> bool:
    """Whether a Hub id or folder, or each of a list, is on this machine, where nothing has revisions."""
    from hf_reinforce.local_copies import resolve

    names = names if isinstance(names, list) else [names]
    return all(name is not None and Path(resolve(name)).exists() for name in names)


def _is_yaml(policy: str | None) -> bool:
    return policy is not None and policy.endswith((".yaml", ".yml"))


def _is_no_repository(v: Any) -> bool:
    return is_local(v.model_name_or_path) or "/" not in v.model_name_or_path


def _has_no_adam(v: Any) -> bool:
    return not v.timm_optimizer and not any(kind in str(v.optim).lower() for kind in ("adam", "lion"))


def _holds_its_images(v: Any) -> bool:
    return not v.is_reinforced and (v.eval_split is None or v.eval_dataset_name is not None)


def _has_files(v: Any) -> bool:
    """Whether all data of detection or segmentation are in named files."""
    return v.train_images is not None and (v.eval_images is not None or v.eval_split is None)


_ADAM = "adam_beta1 adam_beta2 adam_epsilon"
_COLUMNS = "image_column_name label_column_name"
_EVALUATION = "eval_dataset_name eval_dataset_config_name max_eval_samples per_device_eval_batch_size"
_HUB = "hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision"
_SUITE = f"dataset_config_name dataset_revision split {_COLUMNS} class_map classes_from scoring"
_TEACHER = "teacher_name_or_path teacher_checkpoint teacher_dtype class_map"
_TEXTS = (  # fields of TrainingArguments
    "remove_unused_columns label_names train_sampling_strategy length_column_name do_predict prediction_loss_only "
    "eval_do_concat_batches include_num_input_tokens_seen neftune_noise_alpha"
)
_TIMM = "--timm_optimizer is used instead, with its own settings"
_FOLDER = (lambda v: is_local(v.dataset_name), "a folder has no revisions")
_FILE = (lambda v: v.model_checkpoint is not None or is_local(v.model_name_or_path), "the model is on this machine")

TRAINING: Table = [
    ("num_train_epochs", lambda v: v.max_steps > 0, "--max_steps says how long"),
    ("save_steps", lambda v: v.save_strategy != "steps", "--save_strategy is not steps"),
    ("save_total_limit", lambda v: v.save_strategy == "no", "--save_strategy no"),
    ("logging_steps", lambda v: v.logging_strategy != "steps", "--logging_strategy is not steps"),
    ("eval_steps", lambda v: v.eval_strategy != "steps", "--eval_strategy is not steps"),
    (_HUB, lambda v: not v.push_to_hub, "nothing is pushed without --push_to_hub"),
    (_TEXTS, lambda v: True, "views and their targets have ways of their own"),
    ("model_revision", _is_no_repository, "neither a folder nor an architecture has revisions"),
]
STUDENT: Table = [
    *TRAINING,
    (f"optim optim_args optim_target_modules {_ADAM}", lambda v: bool(v.timm_optimizer), _TIMM),
    (_ADAM, _has_no_adam, "--optim is no Adam"),
    (_TEACHER, lambda v: v.method != "online", "only --method online asks a teacher"),
    ("temperature hard_label_weight", lambda v: v.method == "plain", "--method plain has no distillation loss"),
    (
        "label_smoothing_factor",
        lambda v: v.method != "plain" and not v.hard_label_weight,
        "labels are not used without --hard_label_weight",
    ),
    ("policy train_split", lambda v: v.is_reinforced, "the dataset is reinforced, and records them"),
    (_COLUMNS, lambda v: v.is_reinforced and v.eval_split is None, "the dataset is reinforced, and records them"),
    ("source_name_or_path", _holds_its_images, "the dataset is not reinforced, so it holds its images"),
    ("source_name_or_path allow_missing", lambda v: v.embedded, "the images are stored with the dataset"),
    ("allow_missing accept_pixel_mismatch", lambda v: not v.is_reinforced, "the dataset is not reinforced"),
    (
        "selection plain_fraction",
        lambda v: v.method != "reinforced" and not v.stored_views,
        "stored augmentations are used by --method reinforced and with --stored_views",
    ),
    ("stored_views", lambda v: v.method == "reinforced", "--method reinforced uses them anyway"),
    (_EVALUATION, lambda v: v.eval_split is None, "nothing is evaluated without --eval_split"),
    ("dataset_revision", *_FOLDER),
]
REINFORCE: Table = [
    ("image_size", lambda v: _is_yaml(v.policy), "the file of --policy states its sizes"),
    ("teacher_weights", lambda v: len(v.teacher_name_or_path) == 1, "there is a single teacher"),
    (
        "teacher_revision",
        lambda v: v.teacher_checkpoint is not None or is_local(v.teacher_name_or_path),
        "the teacher is on this machine",
    ),
    ("dataset_revision", *_FOLDER),
    ("seed", lambda v: v.estimate, "--estimate only measures"),
]
EVALUATE: Table = [
    (_SUITE, lambda v: v.suite is not None, "the suite says what is evaluated, and how"),
    ("dataset_revision", lambda v: v.suite is None and is_local(v.dataset_name), "a folder has no revisions"),
    ("model_revision", *_FILE),
    ("class_map", lambda v: v.suite is None and v.classes_from is not None, "--classes_from says it"),
    ("seed", lambda v: v.suite is None, "only suites have corruptions"),
]
PROBE: Table = [
    ("model_revision", *_FILE),
    ("seed", lambda v: len(v.strengths) == 1 and v.max_train_samples is None, "nothing is drawn with one strength"),
]
VERIFY: Table = [
    ("dataset_revision", *_FOLDER),
    ("source_name_or_path", lambda v: v.embedded, "the images are stored with the dataset"),
]
INSPECT: Table = [
    ("output_dir source_name_or_path num_images", lambda v: v.verify, "--verify only compares checksums"),
    ("source_name_or_path", lambda v: not v.verify and v.num_images == 0, "--num_images 0 reads no images"),
    ("dataset_revision", *_FOLDER),
]
IMPORT: Table = [
    ("image_size", lambda v: v.policy is None or _is_yaml(v.policy), "it is for a named --policy"),
    ("file_name_column_name", lambda v: v.id_map != "image_folder", "it is for --id_map image_folder"),
    ("source_revision", lambda v: is_local(v.source_name_or_path), "a folder has no revisions"),
]
FINETUNE: Table = [
    ("learning_rate", lambda v: bool(v.learning_rates), "--learning_rates is used instead"),
    ("seed", lambda v: bool(v.seeds), "--seeds is used instead"),
]
_TRANSFER: Table = [
    *TRAINING,
    (f"optim optim_args optim_target_modules {_ADAM}", lambda v: bool(v.timm_optimizer), _TIMM),
    ("lr_scheduler_type lr_scheduler_kwargs", lambda v: bool(v.lr_milestones), "--lr_milestones is used instead"),
    ("label_smoothing_factor", lambda v: True, "the losses are the detector's or segmenter's own"),
    ("train_split", lambda v: v.train_images is not None, "--train_images is used instead"),
    ("eval_split", lambda v: v.eval_images is not None, "--eval_images is used instead"),
    ("dataset_name dataset_config_name", _has_files, "images and annotations are in folders"),
    (
        "max_eval_samples per_device_eval_batch_size",
        lambda v: v.eval_images is None and v.eval_split is None,
        "nothing is evaluated without --eval_split or --eval_images",
    ),
]
DETECT: Table = [
    *_TRANSFER,
    ("image_column_name objects_column_name box_format", _has_files, "COCO files have columns of their own"),
]
SEGMENT: Table = [
    *_TRANSFER,
    ("image_column_name mask_column_name", _has_files, "folders have no columns"),
    ("dataloader_drop_last", lambda v: True, "the last batch is always left out"),
]
