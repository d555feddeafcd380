"""One image classifier with its own preprocessing, loaded by name: a transformers or timm network, or a module."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from hf_reinforce.local import resolve
from hf_reinforce.preprocessing import Preprocessing, timm_preprocessing
from hf_reinforce.processors import processor_preprocessing


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
            dtype,
        )

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 for views [B, 3, S, S] with values 0 to 255."""
        parameter = next(self.model.parameters(), None)
        inputs = self.preprocessing(images).contiguous(memory_format=torch.channels_last)
        output = self.model(inputs if parameter is None else inputs.to(parameter.dtype))
        logits: Tensor = output.logits if hasattr(output, "logits") else output
        return logits.float()


def architecture(model: nn.Module) -> str:
    """What kind of network it is: timm's name of it, e.g. `resnet10t`, else its class."""
    sources = (getattr(model, "config", None), getattr(model, "pretrained_cfg", None))
    found = [item.get("architecture") for item in map(_as_dict, sources)]
    return next((str(name) for name in found if name), type(model).__name__)


def _as_dict(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}


def weight_hash(model: nn.Module) -> str:
    """xxh3-64, hex, over the names and bytes of a model's parameters and buffers."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _reload(
    name: str,
    checkpoint: str | None,
    revision: str | None,
    preprocessing: Preprocessing,
    weight: float,
    expected: str,
    dtype: torch.dtype,
) -> Member:
    member = named_member(name, checkpoint, revision, preprocessing)
    if member.weight_hash != expected:
        raise ValueError(f"The weights of {name} have changed since they were first loaded; start again.")
    member.model.to(dtype=dtype)
    return replace(member, preprocessing=preprocessing, weight=weight)


def module_member(model: nn.Module) -> Member:
    """A module as a member, with its timm preprocessing where it has one."""
    return Member(model, timm_preprocessing(getattr(model, "pretrained_cfg", None)), type(model).__name__, "module")  # type: ignore[arg-type]


def named_member(
    name: str, checkpoint: str | None, revision: str | None, preprocessing: Preprocessing | None = None
) -> Member:
    """A network by its name: a Hub id, a folder, or a timm architecture with a checkpoint.

    With `preprocessing` the network's own is not read, which may be one that cannot be.

    Raises:
        ValueError: if it cannot be found or read.
    """
    if checkpoint is not None:
        return _load_timm_checkpoint(name, checkpoint)
    path = resolve(name)
    return TEACHER_KINDS[_kind(name, path, revision)](name, path, revision, preprocessing)


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
    config = json.loads(Path(str(config_file)).read_text(encoding="utf-8"))
    return "transformers" if "model_type" in config else "timm"


def _load_transformers(name: str, path: str, revision: str | None, given: Preprocessing | None = None) -> Member:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(path, revision=revision, dtype=torch.float32)
    timm_cfg = getattr(model.config, "pretrained_cfg", None)
    preprocessing = given or timm_preprocessing(timm_cfg) or processor_preprocessing(path, revision)
    names = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    return Member(model, preprocessing, name, "transformers", tuple(names), revision)  # type: ignore[arg-type]


def _load_timm(name: str, path: str, revision: str | None, given: Preprocessing | None = None) -> Member:
    import timm

    location = f"local-dir:{path}" if Path(path).is_dir() else f"hf-hub:{path}" + (f"@{revision}" if revision else "")
    model = timm.create_model(location, pretrained=True)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    preprocessing = given or timm_preprocessing(model.pretrained_cfg)
    return Member(model, preprocessing, name, "timm", tuple(names) if names else None, revision)  # type: ignore[arg-type]


def _load_timm_checkpoint(architecture: str, checkpoint: str) -> Member:
    import timm

    if not timm.is_model(architecture):
        raise ValueError(f"{architecture!r} is not a timm architecture; timm.list_models() names them.")
    try:
        if checkpoint.endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"There is no checkpoint {checkpoint}.") from error
    except Exception as error:  # safetensors and torch raise what their parsers run into
        raise ValueError(
            f"{checkpoint} holds no weights that can be loaded safely ({type(error).__name__}); save the state dict "
            "as safetensors."
        ) from error
    model = timm.create_model(architecture, pretrained=False)
    classifier = f"{model.pretrained_cfg['classifier']}.weight"
    if not isinstance(state, Mapping) or classifier not in state:
        raise ValueError(f"{checkpoint} has no {classifier!r}, so it is not a classifier of the kind {architecture}.")
    model = timm.create_model(architecture, pretrained=False, num_classes=state[classifier].shape[0])
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{checkpoint} does not hold the weights of a {architecture}: {len(missing)} tensors are missing and "
            f"{len(unexpected)} do not belong, such as {(missing + unexpected)[0]!r}."
        )
    preprocessing = timm_preprocessing(model.pretrained_cfg)
    return Member(model, preprocessing, architecture, "timm", checkpoint=checkpoint)  # type: ignore[arg-type]


TEACHER_KINDS: dict[str, Callable[[str, str, str | None, Preprocessing | None], Member]] = {
    "transformers": _load_transformers,
    "timm": _load_timm,
}
"""Loaders of named teachers: (name, folder or Hub id, revision, preprocessing or None) -> Member."""
