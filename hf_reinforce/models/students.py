"""Students: image classifiers of transformers or timm, saved so that both libraries load them as they were trained.

A timm network is trained inside transformers' `TimmWrapper`. Both libraries read the same `config.json`; what they do
not share is the prefix of the wrapper's weights, which `saved_weights` takes off. A network of transformers' own has
its preprocessing in a file beside it, which `image_processor` writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_reinforce.local_copies import resolve
from hf_reinforce.models.heads import fit_head
from hf_reinforce.models.preprocessing import Preprocessing, timm_preprocessing
from hf_reinforce.models.processors import processor_preprocessing, read_processor
from hf_reinforce.models.records import recorded_classes
from hf_reinforce.models.weights import WeightReport, loading

WHOLE_IMAGE_SIZE = 160
"""Up to this input size a student sees whole images in evaluation, above it the usual central crop of 0.875."""

_OF_THE_ARCHITECTURE = ("fixed_input_size", "first_conv", "classifier", "license")
"""What stays of timm's configuration of pretrained weights; timm needs it to change the head."""


def create_student(
    name_or_path: str,
    num_labels: int,
    image_size: int,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Makes a student, with random or with pretrained weights.

    Args:
        name_or_path: a timm architecture such as `mobilenetv3_small_100` (random weights), or a Hub id or folder of a
            transformers or timm classifier (its weights, with a new head where the classes differ).
        num_labels: number of classes.
        image_size: side of the student's square input in pixels.
        class_names: names of the classes, which are saved with the student.
        model_args: further arguments of `timm.create_model`, e.g. `{"drop_path_rate": 0.1}`, added to those of a saved
            network.
        revision: Hub revision.

    Returns:
        A transformers `PreTrainedModel`. `KDTrainer.save_model` saves it so that transformers and timm load it.

    Raises:
        ValueError: if there is no such architecture, folder or repository.

    Example:
        from hf_reinforce import create_student

        student = create_student("mobilenetv3_small_100", num_labels=100, image_size=32)
        pretrained = create_student("timm/tf_efficientnet_lite0.in1k", num_labels=100, image_size=224)
    """
    import timm
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    names = list(class_names) if class_names else [f"LABEL_{index}" for index in range(num_labels)]
    crop_pct = 1.0 if image_size <= WHOLE_IMAGE_SIZE else 0.875
    path = resolve(name_or_path)
    if not is_architecture(name_or_path):
        model = _pretrained(name_or_path, names, model_args, revision)
        own = _own_preprocessing(model) or processor_preprocessing(path, revision) or Preprocessing(image_size)
    else:
        cfg = timm.get_pretrained_cfg(name_or_path)
        config = TimmWrapperConfig(
            architecture=name_or_path,
            num_labels=num_labels,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            model_args=dict(model_args or {}),
            pretrained_cfg=cfg.to_dict() if cfg else {},
        )
        try:
            model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        except Exception as error:  # architectures raise whatever an argument leads to
            raise ValueError(
                f"timm cannot make a {name_or_path} with the arguments {dict(model_args or {})} "
                f"({type(error).__name__}: {error}); mend model_args (--model_args)."
            ) from error
        own = replace(_own_preprocessing(model) or Preprocessing(image_size), interpolation="bilinear")
    record_preprocessing(model, replace(own, image_size=image_size, crop_pct=crop_pct, crop_mode="center"))
    image_processor(model)  # what cannot be saved is noticed before it is trained
    return model


def is_architecture(name_or_path: str) -> bool:
    """Whether a name is that of a timm architecture, which has no weights, and not of a folder or a Hub repository.

    Raises:
        ValueError: if it is none of these.
    """
    import timm

    if "/" in name_or_path or Path(resolve(name_or_path)).exists():
        return False
    if not timm.is_model(name_or_path):
        raise ValueError(
            f"{name_or_path!r} is neither a timm architecture (timm.list_models() names them) nor a folder; a Hub id "
            "has the form owner/name."
        )
    return True


def _pretrained(
    name_or_path: str, names: Sequence[str], model_args: Mapping[str, Any] | None, revision: str | None
) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    path = resolve(name_or_path)
    with loading(name_or_path, path):
        try:
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        except OSError as error:
            raise ValueError(f"There is no image classifier {name_or_path!r}: {error}") from error
        theirs = recorded_classes(config, name_or_path) or ()
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in config.id2label.items()}
        for stale in ("label_names", "label_descriptions"):  # of the classes that it was pretrained on
            if hasattr(config, stale):
                delattr(config, stale)
        if _is_timm(config):
            saved = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
            config.model_args = {**saved, **(model_args or {})}
        elif model_args:
            raise ValueError(
                f"{name_or_path} is a network of transformers, which takes no timm arguments {dict(model_args)}; "
                "leave out model_args (--model_args)."
            )
        model, info = AutoModelForImageClassification.from_pretrained(
            path,
            revision=revision,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    fit_head(name_or_path, model, theirs, names, WeightReport.of(info))
    return model  # type: ignore[no-any-return]


def student_preprocessing(model: nn.Module, image_size: int | None = None) -> Preprocessing:
    """How a student normalises and is evaluated: as it says itself, else with ImageNet's mean and deviation.

    Args:
        model: a student, or any other module.
        image_size: side of its input in pixels, default its own.
    """
    rounding = _rounding(getattr(model, "config", None))
    own = _own_preprocessing(model)
    own = own or Preprocessing(image_size or 224, interpolation="bilinear", crop_rounding=rounding)
    return replace(own, image_size=image_size or own.image_size)


def record_preprocessing(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Makes a student say how it normalises and is evaluated.

    Raises:
        ValueError: if timm cannot say it.
    """
    config: Any = getattr(model, "config", None)
    if not _is_timm(config):
        model.preprocessing = replace(preprocessing, crop_rounding=_rounding(config))  # type: ignore[assignment]
        return
    if preprocessing.channels != "RGB" or preprocessing.crop_mode not in ("center", "squash", "border"):
        raise ValueError(f"A student of timm cannot be saved with {preprocessing}; timm has RGB, and no such crop.")
    cfg = config.pretrained_cfg
    config.pretrained_cfg = {
        **{key: cfg[key] for key in _OF_THE_ARCHITECTURE if key in cfg},
        "input_size": [3, preprocessing.image_size, preprocessing.image_size],
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
        "interpolation": preprocessing.interpolation,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def image_processor(model: nn.Module) -> Any:
    """The image processor to save beside a student; None where transformers finds it in `config.json`, or has none.

    Raises:
        ValueError: if no image processor does what the student's preprocessing does.
    """
    from transformers import BitImageProcessor, MobileViTImageProcessor, PreTrainedModel
    from transformers.image_utils import PILImageResampling

    if not isinstance(model, PreTrainedModel) or _is_timm(model.config):
        return None
    own = student_preprocessing(model)
    side, kind = int(own.image_size / own.crop_pct), type(model).__name__
    processor = (BitImageProcessor if own.channels == "RGB" else MobileViTImageProcessor)(
        size={"height": side, "width": side} if own.crop_mode == "squash" else {"shortest_edge": side},
        crop_size={"height": own.image_size, "width": own.image_size},
        resample=PILImageResampling[own.interpolation.upper()],
        image_mean=list(own.mean),
        image_std=list(own.std),
    )
    found = read_processor(processor, kind)
    if replace(found, crop_pct=own.crop_pct, crop_rounding=own.crop_rounding) != own:
        raise ValueError(f"The student {kind} cannot be saved: no image processor does its {own}, but {found}.")
    return processor


def saved_weights(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A student's weights as they are saved: contiguous, by the names that transformers and timm both know."""
    prefix = "timm_model." if _is_timm(getattr(model, "config", None)) else ""
    return {name.removeprefix(prefix): value.contiguous() for name, value in state.items()}


def _is_timm(config: Any) -> bool:
    return getattr(config, "model_type", None) == "timm_wrapper"


def _rounding(config: Any) -> str:
    """How the library that will load a student rounds half pixels of a crop."""
    return "even" if config is None or _is_timm(config) else "down"


def _own_preprocessing(model: nn.Module) -> Preprocessing | None:
    cfg = vars(getattr(model, "config", model)).get("pretrained_cfg")
    if not cfg:
        return getattr(model, "preprocessing", None)
    return timm_preprocessing(cfg)
