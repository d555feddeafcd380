"""Students: image classifiers of transformers or timm, saved so that both libraries load them as they were trained.

A timm network is trained inside transformers' `TimmWrapper`. Both libraries read the same `config.json`; what they do
not share is the prefix of the wrapper's weights, which `saved_weights` takes off. A network of transformers' own has
its preprocessing in a file beside it, which `image_processor` writes.
"""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hf_reinforce.local_copies import resolve
from hf_reinforce.models.classes import ModelClasses, some
from hf_reinforce.models.networks import Member, architecture, logits_of, named_member, try_network
from hf_reinforce.models.preprocessing import Preprocessing, read_processor, timm_preprocessing
from hf_reinforce.models.weights import WeightReport

WHOLE_IMAGE_SIZE = 160
"""Up to this input size a student sees whole images in evaluation, above it the usual central crop of 0.875."""

_OF_THE_ARCHITECTURE = ("fixed_input_size", "first_conv", "classifier", "license")
"""What stays of timm's configuration of pretrained weights; timm needs it to change the head."""

logger = logging.getLogger(__name__)


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
        ValueError: if there is no such architecture, folder or repository, or not a name for each class.

    Example:
        from hf_reinforce import create_student

        student = create_student("mobilenetv3_small_100", num_labels=100, image_size=32)
        pretrained = create_student("timm/tf_efficientnet_lite0.in1k", num_labels=100, image_size=224)
    """
    from transformers import AutoModelForImageClassification

    names = list(class_names) if class_names else [f"LABEL_{index}" for index in range(num_labels)]
    if not 0 < num_labels == len(names):
        raise ValueError(
            f"num_labels must be at least 1 and the number of class_names, not {num_labels} ({len(names)})."
        )
    source = None if is_architecture(name_or_path) else named_member(name_or_path, revision=revision, head=False)
    config = _configuration(name_or_path, source, model_args or {})
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    try:
        model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # architectures raise whatever an argument leads to
        raise ValueError(
            f"timm cannot make a {name_or_path} with the arguments {dict(model_args or {})} "
            f"({type(error).__name__}: {error}); mend model_args (--model_args)."
        ) from error
    if source is None:
        own = replace(student_preprocessing(model, image_size), interpolation="bilinear")
    else:
        own = source.preprocessing or Preprocessing(image_size)
        _take_weights(model, source, names)
    crop_pct = 1.0 if image_size <= WHOLE_IMAGE_SIZE else 0.875
    record_preprocessing(model, replace(own, image_size=image_size, crop_pct=crop_pct, crop_mode="center"))
    image_processor(model)  # what cannot be saved is noticed before it is trained
    return model  # type: ignore[no-any-return]


def is_architecture(name_or_path: str) -> bool:
    """Whether a name is that of a timm architecture, which has no weights, and not of a folder or a Hub repository."""
    if "/" in name_or_path or Path(resolve(name_or_path)).exists():
        return False
    if not timm.is_model(name_or_path):
        raise ValueError(
            f"{name_or_path!r} is neither a timm architecture (timm.list_models() names them) nor a folder; a Hub id "
            "has the form owner/name."
        )
    return True


def _configuration(name: str, source: Member | None, model_args: Mapping[str, Any]) -> Any:
    """The configuration of transformers for a timm architecture, or of a network like another one."""
    from transformers import TimmWrapperConfig

    network: Any = None if source is None else source.model
    config = getattr(network, "config", None)
    cfg: Mapping[str, Any]
    if network is None:
        kind, cfg, saved = name, getattr(timm.get_pretrained_cfg(name), "to_dict", dict)(), {}
    elif config is None:
        kind, cfg, saved = architecture(network), network.pretrained_cfg, network.pretrained_model_args
    elif _is_timm(config):
        kind, cfg, saved = config.architecture, config.pretrained_cfg, config.model_args or {}
    elif model_args:
        raise ValueError(
            f"{name} is a network of transformers, which takes no timm arguments {dict(model_args)}; leave out "
            "model_args (--model_args)."
        )
    else:
        return deepcopy(config)
    saved = {key: value for key, value in saved.items() if key != "num_classes"}
    return TimmWrapperConfig(architecture=kind, pretrained_cfg=dict(cfg), model_args={**saved, **model_args})


def _take_weights(model: Any, source: Member, names: Sequence[str]) -> None:
    """Gives a student the weights of a pretrained network, and says in a line what becomes of the head: for the same
    classes it is kept, with its rows in the order of the names; for other ones it is new."""
    prefix = "timm_model." if _is_timm(model.config) and source.kind != "transformers" else ""
    state = {prefix + name: tensor for name, tensor in source.model.state_dict().items()}
    rows, own = class_dimensions(model), model.state_dict()
    WeightReport.between(model, state).check(source.name, lambda tensor: tensor in rows)
    body = {name: tensor for name, tensor in state.items() if name in own and name not in rows}
    count, theirs = len(names), source.class_names or ()
    classes = ModelClasses(theirs, len(theirs))
    fresh = {prefix + name for name in source.fresh}
    order: Sequence[int] | None = range(count)
    if fresh & set(rows) or any(state[name].shape != own[name].shape for name in rows):
        has = "none" if fresh & set(rows) else next(state[name].shape[rows[name]] for name in rows)
        order, said = None, f"gets a new head for {count} classes (its checkpoint has {has}): {', '.join(rows)}"
    elif not classes.names or not ModelClasses(names, count).names:
        said = f"keeps its head: nothing says what its {count} classes are, so they are taken as given"
    elif (places := classes.places(names)) is None:
        order = None
        said = f"gets a new head: its {count} classes ({some(theirs)}) are not those of the dataset ({some(names)})"
    else:
        order = places[0]
        moved = ", put into the order of the dataset by name" if list(order) != list(range(count)) else ""
        said = f"keeps its head of {count} classes{moved}"
    if order is not None:
        body |= {name: state[name].index_select(rows[name], torch.tensor(order)) for name in rows}
    model.load_state_dict(body, strict=False)
    logger.info("%s %s.", source.name, said)


def class_dimensions(model: Any) -> dict[str, int]:
    """The tensors of a classifier of transformers that have one row for each class, and in which dimension."""
    from transformers import AutoModelForImageClassification

    config = deepcopy(model.config)
    count = config.num_labels
    config.num_labels = count + 1
    with torch.device("meta"):
        other = AutoModelForImageClassification.from_config(config, trust_remote_code=False).state_dict()
    found = {}
    for name, tensor in model.state_dict().items():
        sizes = list(zip(tensor.shape, other[name].shape, strict=True)) if name in other else []
        different = [dimension for dimension, (own, theirs) in enumerate(sizes) if own != theirs]
        if len(different) == 1 and sizes[different[0]] == (count, count + 1):
            found[name] = different[0]
    return found


# -- preprocessing, and what is saved -----------------------------------------------------------------------------


def student_preprocessing(model: nn.Module, image_size: int | None = None) -> Preprocessing:
    """How a student normalises and is evaluated, at its own or another size: as it says itself, else with ImageNet's
    mean and deviation."""
    cfg = vars(getattr(model, "config", model)).get("pretrained_cfg")
    own = timm_preprocessing(cfg) if cfg else getattr(model, "preprocessing", None)
    rounding = _rounding(getattr(model, "config", None))
    own = own or Preprocessing(image_size or 224, interpolation="bilinear", crop_rounding=rounding)
    return replace(own, image_size=image_size or own.image_size)


def record_preprocessing(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Makes a student say how it normalises and is evaluated; a ValueError where timm cannot say it."""
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
    """The image processor to save beside a student; None where transformers finds it in `config.json`, or has none."""
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


# -- whether student, teacher and datasets fit each other -----------------------------------------------------------


def student_logits(model: nn.Module, student: nn.Module, images: Tensor, preprocessing: Preprocessing | None) -> Any:
    """A student's logits [B, C] for views [B, 3, S, S] with values 0 to 255, and all that it returns.

    It is called as `model`, which may wrap the `student` for several processes.
    """
    preprocessing = preprocessing or student_preprocessing(student, images.shape[-1])
    outputs = model(preprocessing(images).contiguous(memory_format=torch.channels_last))
    return logits_of(outputs, _name(student)), outputs


def check_fit(
    model: nn.Module, train: Any, evaluation: Any, teacher: Any, preprocessing: Preprocessing | None
) -> None:
    """Raises a ValueError if a student or its teacher cannot take the views, or the numbers of classes differ."""
    name, count = _name(model), None
    for what, dataset in (("the training set", train), ("the dataset to evaluate on", evaluation)):
        if dataset is None:
            continue
        advice = "choose the side that it takes with preprocessing= (--input_size), or another network"
        answer = lambda views: student_logits(model, model, views, preprocessing)[0]
        count = try_network(model, answer, name, _size(dataset), advice)
        config = getattr(dataset, "config", None)
        classes = int(config.num_classes) if config is not None else len(dataset.source.class_names or ())
        if classes not in (0, count):  # 0: nothing says how many there are
            raise ValueError(
                f"{name} answers with {count} classes, but {what} has {classes}; give the student that many "
                "(create_student(..., num_labels=...), or num_classes= of timm), or choose other data."
            )
    if teacher is not None and train is not None:
        advice = "make others (--image_size), or choose another teacher"
        classes = try_network(teacher.members[0].model, teacher, "The teacher", _size(train), advice)
        if classes != count:
            raise ValueError(
                f"The teacher answers with {classes} classes, but {name} with {count}. Fit the teacher to the classes "
                "of the dataset: teacher.with_classes(names, class_map) (--class_map)."
            )


def _name(student: nn.Module) -> str:
    return f"The student {getattr(getattr(student, 'config', None), 'name_or_path', '') or architecture(student)}"


def _size(dataset: Any) -> int:
    return int(dataset.image_size or dataset.policy.image_size)
