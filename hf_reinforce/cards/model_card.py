"""Model cards of students: what they learned from, how, how well, and how to load them."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_reinforce.cards import markdown
from hf_reinforce.cards.dataset_card import CARD_FILE
from hf_reinforce.licenses import is_hub_id, is_imagenet, read_license, recorded_name
from hf_reinforce.metrics import METRICS
from hf_reinforce.store.atomic import write_whole
from hf_reinforce.store.config import ReinforcementConfig

_PACKAGES = ("transformers", "timm", "torch", "torchvision", "datasets")


def write_model_card(
    trainer: Any,
    *,
    model_name: str | None = None,
    base_model: str,
    dataset_name: str,
    dataset_config_name: str | None = None,
    evaluation: Mapping[str, str | None] | None = None,
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
        evaluation: `dataset_name`, `dataset_config`, `dataset_split` and `dataset_revision` of what the trainer's
            `eval_dataset` is, as `EvalResult` of huggingface_hub has them.
        ignored: further arguments that `Trainer.push_to_hub` passes on.
    """
    if not trainer.is_world_process_zero():
        return
    args, train = trainer.args, trainer.train_dataset
    base_model, dataset_name = recorded_name(base_model), recorded_name(dataset_name)
    config: ReinforcementConfig | None = getattr(train, "config", None)
    teachers = config.teachers if args.method == "reinforced" and config is not None else ()
    if args.method == "online" and trainer.teacher is not None:
        teachers = trainer.teacher.describe()
    source = config.source.name if config is not None else dataset_name
    source_license = (config and config.source.license) or read_license(source, "dataset")
    pretrained = "/" in base_model or Path(base_model).exists()
    base_license = read_license(base_model, "model") if pretrained else None
    licenses = [source_license, *([base_license] if pretrained else []), *(t.get("license") for t in teachers)]
    location = (getattr(trainer, "hub_model_id", None) if args.push_to_hub else None) or str(args.output_dir)
    name = model_name or location.rstrip("/").rsplit("/", 1)[-1]
    model_type = getattr(getattr(trainer.model, "config", None), "model_type", None)
    history = reversed(trainer.state.log_history)
    last: dict[str, Any] = next((entry for entry in history if "eval_accuracy" in entry), {})
    metrics = {key: float(last[f"eval_{key}"]) for key in METRICS if f"eval_{key}" in last}
    results = []
    if evaluation:
        shown = recorded_name(str(evaluation["dataset_name"]))
        evaluation = {**evaluation, "dataset_name": shown}
        on = shown if is_hub_id(shown) else Path(shown).name
        where = {**evaluation, "dataset_type": on, "dataset_name": on}
        task = {"task_type": "image-classification", "task_name": "Image Classification"}
        for key, value in metrics.items():
            title = METRICS[key].heading.removesuffix(" (%)")  # the values are shares
            metric = {"metric_type": key, "metric_name": title, "metric_value": round(value, 6)}
            results.append(EvalResult(**task, **where, **metric))
    settings: dict[str, Any] = extract_hyperparameters_from_trainer(trainer)
    if args.timm_optimizer:
        settings["optimizer"] = f"{args.timm_optimizer} (timm)"
    own = ("weight_decay", "ema_decay", "max_grad_norm")
    settings |= {key: getattr(args, key) for key in own if getattr(args, key)}
    if args.method != "plain":
        settings |= {"temperature": args.temperature, "hard_label_weight": args.hard_label_weight}
    metadata = ModelCardData(
        model_name=name if results else None,
        eval_results=results or None,
        library_name={"timm_wrapper": "timm", None: None}.get(model_type, "transformers"),
        pipeline_tag="image-classification",
        tags=["dataset-reinforcement", *(["transformers"] if model_type == "timm_wrapper" else [])],
        datasets=list(dict.fromkeys(item for item in (dataset_name, source) if item and is_hub_id(item))) or None,
        base_model=base_model if pretrained and is_hub_id(base_model) else None,
        license=_license(licenses, source),
        metrics=["accuracy"] if results else None,
    )
    card = markdown.render(
        "model_card.md",
        metadata,
        name=name,
        location=location,
        on_hub=bool(args.push_to_hub),
        model_type=model_type,
        base_model=base_model,
        pretrained=pretrained,
        base_license=base_license,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        method=args.method,
        dataset_name=dataset_name,
        data_config=dataset_config_name,
        source_name=source,
        source_license=source_license,
        config=config,
        policy=getattr(train, "policy", None),
        teachers=teachers,
        evaluation=evaluation,
        num_images=int(last.get("eval_num_samples", 0)),
        results=[
            (METRICS[key].heading, f"{100 * value:.2f}" if "%" in METRICS[key].heading else f"{value:.4f}")
            for key, value in metrics.items()
        ],
        settings=settings,
        versions=", ".join(f"{package} {version(package)}" for package in _PACKAGES),
    )
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CARD_FILE, card)


def _license(licenses: Sequence[str | None], source_name: str | None) -> str | None:
    """The licence of all that the student was made from, where that is one and the same; else none."""
    (license, *others) = set(licenses)
    return None if others or not license or "," in license or is_imagenet(source_name) else license
