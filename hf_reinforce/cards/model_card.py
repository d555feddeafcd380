"""Model cards of students: what they learned from, how, how well, and how to load them."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_reinforce.cards import markdown
from hf_reinforce.cards.commands import INSTALL
from hf_reinforce.cards.markdown import code, hub_link, table, text
from hf_reinforce.cards.tables import source_text, stated, teacher_table
from hf_reinforce.licenses import IMAGENET_LICENSE, is_hub_id, is_imagenet, read_license, recorded_name

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_PACKAGES = ("transformers", "timm", "torch", "torchvision", "datasets")
_SECRET = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{30,}|(?<=://)[^/@\s]+(?=@)")  # a token, or the user of an address
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
        revision: Hub revision, default the one that was loaded, where it is known.
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
    command: Sequence[str] = (),
    **ignored: Any,
) -> None:
    """Writes `README.md` into a trainer's output folder, in its main process.

    It takes the place of `Trainer.create_model_card`, which `Trainer.push_to_hub` calls.

    Args:
        trainer: a `KDTrainer` after training and evaluation.
        model_name: the student's name, default that of its repository or folder.
        base_model: timm architecture, or Hub id or folder of the weights that training began with.
        dataset_name: Hub id or folder of the training data.
        dataset_config_name: its configuration.
        evaluation: what the trainer's `eval_dataset` is.
        command: the words of the command line. What follows a flag for a token is left out.
        ignored: further arguments that `Trainer.push_to_hub` passes on.
    """
    if not trainer.is_world_process_zero():
        return
    base_model, dataset_name = recorded_name(base_model), recorded_name(dataset_name)
    if evaluation is not None:
        evaluation = replace(evaluation, name=recorded_name(evaluation.name))
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    history = _history(trainer)
    data = _data(trainer, dataset_name, dataset_config_name)
    results = _results(trainer, history, evaluation)
    student = _student(trainer, model_name, base_model)
    ModelCard.from_template(
        _metadata(student, results, data, dataset_name),
        template_path=str(_TEMPLATE),
        markdown=markdown,
        install=INSTALL,
        settings=table(
            ["setting", "value"], [[key, text(value)] for key, value in _settings(trainer, history).items()]
        ),
        command=shown_command(command),
        licenses=_licenses(data, student),
        versions=", ".join(f"{package} {version(package)}" for package in _PACKAGES),
        **data,
        **results,
        **student,
    ).save(folder / "README.md")


def _student(trainer: Any, model_name: str | None, base_model: str) -> dict[str, Any]:
    """What the student is, and where it can be loaded from."""
    args = trainer.args
    location = (getattr(trainer, "hub_model_id", None) if args.push_to_hub else None) or str(args.output_dir)
    model_type = getattr(getattr(trainer.model, "config", None), "model_type", None)
    named = "/" in base_model or Path(base_model).exists()
    return {
        "name": model_name or location.rstrip("/").rsplit("/", 1)[-1],
        "location": location,
        "on_hub": bool(args.push_to_hub),
        "in_transformers": model_type is not None,
        "in_timm": model_type == "timm_wrapper",
        "base": _linked(base_model),
        "base_model": base_model,
        "pretrained": named,
        "base_license": read_license(base_model, "model") if named else None,
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def _data(trainer: Any, dataset_name: str, config_name: str | None) -> dict[str, Any]:
    """What the student learned from."""
    train, method = trainer.train_dataset, trainer.args.method
    config, policy = getattr(train, "config", None), getattr(train, "policy", None)
    if method == "reinforced" and config is not None:
        teachers, temperature = list(config.teachers), config.classes.temperature if config.classes else 1.0
    elif method == "online" and trainer.teacher is not None:
        teachers, temperature = trainer.teacher.describe(), trainer.teacher.temperature
    else:
        teachers, temperature = [], 1.0
    source = config.source if config is not None else None
    return {
        "method": method,
        "config": config,
        "data": _linked(dataset_name, "datasets/") + (f" ({code(config_name)})" if config_name else ""),
        "source": source_text(config) if config is not None else _linked(dataset_name, "datasets/"),
        "source_name": source.name if source else dataset_name,
        "source_license": (source and source.license)
        or read_license(source.name if source else dataset_name, "dataset"),
        "steps": [text(operation.describe()) for operation in policy.operations] if policy is not None else [],
        "policy": code(policy.name) if policy is not None else "",
        "teachers": teachers,
        "teacher": teacher_table(teachers, temperature) if teachers else None,
    }


def _results(trainer: Any, history: Sequence[Mapping[str, Any]], evaluation: Evaluation | None) -> dict[str, Any]:
    """The metrics of the last evaluation."""
    last: Mapping[str, Any] = next((entry for entry in reversed(history) if "eval_accuracy" in entry), {})
    metrics = {key: float(last[f"eval_{key}"]) for key in _METRICS if f"eval_{key}" in last}
    if evaluation is not None and evaluation.revision is None:
        evaluation = replace(evaluation, revision=loaded_revision(trainer.eval_dataset))
    return {
        "metrics": metrics,
        "results": table(
            ["metric", "value"], [[_METRICS[k][1], _METRICS[k][2].format(v)] for k, v in metrics.items()]
        ),
        "num_images": int(last.get("eval_num_samples", 0)),
        "evaluation": evaluation,
        "evaluated": _linked(evaluation.name, "datasets/") if evaluation else "data without a name",
    }


def _metadata(
    student: Mapping[str, Any], results: Mapping[str, Any], data: Mapping[str, Any], dataset_name: str
) -> ModelCardData:
    evaluation, found = results["evaluation"], []
    if evaluation is not None:
        name = evaluation.name if is_hub_id(evaluation.name) else Path(evaluation.name).name
        for key, value in results["metrics"].items():
            found.append(
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
            )
    base = student["base_model"] if student["pretrained"] and is_hub_id(student["base_model"]) else None
    return ModelCardData(
        model_name=student["name"] if found else None,
        eval_results=found or None,
        library_name="timm" if student["in_timm"] else "transformers" if student["in_transformers"] else None,
        pipeline_tag="image-classification",
        tags=["dataset-reinforcement", *(["transformers"] if student["in_timm"] else [])],
        datasets=list(dict.fromkeys(name for name in (dataset_name, data["source_name"]) if name and is_hub_id(name)))
        or None,
        base_model=base,
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


def _licenses(data: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    rows = {data["source"]: stated(data["source_license"])}
    if is_imagenet(data["source_name"]):
        rows[data["source"]] = f"[ImageNet terms of access]({IMAGENET_LICENSE['license_link']})"
    if student["pretrained"]:
        rows[student["base"]] = stated(student["base_license"])
    rows |= {_linked(teacher["name"]): stated(teacher.get("license")) for teacher in data["teachers"]}
    return table(["made from", "licence, as its own card states it"], [list(row) for row in rows.items()])


def _settings(trainer: Any, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The hyperparameters that make the run, by the words a reader looks for."""
    args = trainer.args
    steps = max((entry.get("step", 0) for entry in history), default=0)
    epochs = max((entry.get("epoch", 0) for entry in history), default=0)
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    rows = {
        "optimizer": f"{args.timm_optimizer} (timm)"
        if args.timm_optimizer
        else getattr(args.optim, "value", args.optim),
        "learning rate": f"{args.learning_rate:g}",
        "schedule": f"{args.timm_scheduler} (timm)"
        if args.timm_scheduler
        else getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        "warm-up steps": args.get_warmup_steps(steps),
        "weight decay": f"{args.weight_decay:g}",
        "batch size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "epochs": f"{args.num_train_epochs:g}" if args.max_steps <= 0 else f"{epochs:.3g}",
        "steps": steps,
        "input size": getattr(getattr(trainer, "_preprocessing", None), "image_size", None),
        "temperature": f"{args.temperature:g}" if args.method != "plain" else None,
        "share of the label's cross-entropy": f"{args.hard_label_weight:g}" if args.method != "plain" else None,
        "label smoothing": f"{args.label_smoothing_factor:g}" if args.label_smoothing_factor else None,
        "average of the weights, decay": f"{args.ema_decay:g}" if args.ema_decay else None,
        "largest norm of the gradient": f"{args.max_grad_norm:g}" if args.max_grad_norm else None,
        "precision": precision,
        "seed": args.seed,
    }
    return {key: value for key, value in rows.items() if value is not None}


def _history(trainer: Any) -> list[dict[str, Any]]:
    """The trainer's log; of a run that was finished before, what it has saved."""
    own = list(trainer.state.log_history)
    saved = Path(trainer.args.output_dir) / "trainer_state.json"
    if any("loss" in entry for entry in own) or not saved.exists():
        return own
    return [*json.loads(saved.read_text(encoding="utf-8"))["log_history"], *own]


def shown_command(words: Sequence[str]) -> str:
    """A command line for a card: without tokens or passwords, and long ones broken into lines."""
    words = [_SECRET.sub("...", word) for word in words]
    kept: list[str] = []
    hidden = False
    for word in words:
        flag, equals, _ = word.partition("=")
        if hidden and not word.startswith("--"):
            kept.append("...")
        else:
            kept.append(f"{flag}=..." if flag.startswith("--") and "token" in flag and equals else shlex.quote(word))
        hidden = word.startswith("--") and "token" in word and not equals
    lines = [""]
    for word in (word.replace("\n", " ") for word in kept):
        if len(lines[-1]) + len(word) > 90 and word.startswith("--"):
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def loaded_revision(eval_dataset: Any) -> str | None:
    """The Hub commit that an evaluation set was loaded from; None where it is not from the Hub.

    `datasets` keeps what it downloads in a folder with the commit's name.
    """
    dataset = getattr(getattr(eval_dataset, "source", None), "_dataset", None)
    folders = {Path(item["filename"]).parent.name for item in getattr(dataset, "cache_files", ())}
    found = [name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)]
    return found[0] if len(found) == len(folders) == 1 else None


def _linked(name: str, kind: str = "") -> str:
    return hub_link(name, kind) if is_hub_id(name) else code(name)
