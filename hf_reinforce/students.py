"""Students: image classifiers of transformers or timm, saved so that they carry their own preprocessing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_reinforce.classifiers import Preprocessing, processor_preprocessing
from hf_reinforce.local import resolve

WHOLE_IMAGE_SIZE = 160
"""Up to this input size a student sees whole images in evaluation, above it the usual central crop of 0.875."""


def create_student(
    name_or_path: str,
    num_labels: int,
    image_size: int,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> nn.Module:
    """A student, with random weights or pretrained ones.

    Args:
        name_or_path: a timm architecture such as `mobilenetv3_small_100` (random weights), or a Hub id or folder of a
            transformers or timm classifier (its weights, with a new head where the classes differ).
        num_labels: classes.
        image_size: side of the input in pixels.
        class_names: names of the classes, saved with the model.
        model_args: further arguments of `timm.create_model`, e.g. `{"drop_path_rate": 0.1}`.
        revision: Hub revision.

    Returns:
        A transformers `PreTrainedModel`; after `save_pretrained` it loads with `AutoModelForImageClassification`.

    Raises:
        ValueError: if there is no such architecture, folder or repository.
    """
    import timm
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    names = list(class_names) if class_names else [f"LABEL_{index}" for index in range(num_labels)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    path = resolve(name_or_path)
    if "/" not in name_or_path and not Path(path).exists():
        if not timm.is_model(name_or_path):
            raise ValueError(
                f"{name_or_path!r} is neither a timm architecture (timm.list_models() names them) nor a folder; a Hub "
                "id has the form owner/name."
            )
        config = TimmWrapperConfig(
            architecture=name_or_path,
            num_labels=num_labels,
            model_args=dict(model_args or {}),
            pretrained_cfg=_pretrained_cfg(name_or_path, image_size),
            **labels,
        )
        model: nn.Module = AutoModelForImageClassification.from_config(config)
        return model
    try:
        pretrained: Any = AutoModelForImageClassification.from_pretrained(
            path,
            revision=revision,
            ignore_mismatched_sizes=True,
            num_labels=num_labels,  # a timm configuration overlooks the names
            **labels,
            **({"model_args": dict(model_args)} if model_args else {}),
        )
    except OSError as error:
        raise ValueError(f"There is no image classifier {name_or_path!r}: {error}") from error
    for stale in ("label_names", "label_descriptions"):  # of the classes that it was pretrained on
        if hasattr(pretrained.config, stale):
            delattr(pretrained.config, stale)
    cfg = getattr(pretrained.config, "pretrained_cfg", None)
    if not cfg:  # a transformers-native network keeps its mean and deviation in a file of its own
        own = processor_preprocessing(path, revision) or Preprocessing(image_size)
        cfg = {"mean": list(own.mean), "std": list(own.std), "interpolation": own.interpolation}
    pretrained.config.pretrained_cfg = {**cfg, **_input_cfg(image_size), "num_classes": num_labels}
    return pretrained  # type: ignore[no-any-return]


def _pretrained_cfg(architecture: str, image_size: int) -> dict[str, Any]:
    """Preprocessing that timm and transformers read back: small images are used whole."""
    import timm

    known = timm.get_pretrained_cfg(architecture)
    mean, std = (known.mean, known.std) if known else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return {"mean": list(mean), "std": list(std), "interpolation": "bilinear", **_input_cfg(image_size)}


def _input_cfg(image_size: int) -> dict[str, Any]:
    return {
        "input_size": [3, image_size, image_size],
        "crop_pct": 1.0 if image_size <= WHOLE_IMAGE_SIZE else 0.875,
        "crop_mode": "center",
    }


def student_preprocessing(model: nn.Module, image_size: int) -> Preprocessing:
    """How a student normalises, from its own configuration where it says; else ImageNet's mean and deviation."""
    cfg = vars(getattr(model, "config", model)).get("pretrained_cfg")
    if not cfg:
        return Preprocessing(image_size, interpolation="bilinear")
    return Preprocessing(
        image_size,
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
        "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic",
        float(cfg.get("crop_pct") or 1.0),
    )
