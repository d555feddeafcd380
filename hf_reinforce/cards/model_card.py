"""Model cards of students: what they learned from, how, how well, and how to load them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_reinforce.cards import markdown, tables
from hf_reinforce.cards.dataset_card import INSTALL
from hf_reinforce.cards.markdown import code, table, text
from hf_reinforce.licenses import is_hub_id, is_imagenet, read_license, recorded_name

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_PACKAGES = ("transformers", "timm", "torch", "torchvision", "datasets")
_METRICS = {  # key of the Trainer's metrics: type and name in the card's metadata, and how to show it
    "accuracy": ("accuracy", "Accuracy", "{:.2%}"),
    "accuracy_top5": ("top_5_accuracy", "Top-5 accuracy", "{:.2%}"),
    "nll": ("nll", "Negative log-likelihood (nats)", "{:.4f}"),
    "ece": ("expected_calibration_error", "Expected calibration error (15 bins)", "{:.4f}"),
    "ece_adaptive": ("adaptive_calibration_error", "Adaptive calibration error (15 bins)", "{:.4f}"),
    "brier": ("brier_score", "Brier score", "{:.4f}"),
}


@dataclass(frozen=True)
class Evaluation:
    """The data that a student was evaluated on.

    Attributes:
        name: Hub id or folder.
        config_name: Hub configuration.
        split: its split.
        revision: Hub revision, where it is known.
    """

    name: str
    config_name: str | None
    split: str
    revision: str | None = None


def write_model_card(
    trainer: Any,
    *,
    model_name: str | None = None,
    base_model: str,
    dataset_name: str,
    dataset_config_name: str | None = None,
    evaluation: Evaluation | None = None,
    **ignored: Any,
) -> None:
    """Writes `README.md` into a trainer's output folder, in its main process.

    The function takes the place of `Trainer.create_model_card`, which `Trainer.push_to_hub` calls.

    Args:
        trainer: a `KDTrainer` after training and evaluation.
        model_name: the student's name, default that of its repository or folder.
        base_model: timm architecture, or Hub id or folder of the weights that training began with.
        dataset_name: Hub id or folder of the training data.
        dataset_config_name: its configuration.
        evaluation: what the trainer's `eval_dataset` is.
        ignored: further arguments that `Trainer.push_to_hub` passes on.
    """
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if evaluation is not None:
        evaluation = replace(evaluation, name=recorded_name(evaluation.name))
    history = reversed(trainer.state.log_history)
    last: dict[str, Any] = next((entry for entry in history if "eval_accuracy" in entry), {})
    metrics = {key: float(last[f"eval_{key}"]) for key in _METRICS if f"eval_{key}" in last}
    shown = [[_METRICS[key][1], _METRICS[key][2].format(value)] for key, value in metrics.items()]
    data = _data(trainer, recorded_name(dataset_name), dataset_config_name)
    student = _student(trainer, model_name, recorded_name(base_model))
    ModelCard.from_template(
        _metadata(student, data, evaluation, metrics),
        template_path=str(_TEMPLATE),
        markdown=markdown,
        install=INSTALL,
        settings=table(["setting", "value"], [[text(key), text(value)] for key, value in _settings(trainer).items()]),
        licenses=tables.licenses(_licenses(data, student)),
        versions=", ".join(f"{package} {version(package)}" for package in _PACKAGES),
        metrics=metrics,
        results=table(["metric", "value"], shown),
        num_images=int(last.get("eval_num_samples", 0)),
        evaluation=evaluation,
        evaluated=tables.linked(evaluation.name, "datasets/") if evaluation else "data without a name",
        **data,
        **student,
    ).save(folder / "README.md")


def _student(trainer: Any, model_name: str | None, base_model: str) -> dict[str, Any]:
    """What the student is, and where it can be loaded from."""
    args = trainer.args
    location = (getattr(trainer, "hub_model_id", None) if args.push_to_hub else None) or str(args.output_dir)
    model_type = getattr(getattr(trainer.model, "config", None), "model_type", None)
    pretrained = "/" in base_model or Path(base_model).exists()
    return {
        "name": model_name or location.rstrip("/").rsplit("/", 1)[-1],
        "location": location,
        "on_hub": bool(args.push_to_hub),
        "in_transformers": model_type is not None,
        "in_timm": model_type == "timm_wrapper",
        "base": tables.linked(base_model),
        "base_model": base_model,
        "pretrained": pretrained,
        "base_license": read_license(base_model, "model") if pretrained else None,
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def _data(trainer: Any, dataset_name: str, config_name: str | None) -> dict[str, Any]:
    """What the student learned from."""
    train, method = trainer.train_dataset, trainer.args.method
    config, policy = getattr(train, "config", None), getattr(train, "policy", None)
    teachers, temperature = [], 1.0
    if method == "reinforced" and config is not None:
        teachers, temperature = list(config.teachers), config.temperature
    elif method == "online" and trainer.teacher is not None:
        teachers, temperature = trainer.teacher.describe(), trainer.teacher.temperature
    named = tables.linked(dataset_name, "datasets/")
    source_name = config.source.name if config is not None else dataset_name
    recorded = config.source.license if config is not None else None
    return {
        "method": method,
        "config": config,
        "dataset_name": dataset_name,
        "data": named + (f" ({code(config_name)})" if config_name else ""),
        "source": tables.source_text(config) if config is not None else named,
        "source_name": source_name,
        "source_license": recorded or read_license(source_name, "dataset"),
        "steps": [text(operation.describe()) for operation in policy.operations] if policy is not None else [],
        "policy": code(policy.name) if policy is not None else "",
        "teachers": teachers,
        "teacher": tables.teacher_table(teachers, temperature) if teachers else None,
    }


def _settings(trainer: Any) -> dict[str, Any]:
    """The hyperparameters, as transformers lists them, and those that `KDTrainingArguments` adds."""
    args = trainer.args
    settings = extract_hyperparameters_from_trainer(trainer)
    if args.timm_optimizer:
        settings["optimizer"] = f"{args.timm_optimizer} (timm)"
    if args.method != "plain":
        settings |= {"temperature": args.temperature, "hard_label_weight": args.hard_label_weight}
    own = {"weight_decay": args.weight_decay, "ema_decay": args.ema_decay, "max_grad_norm": args.max_grad_norm}
    return {**settings, **{key: value for key, value in own.items() if value}}


def _metadata(
    student: Mapping[str, Any], data: Mapping[str, Any], evaluation: Evaluation | None, metrics: Mapping[str, float]
) -> ModelCardData:
    found = []
    if evaluation is not None:
        name = evaluation.name if is_hub_id(evaluation.name) else Path(evaluation.name).name
        found = [
            EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=name,
                dataset_name=name,
                dataset_config=evaluation.config_name,
                dataset_split=evaluation.split,
                dataset_revision=evaluation.revision,
                metric_type=_METRICS[key][0],
                metric_name=_METRICS[key][1],
                metric_value=round(value, 6),
            )
            for key, value in metrics.items()
        ]
    named = [data["dataset_name"], data["source_name"]]
    return ModelCardData(
        model_name=student["name"] if found else None,
        eval_results=found or None,
        library_name="timm" if student["in_timm"] else "transformers" if student["in_transformers"] else None,
        pipeline_tag="image-classification",
        tags=["dataset-reinforcement", *(["transformers"] if student["in_timm"] else [])],
        datasets=list(dict.fromkeys(name for name in named if name and is_hub_id(name))) or None,
        base_model=student["base_model"] if student["pretrained"] and is_hub_id(student["base_model"]) else None,
        license=_license(data, student),
        metrics=["accuracy"] if found else None,
    )


def _license(data: Mapping[str, Any], student: Mapping[str, Any]) -> str | None:
    """The licence of all that the student was made from, where that is one and the same; else none."""
    licenses = {data["source_license"], *(teacher.get("license") for teacher in data["teachers"])}
    if student["pretrained"]:
        licenses.add(student["base_license"])
    (license, *others) = licenses
    plain = license is not None and "," not in license and not others and not is_imagenet(data["source_name"])
    return license if plain else None


def _licenses(data: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, str]:
    """The licence of everything that the student was made from."""
    rows = {data["source"]: tables.source_license(data["source_name"], data["source_license"])}
    if student["pretrained"]:
        rows[student["base"]] = tables.stated(student["base_license"])
    return rows | {tables.linked(item["name"]): tables.stated(item.get("license")) for item in data["teachers"]}
