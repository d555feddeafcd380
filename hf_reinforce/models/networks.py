"""One image classifier with its own preprocessing, loaded by name: a transformers or timm network, or a module."""

import json
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hf_reinforce.local_copies import resolve
from hf_reinforce.models import cifar_networks  # noqa: F401 timm gets to know them
from hf_reinforce.models.classes import some
from hf_reinforce.models.preprocessing import Preprocessing, processor_preprocessing, timm_preprocessing
from hf_reinforce.models.weights import (
    WeightReport,
    loading,
    outside_body,
    read_state,
    repository_file,
    weight_hash,
)


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
        fresh: names of tensors of its head that its checkpoint lacks, where the head is not used.
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
    fresh: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        if not self.weight_hash:
            object.__setattr__(self, "weight_hash", weight_hash(self.model))

    def __reduce__(self) -> Any:
        # `datasets.map` hashes and copies what it maps: a named network travels as its name, not as its weights.
        if self.kind == "module":
            return super().__reduce__()
        stated = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        return _reload, (stated, next(self.model.parameters()).dtype)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 for views [B, 3, S, S] with values 0 to 255; a ValueError for any other answer."""
        inputs = self.preprocessing(images).contiguous(memory_format=torch.channels_last)
        dtype = next(self.model.parameters(), inputs).dtype
        return logits_of(self.model(inputs.to(dtype)), f"The network {self.name}").float()

    def count_classes(self) -> int:
        """How many classes it tells apart, from its answer to black views.

        Raises:
            ValueError: if it is no classifier, or has names for more or fewer classes.
        """
        if getattr(getattr(self.model, "timm_model", self.model), "num_classes", None) == 0:
            raise ValueError(f"{self.name} has no classifier (num_classes is 0), only features; name one that has.")
        advice = "pass the preprocessing= that it needs, or name another one"
        size = self.preprocessing.image_size
        count = try_network(self.model, self.logits, f"The network {self.name}", size, advice)
        if self.class_names and len(self.class_names) != count:
            raise ValueError(
                f"The network {self.name} has names for {len(self.class_names)} classes "
                f"({some(self.class_names)}), but answers with {count}; mend its config.json."
            )
        return count


def _reload(stated: dict[str, Any], dtype: torch.dtype) -> Member:
    name = stated["name"]
    member = named_member(name, stated["checkpoint"], stated["revision"], stated["preprocessing"])
    if member.weight_hash != stated["weight_hash"]:
        raise ValueError(f"The weights of {name} have changed since they were first loaded; start again.")
    member.model.to(dtype=dtype)
    return replace(member, **stated)


def logits_of(output: Any, name: str) -> Tensor:
    """The logits [B, C] in what a network returns: a tensor, an output of transformers, or a dict or tuple of which
    one item is named `logits` or is the only tensor [B, C]; a ValueError that begins with `name` for anything else."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    items = list(output.values()) if isinstance(output, Mapping) else output
    if named is not None or not isinstance(items, (list, tuple)):
        items = [items if named is None else named]
    found = [item for item in items if isinstance(item, Tensor) and item.ndim == 2 and item.is_floating_point()]
    if len(found) != 1:
        shapes = [str(tuple(item.shape)) if isinstance(item, Tensor) else type(item).__name__ for item in items]
        raise ValueError(
            f"{name} should answer with logits [images, classes], but returns a {type(output).__name__} of "
            f"{', '.join(shapes) or 'nothing'}; take an image classifier, or a module that returns the logits alone."
        )
    return found[0]


def try_network(
    network: nn.Module, answer: Callable[[Tensor], Tensor], name: str, image_size: int, advice: str
) -> int:
    """How many classes a network tells apart, from its `answer` to two black views in evaluation mode.

    Raises:
        ValueError: if it cannot answer, which ends with the advice, or answers with a single number or with NaN.
    """
    views = torch.zeros(2, 3, image_size, image_size, device=next(network.parameters(), torch.empty(0)).device)
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            logits = answer(views)
    except Exception as error:  # networks raise whatever their layers run into
        if isinstance(error, ValueError) and name in str(error):
            raise
        raise ValueError(
            f"{name} cannot take views of {image_size}x{image_size} pixels in three channels ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); {advice}."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if logits.shape[1] < 2 or logits.log_softmax(-1).isnan().any():
        found = "one number" if logits.shape[1] < 2 else "numbers that are not finite"
        raise ValueError(f"{name} answers with {found}, not with logits [images, classes]; take another classifier.")
    return logits.shape[1]


# -- what a network records about itself --------------------------------------------------------------------------


def architecture(model: nn.Module) -> str:
    """What kind of network it is: timm's name of it, e.g. `resnet10t`, else its class."""
    sources = (getattr(model, "config", None), getattr(model, "pretrained_cfg", None))
    return next((str(found) for item in sources if (found := _get(item, "architecture"))), type(model).__name__)


def _get(config: Any, key: str) -> Any:
    """A value in a configuration of timm, a dict, or one of transformers."""
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _class_names(model: nn.Module, name: str) -> tuple[str, ...] | None:
    """Names of the classes in the order of the logits, as transformers or timm record them; None without."""
    config = getattr(model, "config", None)
    named = {int(index): str(label) for index, label in (_get(config, "id2label") or {}).items()}
    if not named:
        names = _get(getattr(model, "pretrained_cfg", None), "label_names")
        return tuple(map(str, names)) if names else None
    if set(named) != set(range(len(named))):
        raise ValueError(
            f"The id2label of {name} must number its classes 0 to {len(named) - 1}, but has the indices "
            f"{some(sorted(named))}; mend its config.json."
        )
    for label, index in (_get(config, "label2id") or {}).items():
        if label in named.values() and str(index).isdecimal() and named.get(int(index)) != label:
            raise ValueError(
                f"The id2label and label2id of {name} contradict each other about the class {label!r}; mend its "
                "config.json."
            )
    return tuple(named[index] for index in range(len(named)))


# -- loading ------------------------------------------------------------------------------------------------------


def module_member(model: nn.Module) -> Member:
    """A copy of a module as a member, with its timm preprocessing and the names of its classes where it has them.

    Since it is a copy, the caller's module keeps its mode and gradients, and may be trained.
    """
    name, preprocessing = type(model).__name__, timm_preprocessing(getattr(model, "pretrained_cfg", None))
    return Member(deepcopy(model), preprocessing, name, "module", _class_names(model, name))  # type: ignore[arg-type]


def named_member(
    name: str,
    checkpoint: str | None = None,
    revision: str | None = None,
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
    path = resolve(name) if checkpoint is None else checkpoint
    shown = name if checkpoint is None else f"{name} from {checkpoint}"
    with loading(shown, path):
        if checkpoint is None:
            kind = _kind(name, path, revision)
            model, found, report = TEACHER_KINDS[kind](path, revision, preprocessing)
        else:
            kind, (model, found, report) = "timm", _load_timm_checkpoint(name, checkpoint, preprocessing)
        report.check(shown) if head else report.check(shown, outside_body(model))
        names = _class_names(model, name)
    return Member(model, found, name, kind, names, revision, checkpoint, fresh=report.fresh)  # type: ignore[arg-type]


Loaded = tuple[nn.Module, Preprocessing | None, WeightReport]


def _kind(name: str, path: str, revision: str | None) -> str:
    try:
        file = repository_file(path, revision, "config.json")
    except OSError as error:
        bare = "A bare timm architecture needs checkpoint=FILE (--teacher_checkpoint or --model_checkpoint). "
        raise ValueError(
            f"There is no image classifier {name!r}: neither a folder with a config.json nor a Hub repository "
            f"that can be reached. {'' if '/' in name else bare}({error})"
        ) from error
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not {"model_type", "architecture"} & set(config):
        raise ValueError(
            f"{file} describes no image classifier ({name}): it has neither a model_type, as those of transformers, "
            "nor an architecture, as those of timm."
        )
    if "model_type" in config:
        return "transformers"
    return "micronet" if config["architecture"] == "MicroNet" else "timm"


def _load_transformers(path: str, revision: str | None, given: Preprocessing | None) -> Loaded:
    from transformers import AutoModelForImageClassification

    model, info = AutoModelForImageClassification.from_pretrained(
        path,
        revision=revision,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused with the others
    )
    own = given or timm_preprocessing(_get(model.config, "pretrained_cfg")) or processor_preprocessing(path, revision)
    return model, own, WeightReport.of(info)


def _load_timm(path: str, revision: str | None, given: Preprocessing | None) -> Loaded:
    location = f"local-dir:{path}" if Path(path).is_dir() else f"hf-hub:{path}" + (f"@{revision}" if revision else "")
    state = read_state(path, repository_file(path, revision, "model.safetensors", "pytorch_model.bin"))
    network = timm.create_model(location)
    # What timm itself does with weights of an earlier form of the architecture.
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", lambda state, network: state)
    return _with_weights(network, convert(state, network), given)


def _load_micronet(path: str, revision: str | None, given: Preprocessing | None) -> Loaded:
    config = json.loads(repository_file(path, revision, "config.json").read_text(encoding="utf-8"))
    network = timm.create_model(f"cifar_micronet_{config['variant']}", num_classes=config["num_classes"])
    return _with_weights(network, read_state(path, repository_file(path, revision, "model.safetensors")), given)


def _load_timm_checkpoint(architecture: str, checkpoint: str, given: Preprocessing | None) -> Loaded:
    state, network = read_state(architecture, Path(checkpoint)), timm.create_model(architecture)
    names = network.pretrained_cfg["classifier"]
    head = state.get(f"{names if isinstance(names, str) else names[0]}.weight")
    if head is not None:
        network = timm.create_model(architecture, num_classes=len(head))
    return _with_weights(network, state, given)


def _with_weights(network: Any, state: Mapping[str, Tensor], given: Preprocessing | None) -> Loaded:
    """A network of timm with those of the tensors that fit."""
    report, own = WeightReport.between(network, state), network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return network, given or timm_preprocessing(network.pretrained_cfg), report


TEACHER_KINDS: dict[str, Callable[[str, str | None, Preprocessing | None], Loaded]] = {
    "transformers": _load_transformers,
    "timm": _load_timm,
    "micronet": _load_micronet,
}
"""Loaders of named networks: (folder or Hub id, revision, preprocessing or None) -> the network, its preprocessing,
and how its weights fit."""
