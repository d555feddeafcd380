"""Model cards of students: what they learned from, how, how well, and how to load them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_reinforce.cards import markdown, tables
from hf_reinforce.cards.dataset_card import CARD_FILE, INSTALL
from hf_reinforce.licenses import is_hub_id, is_imagenet, read_license, recorded_name
from hf_reinforce.store.config import ReinforcementConfig

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
    args, method, train = trainer.args, trainer.args.method, trainer.train_dataset
    base_model, dataset_name = recorded_name(base_model), recorded_name(dataset_name)
    if evaluation is not None:
        evaluation = replace(evaluation, name=recorded_name(evaluation.name))
    config: ReinforcementConfig | None = getattr(train, "config", None)
    teachers, temperature = _teachers(trainer, config)
    source_name = config.source.name if config is not None else dataset_name
    source = tables.source_text(config) if config is not None else tables.linked(dataset_name, "datasets/")
    source_license = (config and config.source.license) or read_license(source_name, "dataset")
    pretrained = "/" in base_model or Path(base_model).exists()
    made_from = {tables.linked(base_model): read_license(base_model, "model")} if pretrained else {}
    made_from |= {tables.linked(teacher["name"]): teacher.get("license") for teacher in teachers}
    location = (getattr(trainer, "hub_model_id", None) if args.push_to_hub else None) or str(args.output_dir)
    name = model_name or location.rstrip("/").rsplit("/", 1)[-1]
    model_type = getattr(getattr(trainer.model, "config", None), "model_type", None)
    history = reversed(trainer.state.log_history)
    last: dict[str, Any] = next((entry for entry in history if "eval_accuracy" in entry), {})
    metrics = {key: float(last[f"eval_{key}"]) for key in _METRICS if f"eval_{key}" in last}
    results = _evaluation_results(evaluation, metrics) if evaluation is not None else []
    metadata = ModelCardData(
        model_name=name if results else None,
        eval_results=results or None,
        library_name={"timm_wrapper": "timm", None: None}.get(model_type, "transformers"),
        pipeline_tag="image-classification",
        tags=["dataset-reinforcement", *(["transformers"] if model_type == "timm_wrapper" else [])],
        datasets=list(dict.fromkeys(item for item in (dataset_name, source_name) if item and is_hub_id(item))) or None,
        base_model=base_model if pretrained and is_hub_id(base_model) else None,
        license=_license([source_license, *made_from.values()], source_name),
        metrics=["accuracy"] if results else None,
    )
    rows = {source: tables.source_license(source_name, source_license)}
    rows |= {item: tables.stated(license) for item, license in made_from.items()}
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    ModelCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        markdown=markdown,
        tables=tables,
        name=name,
        location=location,
        on_hub=bool(args.push_to_hub),
        model_type=model_type,
        base=tables.linked(base_model),
        pretrained=pretrained,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        method=method,
        data=tables.linked(dataset_name, "datasets/"),
        data_config=dataset_config_name,
        source=source,
        config=config,
        policy=getattr(train, "policy", None),
        teacher=tables.teacher_table(teachers, temperature) if teachers else None,
        evaluation=evaluation,
        num_images=int(last.get("eval_num_samples", 0)),
        results=[(shown, form.format(metrics[key])) for key, (_, shown, form) in _METRICS.items() if key in metrics],
        settings=_settings(trainer),
        licenses=tables.licenses(rows),
        versions=", ".join(f"{package} {version(package)}" for package in _PACKAGES),
        install=INSTALL,
    ).save(folder / CARD_FILE)


def _teachers(trainer: Any, config: ReinforcementConfig | None) -> tuple[Sequence[Mapping[str, Any]], float]:
    """The networks that the student learned from, as `Teacher.describe` has them, and their temperature."""
    if trainer.args.method == "reinforced" and config is not None:
        return config.teachers, config.classes.temperature if config.classes else 1.0
    if trainer.args.method == "online" and trainer.teacher is not None:
        return trainer.teacher.describe(), trainer.teacher.temperature
    return (), 1.0


def _evaluation_results(evaluation: Evaluation, metrics: Mapping[str, float]) -> list[EvalResult]:
    """The metrics as the Hub wants them."""
    name = evaluation.name if is_hub_id(evaluation.name) else Path(evaluation.name).name
    return [
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


def _settings(trainer: Any) -> dict[str, Any]:
    """The hyperparameters, as transformers lists them, and those that `KDTrainingArguments` adds."""
    args = trainer.args
    settings: dict[str, Any] = extract_hyperparameters_from_trainer(trainer)
    if args.timm_optimizer:
        settings["optimizer"] = f"{args.timm_optimizer} (timm)"
    if args.method != "plain":
        settings |= {"temperature": args.temperature, "hard_label_weight": args.hard_label_weight}
    own = {"weight_decay": args.weight_decay, "ema_decay": args.ema_decay, "max_grad_norm": args.max_grad_norm}
    return settings | {key: value for key, value in own.items() if value}


def _license(licenses: Sequence[str | None], source_name: str | None) -> str | None:
    """The licence of all that the student was made from, where that is one and the same; else none."""
    (license, *others) = set(licenses)
    return None if others or not license or "," in license or is_imagenet(source_name) else license
