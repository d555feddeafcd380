"""One image classifier with its own preprocessing, loaded by name: a transformers or timm network, or a module."""

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_reinforce.local_copies import resolve
from hf_reinforce.models.answers import logits_of
from hf_reinforce.models.cifar_networks import MICRONET, new_micronet
from hf_reinforce.models.classes import some
from hf_reinforce.models.preprocessing import Preprocessing, for_channels, luma, timm_preprocessing
from hf_reinforce.models.processors import processor_preprocessing
from hf_reinforce.models.records import channels, class_names
from hf_reinforce.models.weights import WeightReport, loading, outside_body, read_state, watched_loads, weight_hash

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One network of a teacher.

    Attributes:
        model: takes normalised images [B, 3, S, S]; returns logits [B, C] or an output with `.logits`.
        preprocessing: how it wants its input.
        name: Hub id, folder or the module's class.
        kind: key of `TEACHER_KINDS`, or `"module"`.
        class_names: names of its classes, where it knows them.
        revision: Hub revision, where one was asked for.
        checkpoint: file of its weights, where it is a bare timm architecture.
        weight: share of its probabilities in the ensemble, before normalisation.
        weight_hash: xxh3-64, hex, of its weights as they were loaded.
        class_map: the index of its class for each class of the teacher; None: the same.
    """

    model: nn.Module
    preprocessing: Preprocessing
    name: str
    kind: str
    class_names: tuple[str, ...] | None = None
    revision: str | None = None
    checkpoint: str | None = None
    weight: float = 1.0
    weight_hash: str = ""
    class_map: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        if not self.weight_hash:
            object.__setattr__(self, "weight_hash", weight_hash(self.model))

    def __reduce__(self) -> Any:
        # `datasets.map` hashes and copies what it maps: a named network travels as its name, not as its weights.
        if self.kind == "module":
            return super().__reduce__()
        dtype = next(self.model.parameters()).dtype
        return _reload, (
            self.name,
            self.checkpoint,
            self.revision,
            self.preprocessing,
            self.weight,
            self.weight_hash,
            self.class_map,
            dtype,
        )

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 for views [B, 3, S, S] with values 0 to 255.

        Raises:
            ValueError: if the network answers with something else.
        """
        parameter = next(self.model.parameters(), None)
        if len(self.preprocessing.mean) == 1:  # a network of grey images
            images = luma(images)
        inputs = self.preprocessing(images).contiguous(memory_format=torch.channels_last)
        output = self.model(inputs if parameter is None else inputs.to(parameter.dtype))
        return logits_of(output, f"The network {self.name}").float()

    def count_classes(self) -> int:
        """How many classes it tells apart, from its answer to a black view.

        Raises:
            ValueError: if it is no classifier: it has no head, cannot answer, or answers with something else than
                finite logits; or if it has names for more or fewer classes.
        """
        inner: Any = getattr(self.model, "timm_model", self.model)
        if getattr(inner, "num_classes", None) == 0:
            raise ValueError(f"{self.name} has no classifier (num_classes is 0), only features; name one that has.")
        device = next(self.model.parameters(), torch.empty(0)).device
        size = self.preprocessing.image_size
        try:
            with torch.inference_mode():
                logits = self.logits(torch.zeros(1, 3, size, size, device=device))
        except Exception as error:  # whatever a network raises for an input that is not its own
            if isinstance(error, ValueError) and self.name in str(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"The network {self.name} cannot answer to a view of {size}x{size} pixels "
                f"({type(error).__name__}: {reason}); pass the preprocessing= that it needs, or name another one."
            ) from error
        count = logits.shape[1]
        if count < 2:
            raise ValueError(f"The network {self.name} answers with one number, not with logits [images, classes].")
        if logits.log_softmax(-1).isnan().any():
            raise ValueError(f"The network {self.name} answers to a black view with numbers that are not finite.")
        if self.class_names and len(self.class_names) != count:
            raise ValueError(
                f"The network {self.name} has names for {len(self.class_names)} classes "
                f"({some(self.class_names)}), but answers with {count}; mend its config.json."
            )
        return count


def _reload(
    name: str,
    checkpoint: str | None,
    revision: str | None,
    preprocessing: Preprocessing,
    weight: float,
    expected: str,
    class_map: tuple[int, ...] | None,
    dtype: torch.dtype,
) -> Member:
    member = named_member(name, checkpoint, revision, preprocessing)
    if member.weight_hash != expected:
        raise ValueError(f"The weights of {name} have changed since they were first loaded; start again.")
    member.model.to(dtype=dtype)
    return replace(member, preprocessing=preprocessing, weight=weight, class_map=class_map)


def module_member(model: nn.Module) -> Member:
    """A module as a member, with its timm preprocessing and the names of its classes where it has them.

    The member has a copy, so that training mode and gradients of the caller's module stay as they are, and what is
    trained afterwards does not change the teacher.
    """
    try:
        own = deepcopy(model)
    except Exception as error:  # whatever a module holds that cannot be copied
        logger.warning(
            "%s cannot be copied (%s), so it is itself set to evaluation mode and frozen.", type(model).__name__, error
        )
        own = model
    preprocessing = timm_preprocessing(getattr(model, "pretrained_cfg", None))
    name = type(model).__name__
    return Member(own, preprocessing, name, "module", class_names(model, name))  # type: ignore[arg-type]


def named_member(
    name: str,
    checkpoint: str | None,
    revision: str | None,
    preprocessing: Preprocessing | None = None,
    head: bool = True,
) -> Member:
    """A network by its name: a Hub id, a folder, or a timm architecture with a checkpoint.

    Args:
        name: the name.
        checkpoint: file of the weights of a timm architecture.
        revision: Hub revision.
        preprocessing: taken instead of the network's own, which may be one that cannot be read.
        head: whether its classifier is used; without, the weights of the body are enough.

    Raises:
        ValueError: if it cannot be found or read, or its weights are not those of the network.
    """
    if checkpoint is not None:
        return _load_timm_checkpoint(name, checkpoint)
    path = resolve(name)
    with loading(name, path):
        load = TEACHER_KINDS[_kind(name, path, revision)]
        member, report = load(name, path, revision, preprocessing)
    (report if head else report.without(outside_body(member.model))).check(name)
    return member


def _kind(name: str, path: str, revision: str | None) -> str:
    from transformers.utils import cached_file

    try:
        config_file = cached_file(path, "config.json", revision=revision)
        if config_file is None:
            raise FileNotFoundError(f"{path} has no config.json")
    except OSError as error:
        raise ValueError(
            f"There is no image classifier {name!r}: neither a folder with a config.json nor a Hub repository "
            f"that can be reached. A bare timm architecture needs its weights: checkpoint=FILE. ({error})"
        ) from error
    try:
        config = json.loads(Path(str(config_file)).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{config_file}, the configuration of {name}, is no JSON ({error}); fetch it again."
        ) from error
    if not isinstance(config, dict) or not {"model_type", "architecture"} & set(config):
        raise ValueError(
            f"{config_file} describes no image classifier ({name}): it has neither a model_type, as those of "
            "transformers, nor an architecture, as those of timm."
        )
    if config.get("architecture") == MICRONET:
        return "micronet"
    return "transformers" if "model_type" in config else "timm"


def _load_transformers(
    name: str, path: str, revision: str | None, given: Preprocessing | None = None
) -> tuple[Member, WeightReport]:
    from transformers import AutoModelForImageClassification

    model, info = AutoModelForImageClassification.from_pretrained(
        path,
        revision=revision,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused with the others
    )
    timm_cfg = getattr(model.config, "pretrained_cfg", None)
    preprocessing = given or timm_preprocessing(timm_cfg) or processor_preprocessing(path, revision)
    preprocessing = for_channels(preprocessing, channels(model), name)
    member = Member(model, preprocessing, name, "transformers", class_names(model, name), revision)  # type: ignore[arg-type]
    return member, WeightReport.of(info)


def _load_timm(
    name: str, path: str, revision: str | None, given: Preprocessing | None = None
) -> tuple[Member, WeightReport]:
    import timm

    location = f"local-dir:{path}" if Path(path).is_dir() else f"hf-hub:{path}" + (f"@{revision}" if revision else "")
    with watched_loads(name) as loads:
        model = timm.create_model(location, pretrained=True)
    if len(loads) != 1:  # weights of another framework, which a network of timm reads in a way of its own
        raise ValueError(f"The weights of {name} are no state dict; save them as one, as safetensors.")
    preprocessing = for_channels(given or timm_preprocessing(model.pretrained_cfg), channels(model), name)
    member = Member(model, preprocessing, name, "timm", class_names(model, name), revision)  # type: ignore[arg-type]
    return member, loads[0]


def _load_micronet(
    name: str, path: str, revision: str | None, given: Preprocessing | None = None
) -> tuple[Member, WeightReport]:
    model, state = new_micronet(path), read_state(name, str(Path(path) / "model.safetensors"))
    report = WeightReport.between(model, state)
    report.check(name)
    model.load_state_dict(state)
    preprocessing: Any = given or timm_preprocessing(model.pretrained_cfg)
    return Member(model, preprocessing, name, "micronet", None, revision), report


def _load_timm_checkpoint(architecture: str, checkpoint: str) -> Member:
    import timm

    if not timm.is_model(architecture):
        raise ValueError(f"{architecture!r} is not a timm architecture; timm.list_models() names them.")
    state = read_state(architecture, checkpoint)
    model = timm.create_model(architecture, pretrained=False)
    classifiers = model.pretrained_cfg["classifier"]
    first = classifiers if isinstance(classifiers, str) else classifiers[0]
    place = f"{architecture} in {checkpoint}"
    if f"{first}.weight" in state:
        model = timm.create_model(architecture, pretrained=False, num_classes=len(state[f"{first}.weight"]))
    else:
        place = f"{checkpoint}, which has no {f'{first}.weight'!r} and so is no classifier of the kind {architecture},"
    WeightReport.between(model, state).check(place)
    with loading(f"{architecture} from {checkpoint}", checkpoint):
        model.load_state_dict(state, strict=False)  # all but what no network needs
    preprocessing = timm_preprocessing(model.pretrained_cfg)
    return Member(model, preprocessing, architecture, "timm", checkpoint=checkpoint)  # type: ignore[arg-type]


TEACHER_KINDS: dict[str, Callable[[str, str, str | None, Preprocessing | None], tuple[Member, WeightReport]]] = {
    "transformers": _load_transformers,
    "timm": _load_timm,
    "micronet": _load_micronet,
}
"""Loaders of named teachers: (name, folder or Hub id, revision, preprocessing or None) -> Member, and how its weights
fit."""
